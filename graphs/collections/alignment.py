"""Which positions of two prompts go together."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from graphs.schema import GraphError

ALIGNMENTS = ("text", "end", "anywhere")
"""By the text of the tokens, counted from the end, or not at all: features wherever they fire."""

Pairs = list[tuple[int | None, int | None]]


def aligned(a: Sequence[str], b: Sequence[str], by: str) -> Pairs:
    """Positions of two prompts in columns, from left to right.

    By text: stretches of equal tokens go together (the longest first), and what is replaced between
    two of them is paired from its end. From the end: the last with the last.

    Args:
        a: tokens of one prompt.
        b: of the other.
        by: one of `ALIGNMENTS`; "anywhere" is laid out as "text".

    Returns:
        Pairs of positions, None where one prompt has no counterpart.

    Raises:
        GraphError: another way of aligning.

    >>> aligned(["The", " capital", " of", " Texas"], [" Capital", " of", " New", " York"], "text")
    [(0, None), (1, 0), (2, 1), (None, 2), (3, 3)]
    >>> aligned(["The", " capital"], [" capital"], "end")
    [(0, None), (1, 0)]
    """
    if by not in ALIGNMENTS:
        raise GraphError(f"align is {by!r}, expected one of {', '.join(ALIGNMENTS)}")
    if by == "end":
        return _from_the_end((0, len(a)), (0, len(b)))
    blocks = SequenceMatcher(None, list(a), list(b), autojunk=False).get_opcodes()
    return [pair for _, *ends in blocks for pair in _from_the_end(ends[:2], ends[2:])]


def _from_the_end(a: Sequence[int], b: Sequence[int]) -> Pairs:
    """Positions of two stretches, their last ones together."""
    left, right = range(*a), range(*b)
    both = min(len(left), len(right))
    extra = [(one, None) for one in left[: len(left) - both]]
    more = [(None, one) for one in right[: len(right) - both]]
    return [*extra, *more, *zip(left[len(left) - both :], right[len(right) - both :], strict=True)]
