"""What attention carries of tokens and constants, worked out forward, once per prompt.

The sweep goes backward because there are more sources than rows. In two places there are not, and
going forward there saves every row a good part of its matrix products:

- Positions that are skipped hold no features and no errors. What tokens and constants write there
  is known to later positions through attention only, so no gradient is followed to them (unless
  patterns are made anew: they belong to long prompts, where one position makes no difference).
- Below the bottom attention layer stand tokens and learned positions only, so the gradient of a
  short prompt ends above it.

What is carried is held by source, (P, S + 1, D): the first S tokens, then the constant.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.folding import FoldedLayer
from tracer.attribution.around import Around

LIFTED = 1 << 26
"""Bytes that tokens carried by the bottom attention layer may take: P·P·D numbers."""


def start_of(recording: Recording, skip_positions: int) -> int:
    """The first position that gradients are followed to: that after the skipped ones, if any."""
    kept = all(isinstance(layer.pattern, Tensor) for layer in recording.layers)
    return skip_positions if kept and skip_positions < len(recording.tokens) else 0


def is_lifted(model: ReplacementModel, recording: Recording) -> bool:
    """Whether the bottom attention layer carries all tokens, so that sweeps end above it."""
    tokens, bottom = recording.token_vectors, model.host.blocks[0]
    small = len(tokens) * tokens.nbytes <= LIFTED
    return bottom.plain and not (bottom.parallel or bottom.aside) and small


def embedded(recording: Recording, count: int) -> Float[Tensor, "positions carried d_model"]:
    """The bottom of the residual stream at the first `count` positions, by source."""
    tokens, learned = recording.token_vectors[:count], recording.position_vectors
    held = tokens.new_zeros(count, count + 1, tokens.shape[1])
    every = torch.arange(count, device=tokens.device)
    held[every, every] = tokens
    if learned is not None:
        held[:, -1] = learned[:count]
    return held


def carry(
    folded: FoldedLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    held: Float[Tensor, "start carried d_model"],
) -> Float[Tensor, "positions carried d_model"]:
    """What an attention layer writes everywhere of what is held at the first positions.

    Through every head's output map first and the patterns last, where few positions hold something.
    """
    keys, d_model, queries = len(held), held.shape[-1], pattern.shape[-1]
    values, pattern = (held @ folded.value).unflatten(-1, (len(pattern), -1)), pattern[:, :keys]
    heads = len(folded.output) // values.shape[-1]
    if keys * (d_model + queries * heads) < queries * d_model:
        by_head = _by_head(folded, values.flatten(0, 1)).unflatten(2, (keys, -1))
        return torch.einsum("vkgq,vgksd->qsd", pattern, by_head)
    mixed = torch.einsum("vkgq,ksvi->qsvgi", pattern, values)
    return mixed.flatten(2) @ folded.output


def carry_around(
    folded: FoldedLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    around: Around,
    held: Float[Tensor, "start carried d_model"],
) -> Float[Tensor, "positions carried d_model"]:
    """As `carry`, for a layer with taps or factors around its pattern."""
    values = held.new_zeros(held.shape[1], pattern.shape[-1], folded.value.shape[1])
    values[:, : len(held)] = (held @ folded.value).transpose(0, 1)
    by_head = around.values_on(values, 0).unflatten(-1, (len(pattern), -1))
    mixed = torch.einsum("vkgq,skvi->sqvgi", pattern, by_head).flatten(2)
    return (around.outputs_at(mixed, 0) @ folded.output).transpose(0, 1)


def lift(
    folded: FoldedLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    recording: Recording,
) -> Float[Tensor, "positions carried d_model"]:
    """The residual stream above the bottom attention layer, by source, less the layer's biases."""
    lifted = embedded(recording, len(recording.tokens))
    lifted[:, :-1] += _through_heads(folded, pattern, recording.token_vectors)
    if recording.position_vectors is not None:
        lifted[:, -1] += _through_heads(folded, pattern, recording.position_vectors).sum(1)
    return lifted


def _through_heads(
    folded: FoldedLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    vectors: Float[Tensor, "keys d_model"],
) -> Float[Tensor, "queries keys d_model"]:
    """What queries get of one vector a key: through every head's maps first, patterns last."""
    values = (vectors @ folded.value).unflatten(-1, (len(pattern), -1))
    return torch.einsum("vkgq,vgkd->qkd", pattern, _by_head(folded, values))


def _by_head(
    folded: FoldedLayer, values: Float[Tensor, "vectors kv_heads d_head"]
) -> Float[Tensor, "kv_heads group vectors d_model"]:
    """What every head's output map makes of values."""
    kv_heads, d_head = values.shape[1:]
    output = folded.output.view(-1, d_head, folded.output.shape[-1])
    shared = values.transpose(0, 1).repeat_interleave(len(output) // kv_heads, dim=0)
    return torch.bmm(shared, output).unflatten(0, (kv_heads, -1))
