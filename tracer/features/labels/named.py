"""What stands for a feature where people read: words, where they come from, and how true they are.

One convention everywhere. Words of our own begin with what they claim: `on`, `after`, `near`,
`with`, `repeated`, `says`, `promotes` (predicates.py); `e.g.` begins an example, where no label is
true (F1 below a half); `≈` stands before all of them where the feature is polysemantic. A user's
words stand as they are, and so do names that came with a dictionary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.features.labels.table import ENDPOINT, EXAMPLE, PREDICATE, TOKEN, USER

MIXED = "≈ "
DICTIONARY = "dictionary"


@dataclass(frozen=True)
class Named:
    """The words for one feature."""

    text: str | None
    """None where nothing is known but what its decoder promotes."""
    source: str
    """`user`, `predicate`, `endpoint`, `dictionary` (a name that came with it, unmeasured),
    `example` or `token` (nothing but what it promotes)."""
    f1: float | None = None
    """On text held out; of an example, of the label that was not true enough."""
    above: float = 0.0
    """Activation from which the words were measured; they say nothing of less."""
    mixed: float | None = None
    """Effective number of unrelated kinds of context."""
    polysemantic: bool = False
    predicate: str | None = None
    """JSON (predicates.py)."""
    example: str | None = None

    @property
    def label(self) -> str | None:
        """The words where they are a label, and no example."""
        return None if self.source in (EXAMPLE, TOKEN) else self.text

    def as_json(self) -> dict[str, Any]:
        """As a graph's metadata hold it."""
        return {
            "text": self.text,
            "f1": None if self.f1 is None else round(self.f1, 4),
            "source": self.source,
            "polysemantic": self.polysemantic,
            "mixed": None if self.mixed is None else round(self.mixed, 2),
            "above": self.above,
        }


def named(user: str | None, dictionary: str | None, row: Mapping[str, Any] | None) -> Named:
    """Choose the words for one feature.

    Args:
        user: a user's own words.
        dictionary: a name that came with the dictionary.
        row: of the table of labels (table.py).
    """
    row = row or {}
    about: Any = {"mixed": row.get("mixed"), "polysemantic": bool(row.get("polysemantic"))}
    if user is not None:
        return Named(user, USER, **about)
    measured: Any = {"f1": row.get("f1"), "example": row.get("example")}
    if row.get("shown"):
        source = row["source"] or PREDICATE
        predicate = row["predicate"] if source != ENDPOINT else None
        return Named(
            row["label"],
            source,
            above=row["above"] or 0.0,
            predicate=predicate,
            **measured,
            **about,
        )
    if dictionary is not None:
        return Named(dictionary, DICTIONARY, **about)
    if row.get("example"):
        return Named(f"e.g. {row['example']}", EXAMPLE, **measured, **about)
    return Named(None, TOKEN, **about)
