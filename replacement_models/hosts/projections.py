"""Value and output maps of attention modules, however the family stores them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.hosts.weights import read


@dataclass(frozen=True, eq=False)
class Projections:
    """The fields of a `Block` that an attention module's two maps fill."""

    value: Float[Tensor, "kv_heads d_head d_model"]
    value_bias: Float[Tensor, "kv_heads d_head"] | None
    output: Float[Tensor, "heads d_head d_model"]
    output_bias: Float[Tensor, " d_model"] | None
    values: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


def projections(
    value: nn.Module,
    output: nn.Module,
    heads: int,
    kv_heads: int,
    pick: Callable[[Tensor], Tensor] = lambda out: out,
) -> Projections:
    """Cut the value and output maps into heads.

    Args:
        value: the linear module whose output holds the values.
        output: the linear module that mixes the heads.
        heads: query heads.
        kv_heads: value heads.
        pick: from the last dimension of `value`'s output the values, head by head; for families
            that make query, key and value with one matrix.
    """
    value_bias, output_bias = _bias(value), _bias(output)
    by_head = pick(_matrix(value)).unflatten(-1, (kv_heads, -1))
    return Projections(
        value=by_head.permute(1, 2, 0).contiguous(),
        value_bias=None if value_bias is None else pick(value_bias).reshape(kv_heads, -1),
        output=_matrix(output).unflatten(0, (heads, -1)),
        output_bias=output_bias,
        values=lambda hidden: pick(value(hidden)),
        project=output,
    )


def _matrix(module: Any) -> Float[Tensor, "inputs outputs"]:
    weight = read(module)
    transposed = type(module).__name__ == "Conv1D"  # of transformers, which GPT-2 is made of
    return weight if transposed else weight.T


def _bias(module: Any) -> Tensor | None:
    return None if getattr(module, "bias", None) is None else read(module, "bias")
