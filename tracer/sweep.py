"""The Jacobian engine: rows swept down the layers together, with explicit transposed linear maps.

No autograd and no forward pass a row. Rows of nearby positions go in one chunk, cut off after the
last of them (causality); inside a chunk a row joins at the site it reads from, so no work is done
above its layer. Memory is bounded by the chunk, whatever the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.linear import LinearLayer, LocalModel
from tracer.targets import Rows

CHUNK = 4096
"""Row-positions swept together: gradients of one chunk take CHUNK x d_model numbers."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effects on some rows, in units of what each row reads."""

    sources: Float[Tensor, "rows columns"]
    """Columns: features, errors (layer-major), tokens, as `LocalModel` numbers them."""
    constant: Float[Tensor, " rows"]
    """What biases, learned positions and skipped positions contribute, the row's own included."""


def sweep(local: LocalModel, rows: Rows) -> Effects:
    """Effect of every source on every row.

    Source: Ameisen et al. 2025, "Circuit Tracing", section "Attribution graphs"; here
    A[t, s] = Σ_m (what s writes at m) · J(m → t)ᵀ v_t, with gradients stopped at every MLP.
    """
    dtype = torch.float32 if rows.vector.dtype == torch.bfloat16 else rows.vector.dtype
    sources = rows.vector.new_zeros(len(rows), local.columns, dtype=dtype)
    constant = rows.bias.to(dtype, copy=True)
    for chunk in _chunks(rows):
        part = Effects(sources.new_zeros(len(chunk), local.columns), constant.new_zeros(len(chunk)))
        _sweep_chunk(local, rows[chunk], part)
        sources[chunk] = part.sources
        constant[chunk] += part.constant
    return Effects(sources, constant)


def _chunks(rows: Rows) -> Iterator[Int[Tensor, " chunk"]]:
    """Row numbers by position, then site from the top, cut so that a chunk fills its budget."""
    order = (rows.position * (2**20) - rows.site).argsort()
    positions = rows.position[order].tolist()
    begin = 0
    for end, position in enumerate(positions):
        if (end - begin + 1) * (position + 1) > CHUNK and end > begin:
            yield _by_site(rows, order[begin:end])
            begin = end
    if positions:
        yield _by_site(rows, order[begin:])


def _by_site(rows: Rows, chunk: Tensor) -> Tensor:
    return chunk[rows.site[chunk].argsort(descending=True, stable=True)]


def _sweep_chunk(local: LocalModel, rows: Rows, effects: Effects) -> None:
    """Sweep rows sorted by site from the top, adding to `effects`."""
    positions = int(rows.position.max()) + 1
    sites = rows.site.tolist()
    gradient = rows.vector.new_zeros(positions, 0, rows.vector.shape[1])
    for layer in range((max(sites) - 1) // 2, -1, -1):
        maps = local.layers[layer]
        gradient = _join(gradient, rows, sites, 2 * layer + 2)
        if gradient.shape[1]:
            _score_writers(local, layer, gradient, effects)
        if maps.parallel:
            below = _attention(maps, gradient, effects)
            gradient = _skip(maps, gradient, onto=below)
        else:
            gradient = _skip(maps, gradient, onto=gradient)
            gradient = _join(gradient, rows, sites, 2 * layer + 1)
            gradient = _attention(maps, gradient, effects)
    gradient = _join(gradient, rows, sites, 0)
    _score_tokens(local, gradient, effects)


def _join(gradient: Tensor, rows: Rows, sites: list[int], site: int) -> Tensor:
    """`gradient` (P, rows so far, D) with the rows that read at `site` appended."""
    joined = gradient.shape[1]
    count = sites[joined:].count(site)
    if count == 0:
        return gradient
    new = gradient.new_zeros(gradient.shape[0], count, gradient.shape[2])
    at = torch.arange(joined, joined + count, device=gradient.device)
    new[rows.position[at], at - joined] = rows.vector[at]
    return torch.cat([gradient, new], dim=1)


def _score_writers(local: LocalModel, layer: int, gradient: Tensor, effects: Effects) -> None:
    """Add what the writers to one layer's MLP output contribute: one product a position."""
    writers, rows = local.layers[layer].writers, gradient.shape[1]
    sources, constant = effects.sources[:rows], effects.constant[:rows]
    for position in range(gradient.shape[0]):
        begin, end = writers.start[position : position + 2]
        scores = (gradient[position] @ writers.vectors[begin:end].T).to(sources.dtype)
        constant += scores[:, -1]
        if position < local.skip_positions:
            continue
        features = end - begin - 2
        first = writers.first[position]
        sources[:, first : first + features] += scores[:, :features]
        sources[:, local.error_column(layer, position)] += scores[:, -2]


def _skip(maps: LinearLayer, gradient: Tensor, onto: Tensor) -> Tensor:
    """Add the pull-back through the linear skip of `gradient` to `onto`."""
    if maps.skip is None:
        return onto
    scale = maps.skip_scale[: gradient.shape[0], None]
    return torch.addcmul(onto, gradient @ maps.skip, scale)


def _attention(maps: LinearLayer, gradient: Tensor, effects: Effects) -> Tensor:
    """Pull back through one attention layer, residual included; score its constant."""
    positions, rows, d_model = gradient.shape
    constant = maps.attention_constant[:positions]
    effects.constant[:rows] += torch.einsum("prd,pd->r", gradient, constant)
    kv_heads, _, group, _ = maps.pattern.shape
    back = gradient.flatten(0, 1) @ maps.output
    per_head = back.reshape(positions, rows, kv_heads, group, -1).permute(2, 3, 0, 1, 4)
    pattern = maps.pattern[:, :positions, :, :positions].flatten(2)
    mixed = torch.bmm(pattern, per_head.reshape(kv_heads, group * positions, -1))
    values = mixed.reshape(kv_heads, positions, rows, -1).permute(1, 2, 0, 3)
    below = torch.addmm(gradient.flatten(0, 1), values.reshape(positions * rows, -1), maps.value)
    return below.reshape(positions, rows, d_model)


def _score_tokens(local: LocalModel, gradient: Tensor, effects: Effects) -> None:
    positions, rows, _ = gradient.shape
    scores = torch.einsum("prd,pd->rp", gradient, local.token_vectors[:positions])
    first = local.token_column(0)
    effects.sources[:rows, first : first + positions] = scores.to(effects.sources.dtype)
    if local.position_vectors is not None:
        learned = local.position_vectors[:positions]
        effects.constant[:rows] += torch.einsum("prd,pd->r", gradient, learned)
