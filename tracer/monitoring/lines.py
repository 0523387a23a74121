"""JSONL from a file or a pipe, a line at a time: what is broken is told and left out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

LONGEST_LINE = 1 << 24
"""Bytes of a line; a longer one is read past, never held."""


@dataclass(frozen=True)
class Line:
    """One text of a stream."""

    number: int
    """Of its line, from 1."""
    text: str | list[int]
    id: str | int | None
    """What stands under `id`, where that is text or a whole number."""


def texts(
    stream: BinaryIO, field: str, vocabulary: int, told: Callable[[str], None]
) -> Iterator[Line]:
    """Every line that holds a text or a list of token ids.

    Args:
        stream: bytes, of which a line is read at a time.
        field: key that holds the text; a line may also be a text or a list itself.
        vocabulary: token ids are below it.
        told: called with one sentence for every line that is left out.
    """
    for number, raw in enumerate(_lines(stream), start=1):
        if raw is None:
            told(f"line {number}: longer than {LONGEST_LINE:,} bytes; left out")
            continue
        if not raw.strip():
            continue
        try:
            value: Any = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            told(f"line {number}: no JSON in UTF-8 ({error}); left out")
            continue
        found = value.get(field) if isinstance(value, dict) else value
        wrong = _wrong(found, field, vocabulary)
        if wrong is not None or found is None:
            told(f"line {number}: {wrong}; left out")
            continue
        name = value.get("id") if isinstance(value, dict) else None
        yield Line(number, found, name if isinstance(name, str | int) else None)


def _wrong(found: Any, field: str, vocabulary: int) -> str | None:
    if isinstance(found, str):
        try:
            found.encode()
        except UnicodeEncodeError as error:
            return f"the text is not valid Unicode ({error.reason})"
        return None if found.strip() else "the text is empty"
    if isinstance(found, list) and found and all(type(one) is int for one in found):
        wrong = [one for one in found if not 0 <= one < vocabulary]
        return f"token id {wrong[0]} is not in 0..{vocabulary - 1}" if wrong else None
    return f"expected text or token ids in {field!r}, got {found!r:.60}"


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None for one that is too long."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass
        yield None
