"""What alternatives of a predicate may be called: words of the vocabulary, and classes of words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from replacement_models import ReplacementModel
from replacement_models.replaced import special_tokens
from tracer.errors import TraceError
from tracer.features.labels.predicates import Alternative

SPELLED = {
    "a number": re.compile(r"\d+"),
    "a mark": re.compile(r"[^\w\s]+"),
    "a line end": re.compile(r"\s*\n\s*"),
    "a capital letter": re.compile(r"[A-Z]"),
    "a capitalised word": re.compile(r"[A-Z][a-z]+"),
    "a word in capitals": re.compile(r"[A-Z]{2,}"),
    "a word in -ing": re.compile(r"[a-z]+ing"),
    "a word in -ed": re.compile(r"[a-z]+ed"),
    "a word in -ly": re.compile(r"[a-z]+ly"),
}
"""Classes that any vocabulary has, by how their words are spelled."""
START = "the start"
"""The class of special tokens: what stands in front of a row, and between documents."""


@dataclass(frozen=True, eq=False)
class Names:
    """Every alternative that a predicate over one vocabulary may name."""

    alternatives: tuple[Alternative, ...]
    """Words as they are spelled first, then words with capitals or without, then classes."""
    words: int
    """How many are words as they are spelled."""
    vocabulary: int

    @classmethod
    def of(
        cls, model: ReplacementModel, classes: Mapping[str, Sequence[str]] | None = None
    ) -> "Names":
        """Words, the same whatever their capitals, and classes.

        Args:
            model: whose vocabulary.
            classes: words by the name of their class; words of several tokens are left out.

        Raises:
            TraceError: a class holds no word that is a token of its own.
        """
        texts = [model.token_string(token) for token in range(model.host.vocabulary)]
        exact: dict[str, list[int]] = {}
        folded: dict[str, dict[str, list[int]]] = {}
        marks = special_tokens(model)
        for token, text in enumerate(texts):
            if token in marks:
                continue
            bare = text.strip(" ") or text
            exact.setdefault(bare, []).append(token)
            folded.setdefault(bare.casefold(), {}).setdefault(bare, []).append(token)
        found = [Alternative(text, tuple(ids)) for text, ids in exact.items()]
        for spellings in folded.values():
            if len(spellings) > 1:
                ids = sorted(token for some in spellings.values() for token in some)
                found.append(Alternative("/".join(sorted(spellings, reverse=True)), tuple(ids)))
        given = {
            name: [token for word in held for token in exact.get(word.strip(" "), ())]
            for name, held in (classes or {}).items()
        }
        if empty := [name for name, ids in given.items() if not ids]:
            raise TraceError(f"class {empty[0]!r}: none of its words is a token of this model")
        own = {
            name: [at for at, text in enumerate(texts) if form.fullmatch(text.strip(" ") or text)]
            for name, form in SPELLED.items()
        }
        own[START] = sorted(marks)
        for name, ids in (own | given).items():
            if ids:
                found.append(Alternative(name, tuple(sorted(set(ids))), is_class=True))
        return cls(tuple(found), len(exact), len(texts))

    @cached_property
    def members(self) -> sparse.csr_array:
        """(vocabulary, alternatives), 1 where a token is one of the alternative's."""
        return _matrix([one.ids for one in self.alternatives], self.vocabulary)

    @cached_property
    def place(self) -> dict[Alternative, int]:
        """Where each alternative stands."""
        return {one: at for at, one in enumerate(self.alternatives)}

    @cached_property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Ids of every class by name."""
        return {one.name: one.ids for one in self.alternatives if one.is_class}

    @cached_property
    def is_class(self) -> np.ndarray:
        """Which alternatives are classes."""
        return np.array([one.is_class for one in self.alternatives])

    @cached_property
    def exact(self) -> np.ndarray:
        """Which are words as they are spelled: every token is one of one of them at most."""
        return np.arange(len(self.alternatives)) < self.words


def _matrix(held: Iterable[Sequence[int]], height: int) -> sparse.csr_array:
    lists = [np.asarray(one, dtype=np.int64) for one in held]
    column = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    row = np.concatenate(lists)
    shape = (height, len(lists))
    return sparse.csr_array((np.ones(len(row), dtype=np.int32), (row, column)), shape=shape)
