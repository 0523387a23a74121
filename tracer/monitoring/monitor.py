"""Texts one after the other, and what of what is watched crossed its threshold where."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from replacement_models.text.packing import marks
from tracer.errors import TraceError
from tracer.features.rows import padded
from tracer.monitoring.readings import read
from tracer.monitoring.watches import Watch

LONGEST_PIECE = 1024
"""Tokens of a text that are read together unless the caller says otherwise or the model reads
fewer; a longer text is read in pieces."""
Text = str | Sequence[int]


@dataclass(frozen=True)
class Crossing:
    """Where one of what is watched lies above its threshold."""

    name: str
    threshold: float
    maximum: float
    """The largest value there."""
    positions: tuple[int, ...]
    """Of the text's tokens, from 0; BOS counts where the model wants one."""
    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Monitored:
    """What one text made of what is watched."""

    number: int
    """Of the text, from 0."""
    tokens: int
    crossings: tuple[Crossing, ...]
    """Only of what crossed its threshold, in the order it was named."""


def monitor(
    model: ReplacementModel,
    texts: Iterable[Text],
    watches: Sequence[Watch],
    *,
    batch: int = 32,
    context: int | None = None,
    skip_positions: int = 1,
) -> Iterator[Monitored]:
    """Watch features, groups and directions over texts, a batch at a time.

    Memory holds one batch, however many texts there are. A text longer than `context` is read in
    pieces, each as if it began there.

    Args:
        model: the model.
        texts: texts, or token ids taken as they stand; read as they are needed.
        watches: what to watch (`Watch.feature`, `.group`, `.direction`).
        batch: pieces a forward pass.
        context: tokens a piece; None: 1,024, or what the model reads if that is less.
        skip_positions: first positions of a piece that do not count; nor do special tokens.

    Returns:
        A generator of one result a text, in order.

    Raises:
        TraceError: nothing to watch, or the model has it not.
        ModelError: token ids that do not fit the model.
    """
    if not watches:
        raise TraceError("nothing is watched; name at least one feature, group or direction")
    for watch in watches:
        watch.check(model)
    names = [watch.name for watch in watches]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TraceError(f"{twice!r} is watched twice; name it once")
    size = _context(model, context)
    if batch < 1:
        raise TraceError(f"batch is {batch}, expected at least 1")
    return _monitored(model, iter(texts), list(watches), batch, size, skip_positions)


def _context(model: ReplacementModel, given: int | None) -> int:
    most = model.host.context
    size = min(LONGEST_PIECE, most or LONGEST_PIECE) if given is None else given
    if size < 2 or (most is not None and size > most):
        raise TraceError(f"context is {size}, expected 2 to {most or 'any number'}")
    return size


def _monitored(
    model: ReplacementModel,
    texts: Iterator[Text],
    watches: list[Watch],
    batch: int,
    context: int,
    skip_positions: int,
) -> Iterator[Monitored]:
    number = 0
    while some := list(islice(texts, batch)):
        ids = [_ids(model, text) for text in some]
        pieces = [
            (at, start, piece)
            for at, one in enumerate(ids)
            for start, piece in _pieces(model, one, context)
        ]
        crossed: list[dict[str, Crossing]] = [{} for _ in some]
        for first in range(0, len(pieces), batch):
            part = pieces[first : first + batch]
            seen = _crossings(model, [piece for *_, piece in part], watches, skip_positions)
            for (at, start, _), found in zip(part, seen, strict=True):
                _join(crossed[at], found, start)
        for at, found_of in enumerate(crossed):
            kept = tuple(found_of[one.name] for one in watches if one.name in found_of)
            yield Monitored(number + at, len(ids[at]), kept)
        number += len(some)


def _ids(model: ReplacementModel, text: Text) -> list[int]:
    """Ids of a text of any length; an empty one has none."""
    if isinstance(text, str):
        if not text.strip():
            return []
        if model.tokenizer is None:
            raise TraceError("a text cannot be read: this model has no tokenizer; give token ids")
        ids: list[int] = list(model.tokenizer(text, verbose=False).input_ids)
        bos = model.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    ids, last = [int(one) for one in text], model.host.vocabulary - 1
    wrong = [one for one in ids if not 0 <= one <= last]
    if wrong:
        raise TraceError(f"token id {wrong[0]} is not in 0..{last}")
    return ids


def _pieces(
    model: ReplacementModel, ids: list[int], context: int
) -> Iterator[tuple[int, list[int]]]:
    """By how much a position in the text lies behind that in each piece, and the piece's ids.

    BOS stands in front of all of them if it does of the text.
    """
    front = [one for one in marks(model)[0] if ids[:1] == [one]]
    step = context - len(front)
    for start in range(len(front), max(len(ids), len(front) + 1), step):
        piece = [*front, *ids[start : start + step]]
        if piece:
            yield start - len(front), piece


@one_call()
@torch.no_grad()
def _crossings(
    model: ReplacementModel,
    pieces: Sequence[Sequence[int]],
    watches: Sequence[Watch],
    skip_positions: int,
) -> list[list[Crossing]]:
    """Of every piece what crossed, positions counted in the piece."""
    found = read(model, padded(pieces), watches, skip_positions)
    limits = found.values.new_tensor([one.threshold for one in watches])
    above = (found.values > limits[:, None, None]) & found.counts
    values, where = found.values.cpu(), above.cpu()
    crossed: list[list[Crossing]] = []
    for row, ids in enumerate(pieces):
        crossed.append([])
        for number in where[:, row].any(1).nonzero()[:, 0].tolist():
            at = where[number, row].nonzero()[:, 0]
            held = tuple(values[number, row, at].tolist())
            places = tuple(at.tolist())
            names = tuple(model.token_string(ids[place]) for place in places)
            watch = watches[number]
            crossed[-1].append(
                Crossing(watch.name, watch.threshold, max(held), places, names, held)
            )
    return crossed


def _join(held: dict[str, Crossing], found: Sequence[Crossing], start: int) -> None:
    """Add what a piece crossed, whose positions lie `start` further in the text."""
    for one in found:
        moved = replace(one, positions=tuple(start + place for place in one.positions))
        before = held.get(one.name)
        if before is not None:
            moved = replace(
                moved,
                maximum=max(before.maximum, one.maximum),
                positions=before.positions + moved.positions,
                tokens=before.tokens + one.tokens,
                values=before.values + one.values,
            )
        held[one.name] = moved
