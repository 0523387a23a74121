"""Features that part two labelled sets of texts, with what chance alone would find taken off.

A feature reads a text as its largest activation there, zero where all are negative, or as its mean.
AUROC is how often it reads a text of the first set higher than one of the second (ties count half);
its p-value is Mann and Whitney's, two-sided, by the normal approximation with ties, so with fewer
than about eight texts a set it is rough. Of thousands of features some always part two sets by
chance: q-values are Benjamini and Hochberg's (1995), over all features that fire on any text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.features.encoding import encode_rows
from tracer.features.rows import padded

READINGS = ("max", "mean")
AT_ONCE = 1 << 22
"""Readings compared together."""
Prompt = str | Sequence[int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Separating:
    """How one feature tells the first set from the second."""

    layer: int
    feature: int
    effect: float
    """Cohen's d: difference of the mean readings over their pooled deviation."""
    auroc: float
    """Above one half where it reads the first set higher."""
    p: float
    q: float
    """The share of false finds among features with a p-value as small."""
    mean: float
    """Reading of the first set."""
    mean_other: float


@one_call()
@torch.no_grad()
def separating(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    texts: Sequence[Prompt],
    others: Sequence[Prompt],
    *,
    reading: str = "max",
    limit: int = 20,
    skip_positions: int = 1,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[Separating]:
    """The features that differ most between two sets of texts.

    All readings are held: texts times features times 4 bytes.

    Args:
        model: the model.
        texts: of the first set, two or more; each a text or token ids taken as they stand.
        others: of the second.
        reading: of a text, "max" or "mean" over its tokens.
        limit: at most so many.
        skip_positions: first positions that do not count; nor do special tokens.
        batch: texts a forward pass.
        progress: called with texts run and in all.

    Returns:
        Features, those of the smallest p-value first and of equal ones those of the largest effect.

    Raises:
        TraceError: a set has fewer than two texts, or no such reading.
        ModelError: a text does not fit the model.
    """
    if reading not in READINGS:
        raise TraceError(f"reading is {reading!r}, expected one of {', '.join(READINGS)}")
    if min(len(texts), len(others)) < 2:
        raise TraceError(
            f"sets of {len(texts)} and {len(others)} texts cannot be compared; give two or more of "
            "each, or two prompts to tracer.differing"
        )
    prompts = [model.tokenize(one) for one in (*texts, *others)]
    found = _read(model, prompts, reading, skip_positions, batch, progress)
    first = np.arange(len(prompts)) < len(texts)
    parts = [_compared(layer, values, first) for layer, values in found.items()]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _best(columns, limit)


def _read(
    model: ReplacementModel,
    prompts: Sequence[Sequence[int]],
    reading: str,
    skip_positions: int,
    batch: int,
    progress: Progress | None,
) -> dict[int, Float[np.ndarray, "texts features"]]:
    """Readings by layer; texts of like lengths run together."""
    found = {
        layer: np.zeros((len(prompts), len(model.transcoder.layers[layer].W_enc)), np.float32)
        for layer in model.transcoder.present
    }
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        rows = padded([prompts[at] for at in some])
        for layer, one in _read_batch(model, rows, reading, skip_positions).items():
            found[layer][some] = one.float().cpu().numpy()
        if progress is not None:
            progress(start + len(some), len(order))
    return found


def _read_batch(
    model: ReplacementModel, rows: Int[Tensor, "texts positions"], reading: str, skip_positions: int
) -> dict[int, Float[Tensor, "texts features"]]:
    """The largest activation, zero among them, or the mean one; by layer."""
    found: dict[int, Tensor] = {}

    def see(layer: int, active: Float[Tensor, "tokens features"]) -> None:
        by_text = active.unflatten(0, tuple(rows.shape))
        found[layer] = by_text.amax(1) if reading == "max" else by_text.sum(1)

    counts = encode_rows(model, rows, skip_positions, see)
    if reading == "max":
        return found
    over = counts.sum(1, keepdim=True).clamp(min=1)
    return {layer: total / over for layer, total in found.items()}


def _compared(
    layer: int, values: Float[np.ndarray, "texts features"], first: Bool[np.ndarray, " texts"]
) -> tuple[np.ndarray, ...]:
    """Columns of `Separating` but q, of the features of one layer that fire on any text."""
    fires = np.flatnonzero((values != 0).any(0))
    step = max(1, AT_ONCE // len(values))
    parts = [
        _measured(values[:, some].astype(np.float64), first)
        for some in np.array_split(fires, max(1, -(-len(fires) // step)))
    ]
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return (np.full(len(fires), layer), fires, *columns)


def _measured(
    values: Float[np.ndarray, "texts some"], first: Bool[np.ndarray, " texts"]
) -> tuple[np.ndarray, ...]:
    ours, theirs = values[first], values[~first]
    same = np.ptp(values, axis=0) == 0
    with np.errstate(all="ignore"):  # of what does not vary there is nothing to compare
        test = stats.mannwhitneyu(ours, theirs, axis=0, method="asymptotic")
        auroc = np.where(same, 0.5, test.statistic / (len(ours) * len(theirs)))
        p = np.where(same, 1.0, test.pvalue)
        apart = ours.mean(0) - theirs.mean(0)
        squares = sum((len(one) - 1) * one.var(0, ddof=1) for one in (ours, theirs))
        effect = np.where(apart == 0, 0.0, apart / np.sqrt(squares / (len(values) - 2)))
    return effect, auroc, p, ours.mean(0), theirs.mean(0)


def _best(columns: Sequence[np.ndarray], limit: int) -> list[Separating]:
    layer, feature, effect, auroc, p, mean, other = columns
    if not len(layer):
        return []
    q = stats.false_discovery_control(p)
    order = np.lexsort((feature, layer, -np.abs(effect), p))[:limit]
    rows = (one[order].tolist() for one in (layer, feature, effect, auroc, p, q, mean, other))
    return [Separating(*row) for row in zip(*rows, strict=True)]
