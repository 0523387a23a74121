"""How true a label is: detection on a text that it was not chosen on.

A predicate is compared with where the feature fires, token by token. Precision is the share of its
tokens at which the feature fires, recall the share of the feature's that it finds, F1 their
harmonic mean. A label must beat two that take no thought: that the feature always fires, and the
list of the tokens on which it fires most.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from tracer.features.labels.families import Family
from tracer.features.labels.names import Names
from tracer.features.labels.predicates import (
    ALTERNATIVES,
    Clause,
    Condition,
    Kind,
    Predicate,
)

TRUE = 0.5
"""F1 below which a label is not shown, and precision below which an alternative is false."""
SEEN = 5
"""Tokens at which an alternative must hold before its precision speaks against it."""
Families = Mapping[Kind, Family]


@dataclass(frozen=True)
class Score:
    """Detection of a feature by a predicate; all shares."""

    precision: float
    recall: float
    f1: float
    fires: int
    """Tokens at which the feature fires."""
    holds: int
    """Tokens at which the predicate holds."""


def covered(predicate: Predicate, families: Families, names: Names) -> Int[np.ndarray, " tokens"]:
    """Counted tokens at which a predicate holds, ascending; `Predicate.holds` says the same."""
    return np.flatnonzero(
        np.any([_clause(clause, families, names) for clause in predicate.clauses], axis=0)
    )


def _clause(clause: Clause, families: Families, names: Names) -> np.ndarray:
    found = np.ones(families["on"].by_token.shape[0], dtype=bool)
    for condition in clause.conditions:
        found &= _condition(condition, families, names)
    return found


def _condition(condition: Condition, families: Families, names: Names) -> np.ndarray:
    family = families["says" if condition.kind == "promotes" else condition.kind]
    found = np.zeros(family.by_token.shape[0], dtype=bool)
    places = [names.place[one] for one in condition.alternatives] or [0]
    for place in places:
        found[family.tokens(place)] = True
    return found


def score(holds: Int[np.ndarray, " tokens"], firing: Int[np.ndarray, " firing"]) -> Score | None:
    """Detection; None where neither a label nor a feature does anything to be told apart."""
    if not len(firing):
        return None
    right = len(np.intersect1d(holds, firing, assume_unique=True))
    return Score(
        precision=right / len(holds) if len(holds) else 0.0,
        recall=right / len(firing),
        f1=2 * right / (len(holds) + len(firing)),
        fires=len(firing),
        holds=len(holds),
    )


def always(firing: int, tokens: int) -> float:
    """F1 of the claim that a feature always fires."""
    return 2 * firing / (tokens + firing) if firing else 0.0


def usual_tokens(
    firing: Int[np.ndarray, " firing"], families: Families, names: Names
) -> Predicate | None:
    """The tokens on which a feature fires most often, and no thought beside."""
    counts = np.where(names.exact, families["on"].counts(firing), 0)
    order = np.argsort(-counts, kind="stable")[:ALTERNATIVES]
    chosen = tuple(names.alternatives[at] for at in order.tolist() if counts[at])
    return Predicate((Clause((Condition("on", chosen),)),)) if chosen else None


def false(
    clause: Clause, firing: Int[np.ndarray, " firing"], families: Families, names: Names
) -> bool:
    """Whether a feature mostly does not fire where a clause holds, often enough to tell."""
    there = np.flatnonzero(_clause(clause, families, names))
    right = len(np.intersect1d(there, firing, assume_unique=True))
    return len(there) >= SEEN and right < TRUE * len(there)
