"""What a label claims, as values that can be tested on text: where a feature is said to fire.

A predicate is a disjunction of clauses, a clause a conjunction of conditions, a condition a short
list of alternatives: tokens, or classes of tokens with a name (`a city in Texas`). Every condition
says of each token of a text whether it holds there, and reads as words:

    on “is”; after “hot”; near “capital” (among the last few tokens); with “opposite” (anywhere
    before); says “cold” (the model's likeliest next token); promotes “cold” (the same, for tokens
    taken from the feature's decoder); repeated (the token stood before).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from graphs import words
from tracer.errors import TraceError

ALTERNATIVES = 5
"""A predicate names at most so many in all its conditions of one kind."""
NEAR = 4
"""Tokens before this one that count as near."""
Kind = Literal["on", "after", "near", "with", "says", "promotes", "repeated"]
KINDS: tuple[Kind, ...] = ("on", "after", "near", "with", "says", "promotes", "repeated")


@dataclass(frozen=True)
class Text:
    """Tokens of a text in rows, and what the model says after each."""

    tokens: Int[np.ndarray, "rows positions"]
    """Ids, negative where there is none."""
    says: Int[np.ndarray, "rows positions"]
    """The model's likeliest next token, negative where it was not asked."""
    counts: Bool[np.ndarray, "rows positions"]
    """Tokens at which features and predicates are compared."""

    def before(self, back: int) -> Int[np.ndarray, "rows positions"]:
        """The token so many positions earlier in the row, negative where there is none."""
        found = np.full_like(self.tokens, -1)
        found[:, back:] = self.tokens[:, : self.tokens.shape[1] - back]
        return found

    @property
    def longest(self) -> int:
        """Positions of the longest row that counts."""
        return int(np.flatnonzero(self.counts.any(0)).max(initial=-1)) + 1


@dataclass(frozen=True)
class Alternative:
    """A token, or a class of tokens with a name."""

    name: str
    """Of a token its text, of a class what people call it."""
    ids: tuple[int, ...]
    is_class: bool = False

    def __str__(self) -> str:
        return self.name if self.is_class else f"“{words.token(self.name)}”"


@dataclass(frozen=True)
class Condition:
    """One kind of test with its alternatives."""

    kind: Kind
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TraceError(f"condition {self.kind!r} is unknown, expected one of {KINDS}")
        if (self.kind == "repeated") == bool(self.alternatives):
            raise TraceError(f"condition {self.kind!r}: wrong number of alternatives")

    def holds(self, text: Text) -> Bool[np.ndarray, "rows positions"]:
        """Where the condition is met."""
        ids = np.unique([token for one in self.alternatives for token in one.ids])
        if self.kind == "on":
            return _among(text.tokens, ids)
        if self.kind in ("says", "promotes"):
            return _among(text.says, ids)
        if self.kind == "after":
            return _among(text.before(1), ids)
        if self.kind == "repeated":
            return repeated(text)
        reach = NEAR if self.kind == "near" else text.tokens.shape[1] - 1
        return _earlier(_among(text.tokens, ids), reach)

    def __str__(self) -> str:
        if not self.alternatives:
            return self.kind
        return f"{self.kind} {joined([str(one) for one in self.alternatives])}"


@dataclass(frozen=True)
class Clause:
    """All of its conditions at once."""

    conditions: tuple[Condition, ...]

    def holds(self, text: Text) -> Bool[np.ndarray, "rows positions"]:
        """Where all of them are met."""
        found = np.ones(text.tokens.shape, dtype=bool)
        for condition in self.conditions:
            found &= condition.holds(text)
        return found

    def __str__(self) -> str:
        return ", ".join(map(str, self.conditions))

    def only(self, at: int, alternative: Alternative) -> "Clause":
        """The same with a single alternative in one of its conditions."""
        kept = Condition(self.conditions[at].kind, (alternative,))
        return Clause((*self.conditions[:at], kept, *self.conditions[at + 1 :]))

    @property
    def size(self) -> int:
        """Alternatives of the longest list."""
        return max((len(one.alternatives) for one in self.conditions), default=1) or 1


@dataclass(frozen=True)
class Predicate:
    """Any of its clauses."""

    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if not self.clauses:
            raise TraceError("a predicate needs at least one clause")
        if self.size > ALTERNATIVES:
            raise TraceError(f"a predicate has {self.size} alternatives, at most {ALTERNATIVES}")

    def holds(self, text: Text) -> Bool[np.ndarray, "rows positions"]:
        """Where any of them is met."""
        return np.any([clause.holds(text) for clause in self.clauses], axis=0)

    def __str__(self) -> str:
        return "; or ".join(map(str, self.clauses))

    @property
    def size(self) -> int:
        """Alternatives of all clauses together."""
        return sum(clause.size for clause in self.clauses)

    @property
    def plain_list(self) -> bool:
        """Whether it is nothing but a list of tokens, or classes of tokens, that it fires on."""
        return all(one.kind == "on" for clause in self.clauses for one in clause.conditions)

    def narrowed(self) -> list[Clause]:
        """A clause for each alternative of each condition, all else equal."""
        return [
            clause.only(at, one)
            for clause in self.clauses
            for at, condition in enumerate(clause.conditions)
            for one in condition.alternatives
        ]

    def as_json(self) -> list[Any]:
        """Lists and texts that JSON holds; `from_json` reads them."""
        return [
            [
                {
                    "kind": condition.kind,
                    "any": [
                        {"name": one.name, "class": one.is_class}
                        | ({} if one.is_class else {"tokens": list(one.ids)})
                        for one in condition.alternatives
                    ],
                }
                for condition in clause.conditions
            ]
            for clause in self.clauses
        ]

    @classmethod
    def from_json(cls, value: Sequence[Any], classes: Mapping[str, Sequence[int]]) -> "Predicate":
        """Read what `as_json` wrote.

        Args:
            value: clauses.
            classes: ids of every class by name.

        Raises:
            TraceError: a class is not known.
        """

        def alternative(found: Mapping[str, Any]) -> Alternative:
            if not found["class"]:
                return Alternative(found["name"], tuple(found["tokens"]))
            if found["name"] not in classes:
                raise TraceError(f"a label names the class {found['name']!r}, which is not given")
            return Alternative(found["name"], tuple(classes[found["name"]]), True)

        return cls(
            tuple(
                Clause(
                    tuple(
                        Condition(one["kind"], tuple(map(alternative, one["any"])))
                        for one in clause
                    )
                )
                for clause in value
            )
        )


def repeated(text: Text) -> Bool[np.ndarray, "rows positions"]:
    """Where the token stood earlier in its row."""
    found = np.zeros(text.tokens.shape, dtype=bool)
    for back in range(1, text.tokens.shape[1]):
        found |= text.before(back) == text.tokens
    return found & (text.tokens >= 0)


def joined(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _among(
    ids: Int[np.ndarray, "rows positions"], wanted: Int[np.ndarray, " some"]
) -> Bool[np.ndarray, "rows positions"]:
    return np.isin(ids, wanted)


def _earlier(
    there: Bool[np.ndarray, "rows positions"], reach: int
) -> Bool[np.ndarray, "rows positions"]:
    """Where any of so many positions before holds."""
    total = np.cumsum(there, axis=1)
    before = np.zeros_like(total)
    before[:, 1:] = total[:, :-1]
    left = np.zeros_like(total)
    if reach + 1 <= there.shape[1]:
        left[:, reach + 1 :] = total[:, : there.shape[1] - reach - 1]
    return before > left
