"""What linear-attention and state-space layers share: short convolutions, gated norms, gates."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Call, Taps
from replacement_models.errors import ModelError
from replacement_models.hosts.weights import read


def short_convolution(convolution: nn.Conv1d, channels: slice, heads: int) -> Taps:
    """The channels of a causal depthwise convolution that values pass, by head."""
    weight = read(convolution)[channels, 0].flip(-1)
    bias = None if convolution.bias is None else read(convolution, "bias")[channels]
    return Taps(
        weight=weight.unflatten(0, (heads, -1)),
        bias=None if bias is None else bias.unflatten(0, (heads, -1)),
    )


def silu_slope(
    values: Float[Tensor, "positions kv_heads_d_head"], taps: Taps
) -> Float[Tensor, "positions kv_heads d_head"]:
    """SiLU's factor on what the convolution makes of values: SiLU(z) / z."""
    return torch.sigmoid(taps(values.unflatten(-1, taps.weight.shape[:2])))


def gated_norm(
    call: Call, heads: int, eps: float, function: Callable[[Tensor], Tensor]
) -> Float[Tensor, "positions heads d_head"]:
    """What a norm of every head by itself, gated after it, multiplies its input with."""
    hidden, gate = call.inputs[:2]
    scale = (hidden.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (scale * function(gate)).reshape(-1, heads, hidden.shape[-1])


def group_gated_norm(
    call: Call, norm: Any, group: int, heads: int
) -> Float[Tensor, "positions heads d_head"]:
    """What a gated norm over groups of channels multiplies its input with.

    Args:
        call: of the norm, on what the heads write (1, positions, width) and the gate.
        norm: gates what it reads, or what it wrote where it has `norm_before_gate`.
        group: channels in a group.
        heads: heads in the width.
    """
    hidden, gate = (part[0] for part in call.inputs[:2])
    factor = nn.functional.silu(gate)
    read_by_norm = hidden if getattr(norm, "norm_before_gate", False) else hidden * factor
    square = read_by_norm.unflatten(-1, (-1, group)).square().mean(-1, keepdim=True)
    scale = (square + norm.variance_epsilon).rsqrt().expand(*square.shape[:-1], group).flatten(1)
    whole = (factor * scale * read(norm)).to(gate.dtype)  # the kernel's output may be float32
    return whole.unflatten(-1, (heads, -1))


def check_silu(*activations: Any) -> None:
    """Refuse an activation whose slope is not known.

    Raises:
        ModelError: one is not SiLU.
    """
    wrong = [name for name in activations if name not in ("silu", "swish")]
    if wrong:
        raise ModelError(
            f"activation {wrong[0]!r} of a linear-attention layer is not supported, expected 'silu'"
        )
