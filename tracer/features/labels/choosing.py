"""The label of one feature: chosen on one text, mended on a second, scored on a third."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int

from tracer.features.labels.families import families
from tracer.features.labels.kinds_of_context import SEVERAL, SHARE, Contexts, effective
from tracer.features.labels.names import Names
from tracer.features.labels.observed import Observed
from tracer.features.labels.predicates import ALTERNATIVES, Clause, Condition, Predicate
from tracer.features.labels.scoring import (
    TRUE,
    Families,
    Score,
    always,
    covered,
    false,
    score,
    usual_tokens,
)
from tracer.features.labels.search import Found, Search

LEVELS = (0.0, 0.25, 0.5)
"""Shares of a feature's maximum above which it is asked for a label."""
GOOD = 0.7
"""F1 on the text it is chosen on, from which a label of a lower level is preferred to others."""
ENOUGH = 3
"""Firings without which nothing is claimed of a feature."""
SECOND_CLAUSE = 0.05
"""F1 that a second clause must add."""
SHORT = 3
"""Alternatives of a first clause that leaves room for a second."""


@dataclass(frozen=True, eq=False)
class Side:
    """One text with what is counted of it."""

    observed: Observed
    names: Names

    @cached_property
    def families(self) -> Families:
        """Alternatives by token."""
        return families(self.observed, self.names)

    @cached_property
    def contexts(self) -> Contexts:
        """Contexts of its tokens."""
        return Contexts(self.families, self.names)

    def covered(self, predicate: Predicate) -> Int[np.ndarray, " tokens"]:
        """Where a predicate holds."""
        return covered(predicate, self.families, self.names)

    def score(
        self, predicate: Predicate | None, firing: Int[np.ndarray, " firing"]
    ) -> Score | None:
        """Detection of a feature by a predicate; None without one, or where nothing fires."""
        return None if predicate is None else score(self.covered(predicate), firing)


@dataclass(frozen=True)
class Label:
    """What is claimed of a feature, and how true it is. Shares from 0 to 1."""

    layer: int
    feature: int
    above: float
    """Activation above which the feature counts as firing; the label says nothing of less."""
    predicate: Predicate | None
    """None where no candidate beats the baselines on the text it was chosen on."""
    fires: int
    """Tokens of the text held out at which the feature fires."""
    chosen: Score | None
    """On the text that it was chosen on."""
    held_out: Score | None
    """On text that had no say in it; None where the feature does not fire there."""
    outside: Score | None
    """On text that is not of the corpus' kind; None where none was given or nothing fires there."""
    always: float
    """F1, on the text held out, of the claim that the feature always fires."""
    token_list: float
    """F1, on the text held out, of the list of the tokens it fires on most."""
    contradicted: tuple[str, ...]
    """Alternatives that the text held out contradicts: precision below a half."""
    mixed: float | None
    """Effective number of unrelated kinds of context; None where it hardly fires."""
    polysemantic: bool
    """Whether two unrelated kinds hold a fifth of its firings each, or there are many smaller."""

    @property
    def shown(self) -> bool:
        """Whether the label may stand for the feature."""
        return (
            self.predicate is not None
            and self.held_out is not None
            and self.held_out.f1 >= TRUE
            and not self.contradicted
            and self.beats
        )

    @property
    def beats(self) -> bool:
        """Whether it is better, on the text held out, than always and than the plain list.

        A label that is a plain list of tokens is the best such list: it need only equal the other.
        """
        if self.predicate is None or self.held_out is None:
            return False
        f1 = self.held_out.f1
        listed = f1 >= self.token_list if self.predicate.plain_list else f1 > self.token_list
        return f1 > self.always and listed


