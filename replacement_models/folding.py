"""Weights folded once per model into the transposed linear maps that the engine sweeps with.

With norm denominators and attention patterns frozen, everything between two MLP outputs is linear.
Norm weights and centring go into the value, output, read and skip maps here; denominators go into
the pattern, once per prompt (tracer/linear.py).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.host import Block, Norm
from replacement_models.transcoder import ReadPoint, Transcoder, WritePoint


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One layer's transposed maps: gradients of the residual stream go in and come out."""

    output: Float[Tensor, "heads_d_head d_model"]
    """G @ output.T: back through W_O and the post-norm's weight."""
    value: Float[Tensor, "d_model kv_heads_d_head"]
    """K @ value.T: back through W_V and the pre-norm's weight and centring."""
    value_constant: Float[Tensor, "kv_heads d_head"]
    """W_V · (norm bias) + b_V: every value vector's part that no source wrote."""
    skip: Float[Tensor, "d_model d_model"] | None
    """G @ skip.T: back through post-norm, linear skip and read-side norm."""


def fold(block: Block, transcoder: Transcoder, layer: int) -> FoldedLayer:
    """Fold one layer's weights."""
    kv_heads, d_head, d_model = block.value.shape
    norm = block.attention_norm
    value = read_back(block.value, norm, ReadPoint.NORMED)
    constant = block.value.new_zeros(kv_heads, d_head)
    if norm is not None and norm.bias is not None:
        constant = constant + block.value @ norm.bias
    if block.value_bias is not None:
        constant = constant + block.value_bias
    output = written(block.output.flatten(0, 1), block.attention_post_norm)
    return FoldedLayer(
        output=output.contiguous(),
        value=value.reshape(-1, d_model).T.contiguous(),
        value_constant=constant,
        skip=_skip(block, transcoder, layer),
    )


def written(vectors: Tensor, post_norm: Norm | None) -> Tensor:
    """Vectors as they reach the residual stream, up to the post-norm's denominator."""
    return vectors if post_norm is None else post_norm.centre(vectors) * post_norm.weight


def read_back(vectors: Tensor, norm: Norm | None, read: ReadPoint) -> Tensor:
    """Rows that read after a norm pulled back to the residual stream, up to its denominator."""
    if norm is None or read is ReadPoint.RESIDUAL:
        return vectors
    return norm.centre(vectors * norm.weight if read is ReadPoint.NORMED else vectors)


def mlp_post_norm(block: Block, transcoder: Transcoder) -> Norm | None:
    """The post-norm that a transcoder's writes still pass, if any."""
    return block.mlp_post_norm if transcoder.write is WritePoint.MLP_OUTPUT else None


def _skip(block: Block, transcoder: Transcoder, layer: int) -> Tensor | None:
    weight = transcoder.skip(layer)
    if weight is None:
        return None
    onto_residual = written(weight, mlp_post_norm(block, transcoder))
    return read_back(onto_residual.T, block.mlp_norm, transcoder.read).T.contiguous()


def fold_all(blocks: list[Block], transcoder: Transcoder) -> tuple[FoldedLayer, ...]:
    """Fold every layer."""
    with torch.no_grad():
        return tuple(fold(block, transcoder, layer) for layer, block in enumerate(blocks))


def virtual_weights(
    folded: tuple[FoldedLayer, ...],
) -> tuple[Float[Tensor, "heads_d_head kv_heads_d_head"], ...]:
    """What each layer's heads write of what the next layer's read, a matrix a pair of layers.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section
    "Virtual weights".
    """
    with torch.no_grad():
        return tuple(below.output @ above.value for below, above in pairwise(folded))
