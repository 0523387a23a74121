"""Weights folded once per model into the transposed linear maps that the engine sweeps with.

With norm denominators and attention patterns frozen, everything between two MLP outputs is linear.
Norm weights and centring go into the value, output, read and skip maps here; denominators go into
the pattern, once per prompt (tracer/attribution/local_model.py).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.host import Block, Norm
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One layer's transposed maps: gradients of the residual stream go in and come out."""

    output: Float[Tensor, "heads_d_head d_model"]
    """G @ output.T: back through W_O and the post-norm's weight."""
    value: Float[Tensor, "d_read kv_heads_d_head"]
    """K @ value.T: back through W_V and the pre-norm's weight and centring."""
    constant: Float[Tensor, "heads d_model"] | None
    """W_O · (W_V · (norm bias) + b_V): what each head writes that no source wrote, where its
    pattern adds up to one; before the post-norm. None is nothing."""
    skip: Float[Tensor, "d_model d_model"] | None
    """G @ skip.T: back through post-norm, linear skip and read-side norm."""


def fold(block: Block, transcoder: Transcoder, layer: int) -> FoldedLayer:
    """Fold one layer's weights."""
    value = read_back(block.value, block.attention_norm, ReadPoint.NORMED)
    output = written(block.output.flatten(0, 1), block.attention_post_norm)
    return FoldedLayer(
        output=output.contiguous(),
        value=value.flatten(0, 1).T.contiguous(),
        constant=_constant(block),
        skip=_skip(block, transcoder, layer),
    )


def written(vectors: Tensor, post_norm: Norm | None) -> Tensor:
    """Vectors as they reach the residual stream, up to the post-norm's denominator.

    They stay where they are, wherever the norm stands.
    """
    if post_norm is None:
        return vectors
    return post_norm.centre(vectors) * post_norm.weight.to(vectors.device)


def read_back(vectors: Tensor, norm: Norm | None, read: ReadPoint) -> Tensor:
    """Rows that read after a norm pulled back to the residual stream, up to its denominator."""
    if norm is None or read is ReadPoint.RESIDUAL:
        return vectors
    return norm.centre(vectors * norm.weight if read is ReadPoint.NORMED else vectors)


def mlp_post_norm(block: Block, write: WritePoint) -> Norm | None:
    """The post-norm that what is written to an MLP's output still passes, if any."""
    norm = block.mlp_post_norm
    return norm if norm is None or norm.fixed or write is WritePoint.MLP_OUTPUT else None


def _constant(block: Block) -> Float[Tensor, "heads d_model"] | None:
    bias = None if block.attention_norm is None else block.attention_norm.bias
    if bias is None and block.value_bias is None:
        return None
    values = block.value.new_zeros(block.value.shape[:2])
    if bias is not None:
        values = values + block.value @ bias
    if block.value_bias is not None:
        values = values + block.value_bias
    by_head = values.repeat_interleave(len(block.output) // len(values), dim=0)
    return torch.einsum("hi,hid->hd", by_head, block.output)


def _skip(block: Block, transcoder: Transcoder, layer: int) -> Tensor | None:
    weight = transcoder.skip(layer)
    if weight is None:
        return None
    onto_residual = written(weight, mlp_post_norm(block, transcoder.write_at(layer)))
    return read_back(onto_residual.T, block.mlp_norm, transcoder.read_at(layer)).T.contiguous()


def fold_all(blocks: list[Block], transcoder: Transcoder) -> tuple[FoldedLayer, ...]:
    """Fold every layer."""
    with torch.no_grad():
        return tuple(fold(block, transcoder, layer) for layer, block in enumerate(blocks))


def virtual_weights(
    folded: tuple[FoldedLayer, ...],
) -> tuple[Float[Tensor, "heads_d_head kv_heads_d_head"] | None, ...]:
    """What each layer's heads write of what the next layer's read, a matrix a pair of layers.

    None for a pair on two devices, where gradients cross as they are, and where the upper layer
    reads more than the stream.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section
    "Virtual weights".
    """
    with torch.no_grad():
        return tuple(
            below.output @ above.value if _next_to(below, above) else None
            for below, above in pairwise(folded)
        )


def _next_to(below: FoldedLayer, above: FoldedLayer) -> bool:
    """Whether one layer's output map and the next one's value map multiply."""
    fits = below.output.shape[1] == len(above.value)
    return fits and below.output.device == above.value.device
