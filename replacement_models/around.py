"""What stands around a layer's pattern and stays linear in its values, once it is held.

Beyond softmax attention a layer may scale its values elementwise (SiLU's slope, a norm in the
middle of the value map), let each take a little of those right before it (a short convolution), and
scale its heads' outputs elementwise (gates, gated norms). With these factors and the pattern held
at what one prompt made of them, the layer is affine in what it reads:

    o_t = W_O (outputs_t · (Σ_s A_ts v_s + b_mixed))
    v_s = values_s · (Σ_j taps_j (W_V x_(s-j) + b_V) + b_taps)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.one_line import one_line


@dataclass(frozen=True, eq=False)
class Taps:
    """A short causal convolution of values along positions, each channel for itself."""

    weight: Float[Tensor, "kv_heads d_head taps"]
    """`weight[..., j]` is for what was read j positions before; nothing before the first."""
    bias: Float[Tensor, "kv_heads d_head"] | None = None

    __repr__ = one_line

    def __call__(
        self, values: Float[Tensor, "positions kv_heads d_head"]
    ) -> Float[Tensor, "positions kv_heads d_head"]:
        """The values that the pattern mixes, up to factors."""
        out = values * self.weight[..., 0]
        for lag in range(1, min(self.weight.shape[-1], len(values))):
            out[lag:] += values[:-lag] * self.weight[..., lag]
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class Factors:
    """What one prompt makes of the elementwise factors around a layer's pattern; None is ones.

    Either broadcasts to the shape given.
    """

    values: Float[Tensor, "positions kv_heads d_head"] | None = None
    """Of values, after the value map and the taps."""
    outputs: Float[Tensor, "positions heads d_head"] | None = None
    """Of heads' outputs, before the output map."""

    __repr__ = one_line

    def of_values(self, values: Tensor) -> Tensor:
        """Values as the pattern mixes them."""
        return values if self.values is None else values * self.values

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """Heads' outputs as the output map reads them."""
        return outputs if self.outputs is None else outputs * self.outputs


PLAIN = Factors()
"""Of softmax attention without gates."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module or kernel during a forward pass."""

    inputs: tuple[Any, ...]
    """Positional and keyword ones, in one tuple."""
    output: Any


@dataclass(frozen=True, eq=False)
class Kernel:
    """The function that mixes a linear layer's values along positions.

    It is linear in its values, so of values that are the identity it makes the pattern.
    """

    name: str
    """In the module that the layer's class stands in."""
    values: str
    """The parameter that takes values, (batch, positions, heads, width)."""
    channels: bool = False
    """Whether values are (batch, channels, positions), and every channel is a head by itself."""
    without: str | None = None
    """A parameter that is left out when the pattern is made: a gate, a bias."""

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class Watch:
    """What a forward pass is watched for, and what is read off it."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules whose last call is handed to `factors`, under these names."""
    factors: Callable[[Mapping[str, Call]], Factors] = lambda calls: PLAIN
    """From those calls, in which the batch holds one prompt, what is held around the pattern."""
    kernel: Kernel | None = None
    """What makes the pattern; None where the attention module returns it."""
    mixer: nn.Module | None = None
    """Calls the kernel before attention is called, whose pattern is the first heads' (Falcon-H1);
    None where attention is what calls it."""

    __repr__ = one_line
