"""From the windows kept of each feature to the examples that a store shows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from tracer.features.running import LayerState
from tracer.features.settings import DECILES, Settings
from tracer.features.strongest import NONE, Kept, peaks_of, windows_of

TOP, BOTTOM, DECILE = "top", "bottom", "decile"
"""Kinds of examples: strongest, most negative, and one of a tenth of a feature's activations."""


@dataclass(frozen=True)
class Examples:
    """Examples of one layer's features, in the order of features, kinds and ranks."""

    kind: np.ndarray
    feature: Int[np.ndarray, " examples"]
    rank: Int[np.ndarray, " examples"]
    """Among examples of a kind from 0; of kind DECILE the decile, 0 the weakest."""
    window: Int[np.ndarray, " examples"]
    position: Int[np.ndarray, " examples"]
    """In the window: the token that the example is of."""
    activation: Float[np.ndarray, " examples"]
    """There; exact in float32, for deciles rounded as the row below."""
    activations: Float[np.ndarray, "examples window"]
    """Of all tokens of the window, rounded to bfloat16."""


def examples(state: LayerState, settings: Settings) -> Examples:
    """All examples of one layer."""
    parts = [_extreme(state.top, TOP)]
    if state.bottom is not None:
        parts.append(_extreme(state.bottom, BOTTOM))
    parts.append(_by_decile(state, settings))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[1], kind="stable")
    return Examples(*(column[order] for column in columns))


def _extreme(kept: Kept, kind: str) -> tuple[np.ndarray, ...]:
    """Every window of a ranking, strongest first."""
    kept = kept.ordered()
    keys, held = kept.keys, kept.activations
    feature, rank = (keys != NONE).numpy().nonzero()
    sign = -1 if kind == BOTTOM else 1
    return (
        np.full(len(feature), kind),
        feature,
        rank,
        windows_of(keys).numpy()[feature, rank],
        kept.positions.numpy()[feature, rank],
        sign * peaks_of(keys).numpy()[feature, rank],
        held[feature, rank].float().numpy(),
    )


def _by_decile(state: LayerState, settings: Settings) -> tuple[np.ndarray, ...]:
    """Windows drawn at random, each for one token of the decile that has fewest."""
    kept = state.drawn.ordered()
    keys, held = kept.keys, kept.activations
    found = list(_dealt(kept, state.quantiles(), settings.per_decile))
    decile, feature, place, position = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    order = np.lexsort((decile, feature))
    decile, feature, place, position = (x[order] for x in (decile, feature, place, position))
    return (
        np.full(len(feature), DECILE),
        feature,
        decile,
        windows_of(keys).numpy()[feature, place],
        position,
        held[feature, place, position].float().numpy(),
        held[feature, place].float().numpy(),
    )


def _dealt(
    kept: Kept, quantiles: Float[np.ndarray, "features shares"], rounds: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """(decile, feature, place among those drawn, position in the window) of what is shown.

    Each round every decile takes, for each feature, one more of its windows that is still free.
    """
    active = kept.activations.float().numpy()
    feature, place, position = active.nonzero()
    bounds = quantiles[:, : DECILES - 1]
    decile = (active[feature, place, position][:, None] > bounds[feature]).sum(1)
    free = np.ones(active.shape[:2], dtype=bool)
    for _ in range(rounds):
        for wanted in range(DECILES):
            fit = np.flatnonzero((decile == wanted) & free[feature, place])
            first = fit[np.unique(feature[fit], return_index=True)[1]]
            free[feature[first], place[first]] = False
            yield np.full(len(first), wanted), feature[first], place[first], position[first]
