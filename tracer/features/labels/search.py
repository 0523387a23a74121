"""Candidates of a label: the clauses that best tell where a feature fires from where it does not.

Greedy and exact in its counts. A list of alternatives grows by the one that raises F most, among
those that are right at least half of the time where they add anything: what a label names, its own
precision does not contradict. Two conditions are joined by taking first a list that covers most of
the firings and then, inside of it, the list that is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from tracer.features.labels.families import Family
from tracer.features.labels.names import Names
from tracer.features.labels.predicates import ALTERNATIVES, Clause, Condition, Kind

PRECISE = 0.6
"""Share of the tokens that an alternative adds at which the feature must fire; above a half, so
that what is chosen on one text stands on another."""
LEAST = 3
"""Firings that an alternative must add."""
WORTH = 0.01
"""F1 that every further alternative must add, and twice that every further condition."""
COVERS = 0.7
"""Share of firings that the first of two conditions must cover."""
WEIGHT = 3.0
"""How many times recall counts against precision in that first one (the beta of F-beta)."""
FIRST: tuple[Kind, ...] = ("on", "says", "after")
SECOND: tuple[Kind, ...] = ("on", "says", "after", "near", "with", "repeated")


@dataclass(frozen=True, eq=False)
class Found:
    """A clause with what it covers."""

    clause: Clause
    tokens: Int[np.ndarray, " covered"]
    """Counted tokens at which it holds, ascending."""
    hits: int
    """Those at which the feature fires."""

    @property
    def precision(self) -> float:
        """Share of its tokens at which the feature fires."""
        return self.hits / max(1, len(self.tokens))

    def f1(self, firing: int) -> float:
        """F1, of a feature that fires so often."""
        return 2 * self.hits / max(1, len(self.tokens) + firing)

    def cost(self, firing: int) -> float:
        """F1 that it must be better by than the shortest clause: a firing for all it names more."""
        more = self.clause.size - 1 + 2 * (len(self.clause.conditions) - 1)
        return (WORTH + 1 / max(1, firing)) * more


@dataclass(frozen=True, eq=False)
class Search:
    """Finds clauses on one text."""

    families: Mapping[Kind, Family]
    names: Names
    promoted: Mapping[int, Int[np.ndarray, "features tokens"]]
    """By layer, ids of the tokens that each feature promotes most."""

    @cached_property
    def named(self) -> Bool[np.ndarray, " alternatives"]:
        """Which alternatives a label may name: classes, and words that stand in the text.

        What the model says there and nobody wrote is not named: a label owes nothing to words that
        it was not chosen on.
        """
        return self.names.is_class | (self.families["on"].totals > 0)

    def clauses(
        self,
        firing: Int[np.ndarray, " firing"],
        within: np.ndarray | None = None,
        most: int = ALTERNATIVES,
    ) -> list[Found]:
        """The best clause of every form.

        Args:
            firing: counted tokens at which the feature fires, ascending.
            within: counted tokens to look at; None is all.
            most: alternatives of a list.
        """
        every = len(firing)
        single = (self.grow(kind, firing, within, every, most=most) for kind in SECOND)
        found = [one for one in single if one is not None]
        for first in FIRST:
            whole = self.grow(first, firing, within, every, most=most, beta=WEIGHT, floor=0.0)
            if whole is not None and whole.hits >= COVERS * every:
                inside = np.intersect1d(firing, whole.tokens, assume_unique=True)
                kinds = (kind for kind in SECOND if kind != first)
                more = (self.grow(kind, inside, whole.tokens, every, most=most) for kind in kinds)
                found += [_both(whole, one) for one in more if one is not None]
        return found

    def promotes(
        self, layer: int, feature: int, firing: Int[np.ndarray, " firing"]
    ) -> Found | None:
        """The tokens that its decoder promotes most, as far as the model says them there."""
        wanted = self.names.members[self.promoted[layer][feature]].indices
        allowed = np.zeros(len(self.names.alternatives), dtype=bool)
        allowed[wanted[~self.names.is_class[wanted]]] = True
        found = self.grow("says", firing, None, len(firing), allowed=allowed)
        if found is None:
            return None
        [said] = found.clause.conditions
        return Found(Clause((Condition("promotes", said.alternatives),)), found.tokens, found.hits)

    def grow(  # noqa: PLR0913  what is looked for, where, and how it is judged
        self,
        kind: Kind,
        firing: Int[np.ndarray, " firing"],
        within: np.ndarray | None,
        every: int,
        *,
        most: int = ALTERNATIVES,
        beta: float = 1.0,
        floor: float = PRECISE,
        allowed: np.ndarray | None = None,
    ) -> Found | None:
        """The list of alternatives of one kind with the largest F.

        Args:
            kind: of condition.
            firing: counted tokens to be found, ascending.
            within: counted tokens to look at; None is all.
            every: firings in all, of which `firing` may be a part.
            most: alternatives.
            beta: weight of recall.
            floor: precision that each alternative must have where it adds anything.
            allowed: which alternatives may be taken; None is all.
        """
        family = self.families[kind]
        known = np.ones(1, dtype=bool) if kind == "repeated" else self.named
        left = _Left.of(family, firing, within, known if allowed is None else known & allowed)
        chosen: list[int] = []
        best = 0.0
        while len(chosen) < most:
            score = left.scores(every, beta, floor)
            at = int(score.argmax())
            if score[at] < best + (WORTH if chosen else 1e-9):
                break
            best = float(score[at])
            chosen.append(at)
            left.take(at)
        if not chosen:
            return None
        named = tuple(self.names.alternatives[at] for at in chosen)
        condition = Condition(kind, () if kind == "repeated" else named)
        return Found(Clause((condition,)), np.flatnonzero(left.covered), left.right)


@dataclass(eq=False)
class _Left:
    """What a list of alternatives has taken so far, and what each further one would add."""

    family: Family
    hits: Int[np.ndarray, " alternatives"]
    totals: Int[np.ndarray, " alternatives"]
    free: np.ndarray
    inside: np.ndarray
    wanted: np.ndarray
    covered: np.ndarray
    right: int = 0
    held: int = 0

    @classmethod
    def of(
        cls,
        family: Family,
        firing: Int[np.ndarray, " firing"],
        within: np.ndarray | None,
        allowed: Bool[np.ndarray, " alternatives"],
    ) -> "_Left":
        hits = family.counts(firing)
        totals = family.totals.copy() if within is None else family.counts(within)
        free = allowed & (totals > 0)
        inside, wanted = _mask(family, within), _mask(family, firing)
        return cls(family, hits, totals, free, inside, wanted, np.zeros(len(inside), dtype=bool))

    def scores(self, every: int, beta: float, floor: float) -> np.ndarray:
        """F with each alternative added; below 0 where it may not be."""
        fit = self.free & (self.hits >= LEAST) & (self.hits >= floor * self.totals)
        square = beta * beta
        reached = self.held + self.totals
        score = (1 + square) * (self.right + self.hits) / (square * every + reached)
        return np.where(fit, score, -1.0)

    def take(self, at: int) -> None:
        """Add an alternative."""
        self.right += int(self.hits[at])
        self.held += int(self.totals[at])
        there = self.family.tokens(at)
        new = there[self.inside[there] & ~self.covered[there]]
        self.covered[new] = True
        self.totals = self.totals - self.family.counts(new)
        self.hits = self.hits - self.family.counts(new[self.wanted[new]])
        self.free[at] = False


def _both(whole: Found, more: Found) -> Found:
    """Two conditions at once; what `more` covers was looked for inside of `whole`."""
    parts = (*whole.clause.conditions, *more.clause.conditions)
    order = ("on", "after", "near", "with", "repeated", "says", "promotes")
    ordered = tuple(sorted(parts, key=lambda one: order.index(one.kind)))
    return Found(Clause(ordered), more.tokens, more.hits)


def _mask(family: Family, tokens: np.ndarray | None) -> np.ndarray:
    found = np.full(family.by_token.shape[0], tokens is None)
    if tokens is not None:
        found[tokens] = True
    return found
