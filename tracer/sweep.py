"""The Jacobian engine: rows swept down the layers together, with explicit transposed linear maps.

No autograd and no forward pass a row. Rows of nearby positions go in one chunk, cut off after the
last of them (causality); inside a chunk a row joins at the site it reads from, so no work is done
above its layer. Memory is bounded by the chunk, whatever the number of rows.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.linear import LinearLayer, LocalModel
from tracer.product import EARNS_A_KERNEL, add_product, product
from tracer.targets import Rows

CHUNK, CHUNK_ON_GPU = 1024, 65536
"""Row-positions swept together: gradients of one chunk take CHUNK x d_model numbers. On CPUs they
should stay in the cache; a GPU needs more to be busy."""
ROWS, ROWS_PER_PATTERN = 16, 32
"""A chunk holds so many rows even when their positions exceed it: matrix products need them, and
more so patterns that have to be made anew for every chunk."""
KEYS = 128
"""Long patterns are mixed in blocks of so many keys, so that queries before them cost nothing."""


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

    def sweep_chunk(chunk: Tensor) -> None:
        part = Effects(sources.new_zeros(len(chunk), local.columns), constant.new_zeros(len(chunk)))
        _sweep_chunk(local, rows[chunk], part)
        sources[chunk] = part.sources
        constant[chunk] += part.constant

    remade = any(layer.remakes_pattern for layer in local.layers)
    chunks = list(_chunks(rows, ROWS_PER_PATTERN if remade else ROWS))
    _each(sweep_chunk, chunks, on_cpu=sources.device.type == "cpu")
    return Effects(sources, constant)


def _each(call: Callable[[Tensor], None], chunks: list[Tensor], on_cpu: bool) -> None:
    """Call with every chunk: one a core where there are several, rather than sharing products."""
    threads = torch.get_num_threads()
    if not on_cpu or threads == 1 or len(chunks) < threads:
        for chunk in chunks:
            call(chunk)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(torch.no_grad()(call), chunks))
    finally:
        torch.set_num_threads(threads)


def _chunks(rows: Rows, least: int) -> Iterator[Int[Tensor, " chunk"]]:
    """Row numbers by position, then site from the top, cut so that a chunk fills its budget."""
    budget = CHUNK if rows.vector.device.type == "cpu" else CHUNK_ON_GPU
    order = (rows.position * (2**20) - rows.site).argsort()
    positions = rows.position[order].tolist()
    begin = 0
    for end, position in enumerate(positions):
        if (end - begin + 1) * (position + 1) > budget and end - begin >= least:
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
        fresh = _joining(rows, sites, gradient.shape[1], 2 * layer + 2)
        _score_writers(local, layer, gradient, fresh, effects)
        if maps.parallel:
            values = _attention(maps, gradient, fresh, effects)
            gradient, fresh = _skip(maps, gradient, fresh)
        else:
            gradient, fresh = _skip(maps, gradient, fresh)
            joined = gradient.shape[1] + len(fresh)
            fresh = _both(fresh, _joining(rows, sites, joined, 2 * layer + 1))
            values = _attention(maps, gradient, fresh, effects)
        gradient = _spread(gradient, fresh)
        if layer > 0:
            flat = gradient.flatten(0, 1)
            below = add_product(flat, values.reshape(len(flat), -1), maps.value)
            gradient = below.view_as(gradient)
        else:
            _score_tokens(local, values, maps.value, effects)
    fresh = _joining(rows, sites, gradient.shape[1], 0)
    _score_tokens(local, _spread(gradient, fresh), None, effects)


@dataclass(frozen=True, eq=False)
class Fresh:
    """Rows that passed no attention layer yet: their gradient stands at one position."""

    vector: Float[Tensor, "rows d_model"]
    position: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.position)


def _joining(rows: Rows, sites: list[int], joined: int, site: int) -> Fresh:
    """The rows that read at `site`, which follow the `joined` ones in order."""
    end = joined + sites[joined:].count(site)
    return Fresh(rows.vector[joined:end], rows.position[joined:end])


def _both(first: Fresh, second: Fresh) -> Fresh:
    return Fresh(
        torch.cat([first.vector, second.vector]), torch.cat([first.position, second.position])
    )


def _spread(gradient: Tensor, fresh: Fresh) -> Tensor:
    """`gradient` (P, rows so far, D) with fresh rows appended, zero but at their position."""
    if not len(fresh):
        return gradient
    new = gradient.new_zeros(gradient.shape[0], len(fresh), gradient.shape[2])
    new[fresh.position, torch.arange(len(fresh), device=new.device)] = fresh.vector
    return torch.cat([gradient, new], dim=1)


def _score_writers(
    local: LocalModel, layer: int, gradient: Tensor, fresh: Fresh, effects: Effects
) -> None:
    """Add what the writers to one layer's MLP output contribute: one product a position."""
    positions, rows, width = gradient.shape
    if rows:
        writers = local.layers[layer].writers.start[positions] / positions
        with _one_thread(2 * rows * width * writers < EARNS_A_KERNEL):
            for position in range(positions):
                _score_position(local, layer, position, gradient[position], effects, slice(rows))
    for position in fresh.position.unique().tolist():
        here = (fresh.position == position).nonzero()[:, 0]
        _score_position(local, layer, position, fresh.vector[here], effects, rows + here)


