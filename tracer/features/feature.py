"""What a store knows of one feature, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphs import words

Place = tuple[int, int]
"""A feature: layer and number."""
BEFORE = 5
"""Tokens before the one meant that the words of an example show."""


@dataclass(frozen=True)
class Example:
    """One place in the corpus where a feature fires."""

    kind: str
    """`top`, `bottom` (most negative) or `decile`."""
    rank: int
    """Among examples of a kind, from 0; of kind `decile` the decile, 0 the weakest."""
    texts: tuple[str, ...]
    """Tokens of the window."""
    activations: tuple[float, ...]
    """Of each of them, to three digits; 0 at tokens that do not count."""
    position: int
    """The token that the example is of."""
    activation: float
    """There."""
    document: range
    """Tokens of the window that belong to the same document as this one."""

    def in_words(self) -> str:
        """`…state containing Dallas [is]`: up to its token, which stands in brackets."""
        first = max(self.document.start, self.position - BEFORE)
        parts = [words.visible(text) for text in self.texts[first : self.position]]
        cut = "…" if first > self.document.start else ""
        return f"{cut}{''.join(parts).strip()} [{words.token(self.texts[self.position])}]".strip()


@dataclass(frozen=True)
class Feature:
    """What a store knows of one feature."""

    layer: int
    feature: int
    row: Mapping[str, Any] = field(repr=False)
    """Its row of the table of features (tables.py), by column."""
    examples: tuple[Example, ...] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        """Columns by name: `density`, `mean`, `maximum`, `promoted`, `inputs`, ..."""
        try:
            return self.__dict__["row"][name]
        except KeyError:
            raise AttributeError(f"a feature has no {name!r}") from None
