"""Curves that pass behind no box: candidates are bent further and further until one is clear.

A route is a chain of cubic Bézier curves as Graphviz takes it: 3 n + 1 points. Where no single
curve is clear, a route runs along lanes that the caller knows to be free, with rounded corners.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "points 2"]
Boxes = Float[np.ndarray, "boxes 4"]
"""Left, low, right, high."""

_LEANS = (0, 9, 20, 34, 52, 74, 100, 132, 170, 216)
BENDS = np.array(
    sorted(
        {
            (one * left, one * right * turn)
            for left in _LEANS
            for right in _LEANS
            for one in (1.0, -1.0)
            for turn in (1.0, -1.0)
            if turn > 0 or max(left, right) <= 74
        },
        key=lambda pair: (abs(pair[0]) + abs(pair[1]) + 1.5 * abs(pair[0] - pair[1]), pair),
    )
)
"""(candidates, 2): how far a curve leans aside where it starts and where it ends, in points; the
least that is clear is taken."""
SAMPLES = 80
"""Points of a curve that are looked at."""
CLEAR = 2.0
"""Least distance from a box that an edge does not end at."""
ROOM = 3.0
"""Between a row of boxes and where routes begin to run upright."""


def curves(
    start: Sequence[float], end: Sequence[float], bends: Float[np.ndarray, "bends 2"]
) -> Float[np.ndarray, "bends 4 2"]:
    """Bézier curves from `start` to `end` that leave and enter vertically, leaning by `bends`.

    Returns:
        (bends, 4, 2) control points, in points.
    """
    rise = end[1] - start[1]
    pull = np.sign(rise or 1.0) * min(max(0.45 * abs(rise), 12.0), 90.0)
    found = np.empty((len(bends), 4, 2))
    found[:, 0], found[:, 3] = start, end
    found[:, 1] = np.stack([start[0] + bends[:, 0], np.full(len(bends), start[1] + pull)], 1)
    found[:, 2] = np.stack([end[0] + bends[:, 1], np.full(len(bends), end[1] - pull)], 1)
    return found


def sampled(routes: Float[np.ndarray, "routes 4 2"]) -> Float[np.ndarray, "routes samples 2"]:
    """Points on each curve.

    Returns:
        (routes, samples, 2), in points.
    """
    t = np.linspace(0, 1, SAMPLES)[:, None]
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return np.einsum("kso,rkc->rsc", weights, routes)


def hits(
    points: Float[np.ndarray, "routes samples 2"], boxes: Boxes, margin: float = CLEAR
) -> Float[np.ndarray, " routes"]:
    """How many points of each route lie behind a box.

    Returns:
        (routes,) counts.
    """
    x, y = points[..., 0, None], points[..., 1, None]
    inside = (
        (x > boxes[:, 0] - margin)
        & (x < boxes[:, 2] + margin)
        & (y > boxes[:, 1] - margin)
        & (y < boxes[:, 3] + margin)
    )
    return inside.any(2).sum(1).astype(float)


def clear_route(
    start: Sequence[float],
    end: Sequence[float],
    boxes: Boxes,
    bounds: tuple[float, float],
    otherwise: Callable[[], Points] | None = None,
    bends: Float[np.ndarray, "bends 2"] = BENDS,
) -> Points:
    """The straightest route from one point up or down to another that passes behind no box.

    Args:
        start: x and y.
        end: x and y.
        boxes: what to keep clear of; not those at the ends.
        bounds: least and largest x of the picture.
        otherwise: a route for where no single curve is clear.
        bends: how far candidates lean aside at their two ends.

    Returns:
        (3 n + 1, 2) control points of n curves, in points.
    """
    found = curves(start, end, bends)
    points = sampled(found)
    outside = ((points[..., 0] < bounds[0]) | (points[..., 0] > bounds[1])).sum(1)
    wrong = hits(points, boxes) + outside
    for at in np.flatnonzero(wrong == 0):
        route = tightened(found[at])
        if not hits(sampled(_parts(route)), boxes).any():
            return route
    return tightened(found[int(wrong.argmin())]) if otherwise is None else otherwise()


def _parts(route: Points) -> Float[np.ndarray, "parts 4 2"]:
    """The single curves of a route."""
    return np.stack([route[3 * n : 3 * n + 4] for n in range((len(route) - 1) // 3)])


def tightened(curve: Float[np.ndarray, "4 2"], halvings: int = 2) -> Points:
    """The same curve in parts, whose control points lie close to it.

    Graphviz makes room for control points, however far from the curve they lie.

    Returns:
        (3 n + 1, 2) control points of n curves, in points.

    >>> tightened(np.array([[0.0, 0], [0, 8], [8, 8], [8, 0]]), 1).tolist()[3]
    [4.0, 6.0]
    """
    if not halvings:
        return curve
    mid = (curve[:-1] + curve[1:]) / 2
    inner = (mid[:-1] + mid[1:]) / 2
    centre = inner.mean(0)
    first = tightened(np.stack([curve[0], mid[0], inner[0], centre]), halvings - 1)
    last = tightened(np.stack([centre, inner[1], mid[2], curve[3]]), halvings - 1)
    return np.concatenate([first, last[1:]])


class Crossing(NamedTuple):
    """A row of boxes that a route must cross."""

    low: float
    high: float
    """Heights between which the route runs upright."""
    gaps: Sequence[float]
    """Where it may."""


def crossing(row: Boxes, bounds: tuple[float, float]) -> Crossing:
    """What a route can do about a whole row of boxes: pass between them, or at either end."""
    return Crossing(row[:, 1].min() - ROOM, row[:, 3].max() + ROOM, _gaps(row, bounds))


def through_gaps(
    start: Sequence[float],
    end: Sequence[float],
    rows: Sequence[Crossing],
    own: tuple[float, float] | None = None,
) -> Points:
    """A route through the gaps of the rows between its ends, with as little to and fro as can be.

    Args:
        start: x and y, below or above all of `rows`.
        end: x and y, on their other side.
        rows: in the order in which they are met.
        own: heights up to which a route stays upright at its two ends; None: where they are.

    Returns:
        (3 n + 1, 2) control points of n curves, in points.

    >>> row = crossing(np.array([[-5.0, 15, 9, 25]]), (-10, 99))
    >>> through_gaps((0, 0), (0, 40), [row])[3].tolist()
    [-7.5, 12.0]
    """
    ways = {float(start[0]): (0.0, [float(start[0])])}
    for row in rows:
        ways = {
            gap: min((cost + abs(gap - x), [*before, gap]) for x, (cost, before) in ways.items())
            for gap in row.gaps
        }
    _, taken = min((cost + abs(end[0] - x), way) for x, (cost, way) in ways.items())
    up = end[1] > start[1]
    own = own or (start[1], end[1])
    stops = [(start[0], start[1]), (start[0], own[0])]
    for x, row in zip(taken[1:], rows, strict=True):
        heights = (row.low, row.high) if up else (row.high, row.low)
        stops += [(x, y) for y in heights]
    stops += [(end[0], own[1]), (end[0], end[1])]
    return _vertical([np.array(at, float) for at, _ in groupby(stops)])


def _gaps(row: Boxes, bounds: tuple[float, float]) -> list[float]:
    """Middles of what is free in a row, whatever stands above what in it."""
    order = row[np.argsort(row[:, 0])]
    left = np.append(bounds[0], np.maximum.accumulate(order[:, 2]))
    right = np.append(order[:, 0], bounds[1])
    wide = right - left >= 2 * CLEAR + 0.5
    return _lanes(left[wide], right[wide]) or list(bounds)


def _lanes(left: np.ndarray, right: np.ndarray) -> list[float]:
    """One lane in the middle of a narrow gap; in a wide one some near its sides as well."""
    found: list[float] = []
    for low, high in zip(left.tolist(), right.tolist(), strict=True):
        found += [(low + high) / 2] if high - low < 24 else [low + 6, (low + high) / 2, high - 6]
    return found


def _vertical(stops: Sequence[np.ndarray]) -> Points:
    """A route through `stops` that passes each of them upright."""
    found = [stops[0]]
    for before, after in pairwise(stops):
        half = np.array([0.0, (after[1] - before[1]) / 2])
        found += [before + half, after - half, after]
    return np.array(found)


def behind(
    routes: Sequence[Points], boxes: Boxes, own: Sequence[set[int]], margin: float = 0.0
) -> Bool[np.ndarray, " routes"]:
    """Which routes pass behind a box that they do not end at.

    Args:
        routes: control points of each.
        boxes: all of them.
        own: the boxes each route ends at.
        margin: least distance to keep.

    Returns:
        (routes,) a mask.
    """
    found = np.zeros(len(routes), bool)
    for at, (route, ends) in enumerate(zip(routes, own, strict=True)):
        others = np.delete(boxes, sorted(ends), axis=0)
        found[at] = bool(hits(sampled(_parts(route)), others, margin).any())
    return found
