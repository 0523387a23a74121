"""Where the boxes of a summary stand: causes below, the answer on top, 8 cm wide at most.

Lengths are points (1/72 inch), y upward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from graphs import words
from graphs.pictures.placement import text_width
from graphs.pictures.routing import Points, clear_route, crossing, through_gaps
from graphs.pictures.summary import Box, Link, Summary

WIDTH, LANE = 204.0, 9.0
"""Of the boxes, and of the room for edges on either side: 8 cm together, with a margin."""
FONT, SMALL = 7.5, 6.0
LETTERS = 17
"""Of a line in a box."""
APART, TIGHT = 9.0, 3.0
"""Least distance between neighbours in a row, and in a full one."""
RISE = 30.0
"""Between one row of boxes and the next, for the edges."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A summary with the place of everything."""

    lines: list[list[str]]
    """What each box says."""
    notes: list[str]
    """The small line under it, '' for none."""
    box: Float[np.ndarray, "boxes 4"]
    """Left, low, right, high."""
    routes: list[Points]
    """Control points of each edge."""
    height: float


def said(box: Box, letters: int = 10) -> tuple[list[str], str]:
    """The words in a box, of a token at most so many letters, and the small line under them.

    Returns:
        One or two lines, and the small one, '' for none.
    """
    count = len(box.members)
    many = f"×{count}" if count > 1 else ""
    if box.kind == "group":
        place = f"at {words.clipped(box.at, 12)}" if box.at else ""
        note = " · ".join(part for part in (many, place) if part)
        return words.wrapped(words.visible(box.name), LETTERS, 2), note
    if box.kind == "answer":
        return [words.clipped(box.name, 24)], ""
    share = words.percent(box.share or 0)
    if box.kind in ("other", "error"):
        return [box.name], " · ".join(part for part in (many, share) if part)
    name = words.visible(box.name)
    special = name.startswith("<") and name.endswith(">")
    return [words.clipped(name, min(letters, 7) if special else letters)], share


def placed(summary: Summary) -> Placed:
    """Places for every box and edge of a summary."""
    for letters in (10, 8, 6, 4):
        text = [said(box, letters) for box in summary.boxes]
        size = np.array([_size(lines, note) for lines, note in text]).reshape(-1, 2)
        low = np.array([box.kind in ("token", "other", "error") for box in summary.boxes], bool)
        if size[low, 0].sum() + TIGHT * (low.sum() - 1) <= WIDTH + LANE:
            break
    for at, one in enumerate(summary.boxes):
        entering = sum(link.target == at for link in summary.links)
        size[at, 0] = max(size[at, 0], 8.0 * entering + 6 if one.kind == "answer" else 0)
    rows = _rows(summary, size)
    x = _across(summary, rows, size)
    y, height = np.zeros(len(size)), 0.0
    for row in rows:
        tall = max(size[at, 1] for at in row)
        y[row] = height + tall / 2
        height += tall + RISE
    half = size / 2
    box = np.stack([x - half[:, 0], y - half[:, 1], x + half[:, 0], y + half[:, 1]], 1)
    lines, notes = [one for one, _ in text], [note for _, note in text]
    return Placed(lines, notes, box, _routes(summary.links, box, rows), height - RISE)


def _size(lines: Sequence[str], note: str) -> tuple[float, float]:
    widest = max([text_width(line, FONT) for line in lines] + [text_width(note, SMALL)])
    return max(widest + 6, 22.0), 6 + 9.0 * len(lines) + (7.0 if note else 0.0)


def _rows(summary: Summary, size: np.ndarray) -> list[list[int]]:
    """Boxes in rows from below, so that edges lead up wherever the forward pass lets them."""
    level = _levels(summary.boxes, summary.links)
    found: list[list[int]] = []
    for step in range(int(level.max(initial=-1)) + 1):
        row = np.flatnonzero(level == step).tolist()
        row.sort(key=lambda at: (summary.boxes[at].depth, at) if step > 0 else (0, at))
        part: list[int] = []
        for at in row:
            if part and size[[*part, at], 0].sum() + TIGHT * len(part) > WIDTH + LANE * (step == 0):
                found.append(part)
                part = []
            part.append(at)
        if part:
            found.append(part)
    return found


def _levels(boxes: Sequence[Box], links: Sequence[Link]) -> np.ndarray:
    """The longest way from below to each box, over edges that lead on in the forward pass."""
    level = np.array([int(box.kind in ("group", "answer")) for box in boxes], int)
    order = sorted(range(len(boxes)), key=lambda at: boxes[at].depth)
    for at in order:
        for link in links:
            if link.target == at and boxes[link.source].depth < boxes[at].depth:
                level[at] = max(level[at], level[link.source] + 1)
    answers = np.array([box.kind == "answer" for box in boxes], bool)
    if answers.any():
        level[answers] = max(level.max(), 1 + level[~answers].max(initial=0))
    return level


