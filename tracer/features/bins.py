"""A feature's histogram, read from a store: where its bins end, and what lies below an activation.

`store.json` describes the bins of sizes; where activations may be negative, theirs stand behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Histogram:
    """Tokens at which a feature is active, by activation, from the lowest bin to the highest."""

    bounds: Float[np.ndarray, " bins_and_one"]
    counts: Int[np.ndarray, " bins"]

    @classmethod
    def of(cls, counts: Sequence[int], bins: Mapping[str, int]) -> "Histogram":
        """From a row of the store and its description of bins."""
        parts = bins["parts"]
        steps = np.arange(bins["octaves"] * parts + 1)
        sizes = 2.0 ** (bins["lowest_power"] + steps // parts) * (1 + (steps % parts) / parts)
        held = np.asarray(counts, dtype=np.int64)
        positive, negative = held[: len(steps) - 1], held[len(steps) - 1 :]
        if not len(negative):
            return cls(sizes, positive)
        return cls(
            np.concatenate([-sizes[::-1], sizes]), np.concatenate([negative[::-1], [0], positive])
        )

    def held(self) -> "Histogram":
        """The same from the first bin that holds a token to the last; there must be one."""
        there = np.flatnonzero(self.counts)
        first, last = int(there[0]), int(there[-1]) + 1
        return Histogram(self.bounds[first : last + 1], self.counts[first:last])

    def quantiles(self, shares: Float[np.ndarray, " shares"]) -> Float[np.ndarray, " shares"]:
        """Activations below which these shares of its tokens lie; inside a bin evenly spread."""
        held = self.held()
        below = np.concatenate([[0], held.counts.cumsum()]) / held.counts.sum()
        return np.interp(shares, below, held.bounds)

    def even(self, low: float, high: float, bins: int) -> Float[np.ndarray, " bins"]:
        """Tokens in bins of one width between two activations; inside a bin evenly spread."""
        held = self.held()
        below = np.concatenate([[0], held.counts.cumsum()])
        bounds = held.bounds.copy()
        bounds[0], bounds[-1] = max(bounds[0], low), min(bounds[-1], high)
        return np.diff(np.interp(np.linspace(low, high, bins + 1), bounds, below))
