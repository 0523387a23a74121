"""How often and how strongly features fire: sums and histograms over all counted tokens.

Bins are fixed, a quarter of an octave each, so that histograms of any two batches add up: bin
4k + m begins at 2^(LOWEST + k) (1 + m/4), read off an activation's exponent and its two highest
bits. Counts are whole numbers and sums are float64, so the order of batches is all that a sum
depends on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.dictionaries.activation import BatchTopK, JumpReLU, ReLU, ReLUTopK

LOWEST, OCTAVES, PARTS = -14, 30, 4
"""Bins begin at 2^LOWEST and end at 2^(LOWEST + OCTAVES); what lies beyond is in the outermost."""
BINS = OCTAVES * PARTS
EXPONENT_BIAS, MANTISSA_BITS = 127, 23
"""Of float32."""
FEW = 0.125
"""Share of activations that are not zero below which a processor looks at these only."""
CACHED, AT_ONCE = 1 << 17, 1 << 24
"""Activations counted together on a processor, whose caches then hold them, and elsewhere."""
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
"""Of a feature's activations where it is active; the first nine part the deciles."""


def edges() -> Float[np.ndarray, " edges"]:
    """Where the bins of an activation's size begin, and last where the last one ends."""
    steps = np.arange(BINS + 1)
    return 2.0 ** (LOWEST + steps // PARTS) * (1 + (steps % PARTS) / PARTS)


def bin_of(size: Float[Tensor, " some"]) -> Int[Tensor, " some"]:
    """The bin of each size, from 0 to BINS - 1."""
    first = (EXPONENT_BIAS + LOWEST) * PARTS
    return ((size.float().view(torch.int32) >> (MANTISSA_BITS - 2)) - first).clamp(0, BINS - 1)


def may_be_negative(model: ReplacementModel, layer: int) -> bool:
    """Whether a layer's activations may lie below zero, as neurons' and TopK's do."""
    weights = model.transcoder.layers[layer]
    kept = weights.activation
    if isinstance(kept, JumpReLU):
        return weights.gate is not None or bool((kept.threshold < 0).any())
    return weights.gate is not None or not isinstance(kept, ReLU | ReLUTopK | BatchTopK)


@dataclass(frozen=True, eq=False)
class Moments:
    """Running sums over one layer's counted tokens."""

    total: Float[Tensor, " features"]
    """Sum of activations, float64."""
    histogram: Int[Tensor, "features bins"]
    """Tokens by size of activation; where it may be negative, negative ones stand behind."""

    @classmethod
    def empty(cls, features: int, signed: bool, device: torch.device) -> "Moments":
        """Nothing seen yet."""
        total = torch.zeros(features, dtype=torch.float64, device=device)
        bins = BINS * (2 if signed else 1)
        return cls(total, torch.zeros(features, bins, dtype=torch.int64, device=device))

    def add(self, active: Float[Tensor, "tokens features"], window: int) -> None:
        """Count in a batch; of many activations sums in a window are of the model's precision."""
        bins = self.histogram.shape[1]
        at = _where(active) if active.is_cpu else None
        if at is not None and len(at) < FEW * active.numel():
            value, feature = active.flatten()[at], at % active.shape[1]
            places = feature * bins + bin_of_signed(value, bins)
            self.total.index_add_(0, feature, value.double())
            self.histogram.view(-1).index_add_(0, places, torch.ones_like(places))
        else:
            self.total.add_(active.unflatten(0, (-1, window)).sum(1).double().sum(0))
            self.histogram.add_(counts_of_many(active, bins))


def _where(active: Float[Tensor, "tokens features"]) -> Int[Tensor, " some"]:
    """Where they are not zero, counted row by row.

    A cast is several times faster than a comparison, and numpy at looking through truth values.
    """
    return torch.from_numpy(np.flatnonzero(active.bool().numpy()))


def bin_of_signed(value: Float[Tensor, " some"], bins: int) -> Int[Tensor, " some"]:
    """Of every activation its bin, those below zero behind the others where bins are signed."""
    return bin_of(value.abs()) + (BINS * (value < 0) if bins > BINS else 0)


def counts_of_many(
    active: Float[Tensor, "tokens features"], bins: int
) -> Int[Tensor, "features bins"]:
    """How many of each feature's activations lie in every bin.

    So many features at a time that what is made on the way is small.
    """
    within = CACHED if active.device.type == "cpu" else AT_ONCE
    found = []
    for part in active.split(max(1, within // len(active)), dim=1):
        x, width = part.contiguous(), part.shape[1]
        place = bin_of(x.abs())
        if bins > BINS:
            place.add_(x < 0, alpha=BINS)
        place += torch.arange(width, dtype=place.dtype, device=x.device) * bins
        place.masked_fill_(x == 0, width * bins)
        counted = torch.bincount(place.flatten(), minlength=width * bins + 1)[:-1]
        found.append(counted.view(width, bins))
    return torch.cat(found)


def quantiles(
    histogram: Int[np.ndarray, "features bins"], shares: tuple[float, ...] = QUANTILES
) -> Float[np.ndarray, "features shares"]:
    """Activations below which a share of a feature's active tokens lies, up to a bin's width.

    Inside a bin tokens count as evenly spread.

    Args:
        histogram: as `Moments.histogram`, negative bins behind or none.
        shares: between 0 and 1.

    Returns:
        One column a share; NaN for a feature that never fired.
    """
    bounds, counts = _ascending(histogram)
    below = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(1)], axis=1)
    total = below[:, -1:]
    found = np.full((len(counts), len(shares)), np.nan)
    fired = total[:, 0] > 0
    for column, share in enumerate(shares):
        wanted = share * total[fired]
        at = (below[fired, 1:] < wanted).sum(1)
        rows = np.flatnonzero(fired)
        inside = (wanted[:, 0] - below[rows, at]) / counts[rows, at]
        found[fired, column] = bounds[at] + inside * (bounds[at + 1] - bounds[at])
    return found


def _ascending(
    histogram: Int[np.ndarray, "features bins"],
) -> tuple[Float[np.ndarray, " edges"], Int[np.ndarray, "features all_bins"]]:
    """Edges and counts from the most negative bin to the largest."""
    sizes = edges()
    if histogram.shape[1] == BINS:
        return sizes, histogram
    positive, negative = histogram[:, :BINS], histogram[:, BINS:]
    gap = np.zeros((len(histogram), 1), dtype=histogram.dtype)
    return np.concatenate([-sizes[::-1], sizes]), np.hstack([negative[:, ::-1], gap, positive])
