"""How much of the output the graph explains."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from graphs.influence import shares


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares in [0, 1]; NaN where the targets weigh nothing."""

    replacement: float
    """Of the output, the part that paths lead back to tokens rather than errors."""

    completeness: float
    """Of the input of every node, weighted by its influence, the part that is not error."""

    leak: float
    """Of the output, the part whose paths end at neither: at nodes without inputs and, in a
    pruned graph, at inputs pruned away."""


def scores(
    effect: sparse.csr_array,
    total: Float[np.ndarray, " nodes"],
    reached: Float[np.ndarray, " nodes"],
    weight: Float[np.ndarray, " nodes"],
    roots: tuple[Bool[np.ndarray, " nodes"], Bool[np.ndarray, " nodes"]],
    pruned: bool,
) -> Scores:
    """Replacement and completeness of a graph, pruned or not.

    Args:
        effect: (nodes, nodes) direct effects left.
        total: (nodes,) row sums of |effect| in the *unpruned* graph, so that what pruning took
            from a row counts as error.
        reached: (nodes,) influence b over the shares `effect / total`.
        weight: (nodes,) w of the targets.
        roots: which nodes are tokens, and which are errors.
        pruned: whether rows have lost inputs; then replacement divides by all of w.

    Returns:
        Shares from 0 to 1, without units.

    Source: Ameisen et al. 2025, "Circuit Tracing", section on evaluating graphs.
    """
    token, error = roots
    share = shares(effect, total)
    tokens, errors = float(reached[token].sum()), float(reached[error].sum())
    everything = float(weight.sum())

    lost = np.where(total > 0, 1 - share @ np.ones(len(weight)), 0)
    explained = 1 - share @ error.astype(np.float64) - lost
    through = reached + weight
    return Scores(
        replacement=_ratio(tokens, everything if pruned else tokens + errors),
        completeness=_ratio(float(through @ explained), float(through.sum())),
        leak=max(0.0, _ratio(everything - tokens - errors, everything)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
