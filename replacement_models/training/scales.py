"""Normalised units: means off, norms of √D, and what each token weighs.

Tokens with massive outputs, separators of packed rows foremost, would own the squared error: on
layer 11 of SmolLM2-135M plain error left 2.15 of the variance of 99 % of the tokens, weighted error
.07. A token weighs min(1, c · median |y|² / |y|²). Scales are folded into the weights at export.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scale:
    """Of one place: mean (D), root mean square deviation of an entry, median square norm."""

    mean: Float[Tensor, " d_model"]
    deviation: Float[Tensor, ""]
    median: Float[Tensor, ""]

    @classmethod
    def of(cls, data: Float[Tensor, "tokens d_model"], outliers: float) -> "Scale":
        """Measure it, in float64, tokens weighted.

        Args:
            data: activations.
            outliers: `loss.outliers`.
        """
        exact = data.double()
        squares = exact.square().sum(1)
        median = squares.median()
        if median == 0:  # an MLP that writes nothing at most tokens
            there = squares[squares > 0]
            median = there.median() if len(there) else exact.new_ones(())
        weight = (outliers * median / squares.clamp_min(1e-30)).clamp(max=1)[:, None]
        mean = (weight * exact).sum(0) / weight.sum()
        spread = (weight * (exact - mean).square()).sum() / (weight.sum() * data.shape[1])
        deviation = spread.sqrt().clamp_min(1e-12)
        return cls(*(part.to(data.dtype) for part in (mean, deviation, median)))

    def normalised(self, data: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens d_model"]:
        """In normalised units."""
        return (data - self.mean) / self.deviation

    def weight(
        self, data: Float[Tensor, "tokens d_model"], outliers: float
    ) -> Float[Tensor, " tokens"]:
        """What each token weighs, 1 but for outliers, from raw activations."""
        squares = data.square().sum(1)
        return (outliers * self.median / squares.clamp_min(1e-30)).clamp(max=1)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for checkpoints."""
        return {"mean": self.mean, "deviation": self.deviation, "median": self.median}