@dataclass(frozen=True, eq=False)
class Sides:
    """The texts: one to choose on, one to mend on, one held out, one from elsewhere."""

    pick: Side
    check: Side
    held_out: Side
    outside: Side | None = None
    promoted: Mapping[int, Int[np.ndarray, "features tokens"]] = field(default_factory=dict)
    """Ids of the tokens that each feature promotes most, by layer."""

    @cached_property
    def search(self) -> Search:
        """Finds clauses on the first text."""
        return Search(self.pick.families, self.pick.names, self.promoted)


def label(sides: Sides, layer: int, feature: int, maximum: float) -> Label:
    """Choose, mend and score the label of one feature.

    It is asked of the feature's weakest activations first; where no predicate is true of those, of
    what lies above a quarter, then above a half, of its maximum. The label says above which.

    Args:
        sides: the texts.
        layer: of the feature.
        feature: its number.
        maximum: the feature's largest activation, of which levels are shares.
    """
    tried = []
    for level in LEVELS:
        found = _candidate(sides, layer, feature, level * maximum)
        tried.append((level, *found))
        if found[1] is not None and found[1].f1 >= GOOD:
            break
    best = max(tried, key=lambda one: one[2].f1 if one[2] is not None else -1.0)
    level, predicate, _ = tried[-1] if tried[-1][2] and tried[-1][2].f1 >= GOOD else best
    return _scored(sides, layer, feature, level * maximum, predicate)


def _candidate(
    sides: Sides, layer: int, feature: int, above: float
) -> tuple[Predicate | None, Score | None]:
    """The mended predicate of one level, and its score on the text it was chosen on."""
    firing = sides.pick.observed.firing(layer, feature, above)
    if len(firing) < ENOUGH:
        return None, None
    usual = usual_tokens(firing, sides.pick.families, sides.pick.names)
    predicate = choose(sides, layer, feature, firing, usual)
    if predicate is not None:
        there = sides.check.observed.firing(layer, feature, above)
        predicate = mended(predicate, sides.check, there)
    return predicate, sides.pick.score(predicate, firing)


def _scored(
    sides: Sides, layer: int, feature: int, above: float, predicate: Predicate | None
) -> Label:
    pick, held_out, elsewhere = sides.pick, sides.held_out, sides.outside
    firing, apart = (side.observed.firing(layer, feature, above) for side in (pick, held_out))
    against = [
        one
        for one in (predicate.narrowed() if predicate else ())
        if false(one, apart, held_out.families, held_out.names)
    ]
    listed = held_out.score(usual_tokens(firing, pick.families, pick.names), apart)
    mixed, polysemantic = how_mixed(pick, predicate, firing)
    return Label(
        layer=layer,
        feature=feature,
        above=above,
        predicate=predicate,
        fires=len(apart),
        chosen=pick.score(predicate, firing),
        held_out=held_out.score(predicate, apart),
        outside=elsewhere.score(predicate, elsewhere.observed.firing(layer, feature, above))
        if elsewhere
        else None,
        always=always(len(apart), held_out.observed.tokens),
        token_list=listed.f1 if listed else 0.0,
        contradicted=tuple(str(one) for one in against),
        mixed=mixed,
        polysemantic=polysemantic,
    )


def choose(
    sides: Sides,
    layer: int,
    feature: int,
    firing: Int[np.ndarray, " firing"],
    usual: Predicate | None,
) -> Predicate | None:
    """The best predicate of one clause or two on the first text, if it beats the baselines."""
    search, every = sides.search, len(firing)
    found = search.clauses(firing)
    if len(sides.promoted):
        promotes = search.promotes(layer, feature, firing)
        found += [promotes] if promotes is not None else []
    if not found:
        return None
    best = max(found, key=lambda one: one.f1(every) - one.cost(every))
    predicate = Predicate(_with_second(search, found, best, firing))
    listed = sides.pick.score(usual, firing)
    least = max(always(every, sides.pick.observed.tokens), listed.f1 if listed else 0.0)
    found_here = sides.pick.score(predicate, firing)
    f1 = found_here.f1 if found_here else 0.0
    return predicate if f1 > least or (predicate.plain_list and f1 == least) else usual


