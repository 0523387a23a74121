"""The sweep in its plainest form: DESIGN's four steps, a layer at a time, nothing shared or cut.

Every row has its whole gradient (positions, D) from the start; no tricks with positions that need
no gradient, no chunks, no products prepared. `sweep.py` must give the same effects, which
tests/test_tracer_plain_sweep.py checks. Read this first.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import Recording, ReplacementModel
from replacement_models.sites import stream_number
from tracer.attribution.local_model import LocalModel
from tracer.attribution.sweep import Effects
from tracer.attribution.targets import TargetRows


@torch.no_grad()
def plain_sweep(
    model: ReplacementModel, recording: Recording, local: LocalModel, rows: TargetRows
) -> Effects:
    """Effect of every source on every row; `local` must follow gradients to every position.

    Source: Ameisen et al. 2025, "Circuit Tracing", section "Attribution graphs".
    """
    positions, features, tokens = local.positions, local.features, local.token_column(0)
    sources = rows.vector.new_zeros(len(rows), local.columns)
    constant, gradient = rows.bias.clone(), torch.zeros_like(_placed(rows, positions))
    at, back = torch.from_numpy(rows.site), torch.zeros_like(gradient)
    for layer in range(len(local.layers) - 1, -1, -1):
        maps, writers = local.layers[layer], local.writers[layer]
        gradient += (at == stream_number(layer + 1))[:, None, None] * _placed(rows, positions)
        above = back if maps.aside else gradient  # written aside: only attention above reads it
        for p in range(positions):  # 1. what the layer writes, features first
            scores, count = above[:, p] @ writers.at(p).T, writers.features(p)
            own = slice(writers.first[p], writers.first[p] + count)
            sources[:, own] += scores[:, :count] * features.activation[own]
            sources[:, local.error_column(layer, p)] += scores[:, count]
            constant += scores[:, count + 1]
        below = torch.zeros_like(above) if maps.aside else above
        if maps.skip is not None:  # 2. the linear skip
            below = below + (above @ maps.skip.T) * maps.skip_scale
        join = (at == stream_number(layer, between=True))[:, None, None] * _placed(rows, positions)
        below = below + join  # 3. rows that read between attention and MLP
        constant += torch.einsum("rpd,pd->r", join, maps.carried[:, -1])
        back = _attention(model, recording, layer, above if maps.parallel else below)
        if maps.tokens is not None:
            back, beside = back.chunk(2, dim=-1)
            sources[:, tokens:] += torch.einsum("rpd,pd->rp", beside, local.token_vectors)
        gradient = back + (gradient if maps.aside else below)  # 4. through values
    gradient += (at == stream_number(0))[:, None, None] * _placed(rows, positions)
    sources[:, tokens:] += torch.einsum("rpd,pd->rp", gradient, local.token_vectors)
    if local.position_vectors is not None:
        constant += torch.einsum("rpd,pd->r", gradient, local.position_vectors)
    return Effects(sources, constant)


def _attention(model: ReplacementModel, recording: Recording, layer: int, read: Tensor) -> Tensor:
    """`((G W_O) · patternᵀ) W_V`, head by head, norms folded in."""
    folded, frozen = model.folded[layer], recording.layers[layer]
    pattern = frozen.attention_pattern()
    if frozen.attention_post_scale is not None:
        pattern = pattern / frozen.attention_post_scale
    heads, kv_heads = len(pattern), len(model.host.blocks[layer].value)
    values = folded.value.unflatten(1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, 1)
    back = (read @ folded.output.T).unflatten(-1, (heads, -1))
    block, factors = model.host.blocks[layer], frozen.factors
    mixed = torch.einsum("rqhi,hqk->rkhi", factors.of_outputs(back), pattern)
    if factors.values is not None:
        mixed = mixed * _by_head(factors.values, heads)
    if block.taps is not None:
        taps = _by_head(block.taps.weight.permute(2, 0, 1), heads)
        ahead = [
            nn.functional.pad(mixed[:, lag:], (0, 0, 0, 0, 0, lag)) for lag in range(len(taps))
        ]
        mixed = sum(tap * later for tap, later in zip(taps, ahead, strict=True))
    scaled = mixed / frozen.attention_scale[:, :, None]
    return torch.einsum("rkhi,dhi->rkd", scaled, values)


def _by_head(factors: Tensor, heads: int) -> Float[Tensor, "some heads d_head"]:
    """Those of values, for the heads that share one."""
    return factors.repeat_interleave(heads // factors.shape[1], 1)


def _placed(rows: TargetRows, positions: int) -> Float[Tensor, "rows positions d_model"]:
    """The gradient that rows join with."""
    weights = rows.weights
    if weights is None:
        every = torch.arange(positions, device=rows.vector.device)
        weights = (torch.from_numpy(rows.position)[:, None] == every).to(rows.vector.dtype)
    return weights[:, :, None] * rows.vector[:, None]
