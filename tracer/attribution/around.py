"""Taps and factors around a layer's pattern, as streams go up through them and gradients down.

The transpose of an elementwise factor is itself; that of a causal convolution reaches ahead.
Gradients and streams begin at some position and need nothing of those before: a gradient's value at
a position depends on later ones only, a stream that begins later holds nothing before.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement_models import FrozenLayer
from replacement_models.host import Block
from replacement_models.one_line import one_line


@dataclass(frozen=True, eq=False)
class Around:
    """What one layer's pattern has around it on one prompt, its norm's denominators included."""

    scale: Float[Tensor, "positions 1"] | None
    """One over the denominators of the norm in front, where taps or factors stand between them and
    the pattern; elsewhere the pattern holds them."""
    taps: Float[Tensor, "taps kv_heads_d_head"] | None
    values: Float[Tensor, "positions kv_heads_d_head"] | None
    outputs: Float[Tensor, "positions heads_d_head"] | None

    __repr__ = one_line

    @property
    def bare_values(self) -> bool:
        """Whether the pattern mixes values as the value map makes them."""
        return self.scale is None

    def outputs_at(
        self, heads: Float[Tensor, "*rows positions heads_d_head"], begin: int
    ) -> Float[Tensor, "*rows positions heads_d_head"]:
        """Heads' outputs on their way up, or gradients on theirs down."""
        if self.outputs is None:
            return heads
        return heads * self.outputs[begin : begin + heads.shape[-2]]

    def values_on(
        self, values: Float[Tensor, "*rows positions kv_heads_d_head"], begin: int
    ) -> Float[Tensor, "*rows positions kv_heads_d_head"]:
        """From the value map to the pattern."""
        if self.scale is None:
            return values
        span = slice(begin, begin + values.shape[-2])
        values = self._tapped(values * self.scale[span])
        return values if self.values is None else values * self.values[span]

    def values_back(
        self, mixed: Float[Tensor, "*rows positions kv_heads_d_head"], begin: int
    ) -> Float[Tensor, "*rows positions kv_heads_d_head"]:
        """From the pattern to the value map."""
        if self.scale is None:
            return mixed
        span = slice(begin, begin + mixed.shape[-2])
        mixed = mixed if self.values is None else mixed * self.values[span]
        return self._tapped(mixed.flip(-2)).flip(-2) * self.scale[span]

    def _tapped(self, values: Tensor) -> Tensor:
        if self.taps is None:
            return values
        out = values * self.taps[0]
        for lag in range(1, min(len(self.taps), values.shape[-2])):
            out[..., lag:, :] += values[..., :-lag, :] * self.taps[lag]
        return out


def around(block: Block, frozen: FrozenLayer) -> Around | None:
    """What stands around a layer's pattern; None for softmax attention without gates."""
    if block.plain:
        return None
    factors, positions = frozen.factors, len(frozen.attention_scale)

    def flat(factor: Tensor | None, like: Tensor) -> Tensor | None:
        whole = None if factor is None else factor.expand(positions, *like.shape[:2])
        return None if whole is None else whole.flatten(1)

    return Around(
        scale=None if bare_values(block, frozen) else 1 / frozen.attention_scale,
        taps=None if block.taps is None else block.taps.weight.flatten(0, 1).T.contiguous(),
        values=flat(factors.values, block.value),
        outputs=flat(factors.outputs, block.output),
    )


def constant_heads(block: Block, frozen: FrozenLayer) -> Float[Tensor, "positions heads d_head"]:
    """What every head's output is where the stream holds nothing: of biases alone."""
    positions = len(frozen.attention_scale)
    values = block.value.new_zeros(block.value.shape[:2])
    norm = block.attention_norm
    if norm is not None and norm.bias is not None:
        values = values + block.value @ norm.bias
    if block.value_bias is not None:
        values = values + block.value_bias
    every = values.expand(positions, *values.shape)
    mixed = block.mix(block.passed_on(every, frozen.factors), frozen.attention_pattern())
    return frozen.factors.of_outputs(mixed)


def bare_values(block: Block, frozen: FrozenLayer) -> bool:
    """Whether the pattern mixes values as the value map makes them."""
    return block.taps is None and frozen.factors.values is None
