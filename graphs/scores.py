"""How much of the output a graph explains, and how much of it the graph leaves out.

Every row is divided by what it was *as the model computed it*,

    T[t] = Σ_s |A[t, s]|, over all tokens, errors and active features, nodes or not,

so that P[t, s] = |A[t, s]| / T[t] of the nodes adds up to 1 less what the row lost: what was
pruned away, lay below an edge floor, or comes from features beyond the cap. With the influence
b = (I - P)^-T w - w and the weights w of the targets

    lost[t]      = 1 - Σ_s P[t, s]
    error[t]     = Σ_{s an error} P[t, s]
    beyond[t]    = the part of lost[t] that the cap left out

    replacement  = Σ_{s a token} b[s] / Σ w
    completeness = Σ_t (b[t] + w[t]) (1 - error[t] - lost[t]) / Σ_t (b[t] + w[t])
    uncovered    = Σ_t (b[t] + w[t]) beyond[t] / Σ w
    leak         = 1 - Σ_{s a token or an error} b[s] / Σ w

t over all nodes: tokens and errors have no inputs and count as explained. What was lost counts
as error. Where no row lost anything, replacement divides by b over tokens and errors: what ends at
nodes without inputs is then no one's. Constants (biases, and the MLPs at skipped positions) are no
part of any row.

Source: Ameisen et al. 2025, "Circuit Tracing", section on evaluating graphs, where graphs hold
every active feature and T is the sum over the nodes. What a cap leaves out is counted here so that
a smaller graph cannot score higher for what it omits; `among_nodes` has the scores without it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from graphs.influence import shares

Roots = tuple[Bool[np.ndarray, " nodes"], Bool[np.ndarray, " nodes"]]
"""Which nodes are tokens, and which are errors."""

ROUNDING = 1e-9
"""Share of a row below which what it lost is rounding of sums."""


@dataclass(frozen=True, slots=True)
class ScorePair:
    """Shares in [0, 1]; NaN where the targets weigh nothing."""

    replacement: float
    """Of the output, the part that paths lead back to tokens rather than to errors."""

    completeness: float
    """Of the input of every node, weighted by its influence, the part that is not error."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares in [0, 1]; NaN where the targets weigh nothing."""

    replacement: float
    """Of the output, the part that paths lead back to tokens; what a row lost counts as error."""

    completeness: float
    """Of the input of every node, weighted by its influence, the part that is neither error nor
    lost."""

    leak: float
    """Of the output, the part whose paths end at neither token nor error: at nodes without inputs
    and at what rows lost."""

    uncovered: float
    """Of the output, the part whose paths end in features beyond the cap, which are no nodes; of a
    pruned graph, what it was before pruning."""

    among_nodes: ScorePair
    """The reference's figures, blind to what the cap left out: rows divided by the sum over the
    nodes traced. What pruning or an edge floor took counts as error here too."""


def as_computed(
    left: Float[np.ndarray, " nodes"],
    total: Float[np.ndarray, " nodes"],
    left_out: Float[np.ndarray, " nodes"],
) -> Float[np.ndarray, " nodes"]:
    """T: the absolute input of every node as the model computed it.

    Args:
        left: (nodes,) sum of |effect| over each row.
        total: (nodes,) the column `input_absolute`: the same as traced, with what an edge floor
            dropped, without what the cap left out.
        left_out: (nodes,) the column `left_out_absolute`: all that is missing from `left`.

    Returns:
        (nodes,) float64 in the units of the effects, at least `total`; `total` itself where the
        cap left nothing out of any row.

    Half of the second row was pruned away; of the third a cap left out as much as is there:

    >>> left, total, left_out = np.array([[0.0, 1, 2], [0, 2, 2], [0, 1, 2]])
    >>> as_computed(left, total, left_out).tolist()
    [0.0, 2.0, 4.0]
    """
    beyond = left + left_out - total
    beyond[beyond <= ROUNDING * total] = 0
    return total + beyond if beyond.any() else total


def score_pair(
    effect: sparse.csr_array,
    total: Float[np.ndarray, " nodes"],
    reached: Float[np.ndarray, " nodes"],
    weight: Float[np.ndarray, " nodes"],
    roots: Roots,
) -> ScorePair:
    """Replacement and completeness, with rows divided by `total`.

    Args:
        effect: (nodes, nodes) direct effects left.
        total: (nodes,) what each row is divided by; what is missing from it counts as error.
        reached: (nodes,) influence b over the shares `effect / total`.
        weight: (nodes,) w of the targets.
        roots: which nodes are tokens, and which are errors.

    Returns:
        Shares from 0 to 1, without units.
    """
    token, error = roots
    share = shares(effect, total)
    tokens, errors = float(reached[token].sum()), float(reached[error].sum())
    lost = np.where(total > 0, 1 - share @ np.ones(len(weight)), 0)
    whole = float(weight.sum()) if (lost > ROUNDING).any() else tokens + errors
    explained = 1 - share @ error.astype(np.float64) - lost
    through = reached + weight
    return ScorePair(
        replacement=_ratio(tokens, whole),
        completeness=_ratio(float(through @ explained), float(through.sum())),
    )


def leak(
    reached: Float[np.ndarray, " nodes"], weight: Float[np.ndarray, " nodes"], roots: Roots
) -> float:
    """The share of the targets' weights whose paths end at neither a token nor an error."""
    everything = float(weight.sum())
    tokens, errors = (float(reached[some].sum()) for some in roots)
    return max(0.0, _ratio(everything - tokens - errors, everything))


def uncovered(
    total: Float[np.ndarray, " nodes"],
    computed: Float[np.ndarray, " nodes"],
    reached: Float[np.ndarray, " nodes"],
    weight: Float[np.ndarray, " nodes"],
) -> float:
    """The share of the targets' weights whose paths end in features beyond the cap.

    Effects of such features below an edge floor count as dropped by the floor, not here.

    Args:
        total: (nodes,) absolute inputs as traced, without what the cap left out.
        computed: (nodes,) T, as `as_computed` gives it.
        reached: (nodes,) influence b over the shares of T.
        weight: (nodes,) w of the targets.

    Returns:
        From 0 to 1, without units.

    A target whose nodes hold a quarter of its input:

    >>> uncovered(np.array([0.0, 1]), np.array([0.0, 4]), np.array([0.125, 0]), np.array([0, 0.5]))
    0.75
    """
    beyond = (computed - total) / np.where(computed == 0, 1.0, computed)
    return _ratio(float((reached + weight) @ beyond), float(weight.sum()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
