"""Whether a model is really laid out as its host says, checked on what was recorded.

Variants of a supported family (multipliers, clipped values, a bidirectional mask, a release of
transformers that moved something) would otherwise give a graph of another model. They show in any
coordinate, so a sample is checked: this is done at every recording, and reads large weights.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from replacement_models.errors import ModelError
from replacement_models.folding import mlp_post_norm
from replacement_models.host import Block, Host, Norm
from replacement_models.recording import FrozenLayer, Recording, attention_input
from replacement_models.transcoder import Transcoder

PARTS = 8
"""One of so many parts of the residual stream is checked,"""
ENOUGH = 1024
"""and at most so many logits."""


@torch.no_grad()
def check_layout(host: Host, recording: Recording, transcoder: Transcoder) -> None:
    """Rebuild the last position layer by layer from the host's parts.

    Raises:
        ModelError: something in the model is not among them.
    """
    positions = recording.position_vectors
    bottom = recording.token_vectors if positions is None else recording.token_vectors + positions
    _check(host, "the embeddings", bottom[-1], recording.residuals[0][-1])
    for layer, (block, frozen) in enumerate(zip(host.blocks, recording.layers, strict=True)):
        pattern = frozen.pattern
        if not isinstance(pattern, Tensor):  # too large to keep: not made once more only for this
            continue
        if torch.count_nonzero(pattern.triu(1)):
            raise ModelError(f"{host.family} model: layer {layer} attends to later positions")
        x, output = recording.residuals[layer], recording.outputs[layer][-1]
        passed = mlp_post_norm(block, transcoder.write_at(layer))
        output = _normed(passed, output, frozen.mlp_post_scale)
        read = attention_input(host, recording, layer, transcoder.write_at(max(0, layer - 1)))
        attended = _attended(block, frozen, pattern[:, -1], read)
        some = slice(len(attended))
        rebuilt = attended if block.aside else x[-1, some] + attended + output[some]
        into = recording.between[layer] if block.aside else recording.residuals[layer + 1]
        _check(host, f"layer {layer}", rebuilt, into[-1, some])
    last = host.final_norm.frozen(recording.residuals[-1][-1], recording.final_scale[-1])
    spread = slice(None, None, -(-host.vocabulary // ENOUGH))
    bias = None if host.unembedding_bias is None else host.unembedding_bias[spread]
    logits = host.cap(nn.functional.linear(last, host.unembedding[spread], bias))
    _check(host, "the unembedding", logits, recording.logits[-1, spread])


def _attended(block: Block, frozen: FrozenLayer, pattern: Tensor, x: Tensor) -> Tensor:
    """What an attention layer adds at one position: mixed first, then read through every head.

    The first coordinates of it, where they do not depend on the others.
    """
    normed = _normed(block.attention_norm, x, frozen.attention_scale, last=False)
    heads = _heads_plain if block.plain else _heads_factored
    mixed = heads(block, frozen, pattern, normed)
    norm, bias = block.attention_post_norm, block.output_bias
    width = block.output.shape[-1]
    some = slice(None if norm is not None and norm.centred else -(-width // PARTS))
    out = block.output.flatten(0, 1)[:, some].T @ mixed.flatten()
    if bias is not None:
        out = out + bias[some]
    if norm is not None:
        bias = None if norm.bias is None else norm.bias[some]
        norm = replace(norm, weight=norm.weight[some], bias=bias)
    return _normed(norm, out, frozen.attention_post_scale)


def _heads_plain(block: Block, frozen: FrozenLayer, pattern: Tensor, normed: Tensor) -> Tensor:
    kv_heads, _, width = block.value.shape
    mixed = (pattern @ normed).view(kv_heads, -1, width)
    heads = torch.bmm(mixed, block.value.transpose(1, 2))
    if block.value_bias is not None:
        heads += pattern.sum(1).view(kv_heads, -1, 1) * block.value_bias[:, None]
    return heads


def _heads_factored(block: Block, frozen: FrozenLayer, pattern: Tensor, normed: Tensor) -> Tensor:
    """Every position's values are needed: each has taps and factors of its own."""
    values = torch.einsum("pd,vid->pvi", normed, block.value)
    if block.value_bias is not None:
        values += block.value_bias
    mixed = block.mix(block.passed_on(values, frozen.factors), pattern[:, None])
    outputs = frozen.factors.outputs
    return mixed if outputs is None else mixed * outputs[-1:]


def _normed(norm: Norm | None, x: Tensor, scale: Tensor | None, last: bool = True) -> Tensor:
    if norm is None or scale is None:
        return x
    return norm.frozen(x, scale[-1] if last else scale)


def _check(host: Host, where: str, rebuilt: Tensor, recorded: Tensor) -> None:
    recorded = recorded.to(rebuilt.device)
    error = float((rebuilt - recorded).abs().max() / recorded.abs().max())
    if error > max(8 * torch.finfo(rebuilt.dtype).eps, 3e-4):
        raise ModelError(
            f"{host.family} model: {where} computes something else than embeddings, attention, MLP "
            f"and norms explain (off by {error:.1%}); this variant is not supported"
        )
