"""Value and output maps of attention modules, however the family stores them."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.hosts.weights import linear_map


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
    like: Float[Tensor, " d_model"],
    pick: Callable[[Tensor], Tensor] = lambda out: out,
) -> Projections:
    """Cut the value and output maps into heads.

    Args:
        value: the linear module whose output holds the values.
        output: the linear module that mixes the heads.
        heads: query heads.
        kv_heads: value heads.
        like: any vector of the residual stream: its width, device and dtype.
        pick: from the last dimension of `value`'s output the values, head by head; for families
            that make query, key and value with one matrix.
    """
    matrix, bias = linear_map(value, len(like), like)
    by_head = pick(matrix).unflatten(-1, (kv_heads, -1))
    mixing, output_bias = linear_map(output, heads * by_head.shape[-1], like)
    return Projections(
        value=by_head.permute(1, 2, 0).contiguous(),
        value_bias=None if bias is None else pick(bias).reshape(kv_heads, -1),
        output=mixing.unflatten(0, (heads, -1)),
        output_bias=output_bias,
        values=lambda hidden: pick(value(hidden)),
        project=output,
    )


def by_group(kv_heads: int, heads: int) -> Callable[[Tensor], Tensor]:
    """Picks the values where one matrix makes a group's queries, its key, its value, and so on."""

    def pick(out: Tensor) -> Tensor:
        return out.unflatten(-1, (kv_heads, heads // kv_heads + 2, -1))[..., -1, :].flatten(-2)

    return pick


def last(width: int) -> Callable[[Tensor], Tensor]:
    """Picks the last entries: one matrix makes all queries, all keys, all values."""
    return lambda out: out[..., -width:]


def unembedding(
    head: nn.Module, like: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "vocabulary d_model"], Float[Tensor, " vocabulary"] | None]:
    """Matrix and bias of the module that makes the logits."""
    matrix, bias = linear_map(head, len(like), like)
    return matrix.T, bias