def _across(summary: Summary, rows: list[list[int]], size: np.ndarray) -> np.ndarray:
    """Middles of the boxes: near what they are linked to, in reading order at the bottom."""
    boxes = summary.boxes
    x = np.zeros(len(boxes))
    for row in rows:
        row.sort(key=lambda at: boxes[at].position)
        x[row] = _spread(_even(len(row)), size[row, 0])
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = np.array([_pull(at, summary, x) for at in row])
            if row is not rows[0]:
                order = np.argsort(wanted, kind="stable")
                row[:] = [row[at] for at in order]
                wanted = wanted[order]
            x[row] = _spread(wanted if row is not rows[0] else x[row], size[row, 0])
    return x


def _even(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) * WIDTH / max(count, 1)


def _pull(at: int, summary: Summary, x: np.ndarray) -> float:
    """Where a box's neighbours stand on average; in the middle a little, and where it stands."""
    total, weight = 0.02 * (0.5 * WIDTH + x[at]), 0.04
    for link in summary.links:
        if at in (link.source, link.target):
            other = link.target if at == link.source else link.source
            size = abs(link.influence) ** 0.5
            total, weight = total + size * x[other], weight + size
    return total / weight


def _spread(wanted: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Middles as near to `wanted` as fit beside one another, in that order, within `WIDTH`."""
    gap = APART
    if len(width) > 1:
        gap = max(TIGHT, min(APART, (WIDTH - width.sum()) / (len(width) - 1)))
    outside = max(0.0, float(width.sum()) + gap * (len(width) - 1) - WIDTH) / 2
    least = np.concatenate([[0.0], np.cumsum(width[:-1] + gap)]) + width / 2
    free = wanted - least
    for _ in range(len(free)):  # pool neighbours that would overlap
        bad = np.flatnonzero(np.diff(free) < -1e-9)
        if not len(bad):
            break
        free = _pooled(free)
    room = max(WIDTH - float(width.sum()) - gap * (len(width) - 1), 0.0)
    return np.clip(free, 0, room) + least - outside


def _pooled(values: np.ndarray) -> np.ndarray:
    """The nearest values that never fall, by pooling neighbours."""
    blocks: list[list[float]] = []
    for value in values.tolist():
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])


def _routes(links: Sequence[Link], box: np.ndarray, rows: list[list[int]]) -> list[Points]:
    """A clear route for every edge, its ends spread over the edges of its boxes."""
    start, end = (_fanned(links, box, side) for side in (0, 1))
    stands = {at: number for number, row in enumerate(rows) for at in row}
    bounds = (-LANE, WIDTH + LANE)
    found = []
    for at, link in enumerate(links):
        low, high = stands[link.source], stands[link.target]
        crossed = rows[low + 1 : high] if low < high else rows[high + 1 : low][::-1]
        between = [crossing(box[row], bounds) for row in ([rows[low]] if low == high else crossed)]
        up = box[link.target, 1] > box[link.source, 1]
        own = (_edge_of(box[rows[low]], up), _edge_of(box[rows[high]], not up))
        others = np.delete(box, [link.source, link.target], axis=0)
        ends = (start[at], end[at])
        gaps = partial(through_gaps, *ends, between, own if low != high else None)
        found.append(clear_route(*ends, others, bounds, gaps))
    return found


def _edge_of(row: np.ndarray, top: bool) -> float:
    """A height just above or below all boxes of a row."""
    return float(row[:, 3].max() + 3 if top else row[:, 1].min() - 3)


def _fanned(links: Sequence[Link], box: np.ndarray, side: int) -> np.ndarray:
    """Where each edge begins (side 0) or ends (1): apart, in the order of the other ends."""
    middle = (box[:, 0] + box[:, 2]) / 2
    points = np.zeros((len(links), 2))
    up = np.array([box[link.target, 1] > box[link.source, 1] for link in links], bool)
    for at in range(len(box)):
        for way in (True, False):
            some = [
                number
                for number, link in enumerate(links)
                if (link.source, link.target)[side] == at and up[number] == way
            ]
            some.sort(key=lambda number: middle[(links[number].target, links[number].source)[side]])
            reach = (box[at, 2] - box[at, 0]) / 2 - 5
            step = min(9.0, 2 * reach / max(len(some) - 1, 1))
            for place, number in enumerate(some):
                x = middle[at] + (place - (len(some) - 1) / 2) * step
                points[number] = x, box[at, 3 if way == (side == 0) else 1]
    return points