@contextmanager
def _one_thread(small: bool) -> Iterator[None]:
    """Keep many small products on one thread: waiting for the others would cost more than they."""
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _score_position(
    local: LocalModel,
    layer: int,
    position: int,
    gradient: Float[Tensor, "rows d_model"],
    effects: Effects,
    rows: slice | Tensor,
) -> None:
    writers = local.layers[layer].writers
    begin, end = writers.start[position : position + 2]
    scores = product(gradient, writers.vectors[begin:end]).to(effects.sources.dtype)
    effects.constant[rows] += scores[:, -1]
    if position < local.skip_positions:
        return
    features = end - begin - 2
    first = writers.first[position]
    effects.sources[rows, first : first + features] += scores[:, :features]
    effects.sources[rows, local.error_column(layer, position)] += scores[:, -2]


def _skip(maps: LinearLayer, gradient: Tensor, fresh: Fresh) -> tuple[Tensor, Fresh]:
    """Add the pull-back through the linear skip."""
    if maps.skip is None:
        return gradient, fresh
    scale = maps.skip_scale[: gradient.shape[0], None]
    own = maps.skip_scale[fresh.position]
    vector = torch.addcmul(fresh.vector, product(fresh.vector, maps.skip), own)
    pulled = product(gradient.flatten(0, 1), maps.skip).view_as(gradient)
    below = torch.addcmul(gradient, pulled, scale)
    return below, Fresh(vector, fresh.position)


def _attention(
    maps: LinearLayer, gradient: Tensor, fresh: Fresh, effects: Effects
) -> Float[Tensor, "positions rows kv_heads d_head"]:
    """Pull back to one attention layer's value vectors; score its constant on the way.

    A fresh row needs W_O at its own position only.
    """
    positions, old, _ = gradient.shape
    rows = old + len(fresh)
    constant = maps.attention_constant[:positions]
    effects.constant[:old] += torch.einsum("prd,pd->r", gradient, constant)
    effects.constant[old:rows] += (fresh.vector * constant[fresh.position]).sum(1)
    pattern = maps.transposed_pattern(positions)
    kv_heads, _, group, _ = pattern.shape
    d_head = maps.value.shape[1] // kv_heads
    heads = gradient.new_empty(kv_heads, group, positions, rows, d_head)
    back = product(gradient.flatten(0, 1), maps.output)
    back = back.reshape(positions, old, kv_heads, group, d_head)
    heads[:, :, :, :old] = back.permute(2, 3, 0, 1, 4)
    if len(fresh):
        at = torch.arange(old, rows, device=gradient.device)
        own = product(fresh.vector, maps.output).reshape(-1, kv_heads, group, d_head)
        heads[:, :, :, old:] = 0
        heads[:, :, fresh.position, at] = own.permute(1, 2, 0, 3)
    mixed = _mix(pattern, heads.flatten(3))
    return mixed.reshape(kv_heads, positions, rows, d_head).permute(1, 2, 0, 3)


def _mix(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "kv_heads group queries columns"],
) -> Float[Tensor, "kv_heads keys columns"]:
    """Sum over queries and over the heads that share a key; queries before a key do not count."""
    kv_heads, keys = pattern.shape[:2]
    if keys <= KEYS:
        return torch.bmm(pattern.flatten(2), heads.flatten(1, 2))
    mixed = heads.new_empty(kv_heads, keys, heads.shape[-1])
    for begin in range(0, keys, KEYS):
        end = begin + KEYS
        for head in range(kv_heads):
            weight = heads[head, :, begin:].flatten(0, 1).T
            mixed[head, begin:end] = product(pattern[head, begin:end, :, begin:].flatten(1), weight)
    return mixed


def _score_tokens(
    local: LocalModel, gradient: Tensor, value: Tensor | None, effects: Effects
) -> None:
    """Add what tokens and learned positions contribute through `gradient` (P, rows, ...).

    With `value`, the gradient is still that of the bottom layer's value vectors, and the embeddings
    are brought to it instead of the other way round.
    """
    positions, rows = gradient.shape[:2]
    gradient = gradient.flatten(2)
    tokens, learned = local.token_vectors[:positions], local.position_vectors
    if value is not None:
        tokens = tokens @ value
    first = local.token_column(0)
    scores = torch.einsum("prd,pd->rp", gradient, tokens)
    effects.sources[:rows, first : first + positions] += scores.to(effects.sources.dtype)
    if learned is not None:
        learned = learned[:positions] if value is None else learned[:positions] @ value
        effects.constant[:rows] += torch.einsum("prd,pd->r", gradient, learned)