def _with_second(
    search: Search, found: Sequence[Found], best: Found, firing: Int[np.ndarray, " firing"]
) -> tuple[Clause, ...]:
    """The best clause, or a short one and another where the two together are clearly better."""
    every = len(firing)
    short = [one for one in found if one.clause.size <= SHORT]
    firsts = {best.clause: best}
    if short:
        first = max(short, key=lambda one: one.f1(every) - one.cost(every))
        firsts.setdefault(first.clause, first)
    clauses: tuple[Clause, ...] = (best.clause,)
    top = best.f1(every) + SECOND_CLAUSE
    if top > 1:
        return clauses
    for one in firsts.values():
        for more in _beyond(search, one, firing):
            hits, holds = one.hits + more.hits, len(one.tokens) + len(more.tokens)
            both = 2 * hits / (holds + every) - more.cost(every)
            if both > top:
                top, clauses = both, (one.clause, more.clause)
    return clauses


def _beyond(search: Search, one: Found, firing: Int[np.ndarray, " firing"]) -> list[Found]:
    """Clauses for what a first one leaves, with the alternatives that it leaves."""
    room = ALTERNATIVES - one.clause.size
    rest = np.setdiff1d(firing, one.tokens, assume_unique=True)
    if room < 1 or len(rest) < ENOUGH:
        return []
    every = np.arange(search.families["on"].by_token.shape[0])
    return search.clauses(rest, np.setdiff1d(every, one.tokens, assume_unique=True), room)


def mended(
    predicate: Predicate, check: Side, firing: Int[np.ndarray, " firing"]
) -> Predicate | None:
    """The same without the alternatives that a second text contradicts; None if none is left."""
    found = [_mended(clause, check, firing) for clause in predicate.clauses]
    clauses = tuple(clause for clause in found if clause is not None)
    return Predicate(clauses) if clauses else None


def _mended(clause: Clause, check: Side, firing: Int[np.ndarray, " firing"]) -> Clause | None:
    kept = []
    for at, condition in enumerate(clause.conditions):
        left = tuple(
            one
            for one in condition.alternatives
            if not false(clause.only(at, one), firing, check.families, check.names)
        )
        if condition.alternatives and not left:
            return None
        kept.append(Condition(condition.kind, left))
    return Clause(tuple(kept))


def how_mixed(
    side: Side, predicate: Predicate | None, firing: Int[np.ndarray, " firing"]
) -> tuple[float | None, bool]:
    """Effective number of unrelated kinds of context, and whether two of them are large.

    Of a feature with a true predicate, kinds are those of its alternatives: one that fires on a
    single word is of one kind, whatever stands around the word. Of any other, kinds are those of
    its firings.
    """
    if len(firing) < ENOUGH:
        return None, False
    found = side.score(predicate, firing)
    if predicate is None or found is None or found.f1 < TRUE:
        shares = side.contexts.kinds(firing)
    else:
        shares = _of_alternatives(side, predicate, firing)
    large, mixed = int((shares >= SHARE).sum()), effective(shares)
    return mixed, large >= 2 or mixed >= SEVERAL


def _of_alternatives(
    side: Side, predicate: Predicate, firing: Int[np.ndarray, " firing"]
) -> np.ndarray:
    """Shares of the firings explained, by kind of the alternatives that explain them."""
    parts, rest = [], firing
    for one in predicate.narrowed() or predicate.clauses:
        there = np.intersect1d(rest, side.covered(Predicate((one,))), assume_unique=True)
        if len(there):
            parts.append(there)
            rest = np.setdiff1d(rest, there, assume_unique=True)
    if not parts:
        return np.ones(1)
    numbers = side.contexts.groups(parts)
    sizes = np.bincount(numbers, [len(one) for one in parts])[1:]
    return np.sort(sizes)[::-1] / len(firing)
