"""Where everything in a picture stands: tokens are columns, layers are rows.

Lengths are points (1/72 inch), x to the right, y upward. A cell is one column in one row; its
glyphs stand side by side, in as many lines as it takes, the first on top.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.pictures.routing import (
    BENDS,
    CLEAR,
    ROOM,
    Boxes,
    Crossing,
    Points,
    behind,
    clear_route,
    crossing,
    through_gaps,
)

GAP = 6.0
"""Between neighbours in a cell."""
PADDING = 8.0
"""Between a cell's content and the border of its row or column."""
LINE = 210.0
"""Widest line of a cell, unless one glyph alone is wider."""
WIDE = 700.0
"""The same of the logits, which may reach over their column."""
NARROW = 420.0
"""Least width of all columns together."""
STEEP = 80.0
"""Edges whose ends are closer than this, sideways, bend around what lies between them."""
EMPTY = 16.0
"""Height of a row without nodes."""
REROUTED = 3000
"""Edges up to which each is kept from passing behind boxes; more are drawn as they come."""
FEW = 60
"""Candidates tried for an edge before it takes the gaps."""
MARGIN = 10.0
"""Room for edges on either side of all columns."""
TALL = 520.0
"""Height that the rows together fill when they are few."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """What stands for a node: its size, and its text if it has any."""

    width: float
    height: float
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Positions of the nodes and of the grid behind them."""

    x: Float[np.ndarray, " nodes"]
    y: Float[np.ndarray, " nodes"]
    columns: Float[np.ndarray, " column_borders"]
    """Borders of the token columns, from 0 to the width of the picture."""
    rows: Float[np.ndarray, " row_borders"]
    """Borders of the rows, from 0 to the height: embeddings, layers, logits."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What is to be placed: a glyph, a row and a column for every node, and who is linked."""

    glyphs: Sequence[Glyph]
    row: Int[np.ndarray, " nodes"]
    column: Int[np.ndarray, " nodes"]
    shape: tuple[int, int]
    """Rows and columns, empty ones included."""
    links: tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"], Float[np.ndarray, " edges"]]
    """Source, target and strength of every edge."""


Lines = list[list[int]]


def place(grid: Grid) -> Layout:
    """Positions for every node of a grid.

    Columns are as wide as their fullest cell, rows as high. Within a cell, nodes stand in the
    order of the places they are linked to (two barycentre passes). The last row, of the logits, may
    reach over its column's borders; the first logit stands at the right of the lowest line, where
    the last column is and no other logit hides its edges.

    Returns:
        Centres of the (nodes,) glyphs, and the borders of columns and rows, in points.
    """
    cells = _cells(grid, grid.column.astype(np.float64))
    x, columns = _across(grid, cells)
    cells = _cells(grid, x)
    x, columns = _across(grid, cells)
    y, rows = _upward(grid, cells)
    return Layout(x, y, columns, rows)


def _cells(grid: Grid, x: Float[np.ndarray, " nodes"]) -> dict[tuple[int, int], Lines]:
    """Lines of nodes for every cell, given where nodes stood so far."""
    source, target, strength = grid.links
    pull, weight = np.zeros_like(x), np.full_like(x, 1e-12)
    for one, other in ((source, target), (target, source)):
        np.add.at(pull, one, strength * (x[other] - x[one]))
        np.add.at(weight, one, strength)
    lean = pull / weight
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for node, cell in enumerate(zip(grid.row.tolist(), grid.column.tolist(), strict=True)):
        members[cell].append(node)
    last = grid.shape[0] - 1
    return {
        cell: _lines(sorted(nodes, key=lean.__getitem__), grid)
        for cell, nodes in members.items()
        if cell[0] != last
    } | {
        cell: [line[::-1] for line in _lines(nodes, grid, WIDE)][::-1]
        for cell, nodes in members.items()
        if cell[0] == last
    }


def _lines(nodes: list[int], grid: Grid, limit: float = LINE) -> Lines:
    """Nodes in lines no wider than `limit`, filled evenly."""
    total = sum(grid.glyphs[node].width + GAP for node in nodes)
    room = total / np.ceil(total / limit) if total > limit else limit
    lines: Lines = [[]]
    used = 0.0
    for node in nodes:
        width = grid.glyphs[node].width + GAP
        if lines[-1] and used + width / 2 > room:
            lines.append([])
            used = 0.0
        lines[-1].append(node)
        used += width
    return lines


def _across(
    grid: Grid, cells: dict[tuple[int, int], Lines]
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " column_borders"]]:
    last = grid.shape[0] - 1
    width = np.full(grid.shape[1], 20.0)
    for (row, column), lines in cells.items():
        if row != last:
            widest = max(_width(line, grid) for line in lines)
            width[column] = max(width[column], widest + 2 * PADDING)
    logits = max(
        (_width(line, grid) for c, lines in cells.items() if c[0] == last for line in lines),
        default=0.0,
    )
    short = max(logits + 2 * PADDING, NARROW) - width.sum()
    if short > 0:
        width += short / len(width)
    columns = np.concatenate([[0.0], np.cumsum(width)])
    x = np.zeros(len(grid.glyphs))
    for (_, column), lines in cells.items():
        for line in lines:
            wide = _width(line, grid)
            middle = (columns[column] + columns[column + 1]) / 2
            margin = wide / 2 + PADDING
            left = np.clip(middle, margin, columns[-1] - margin) - wide / 2
            for node in line:
                x[node] = left + grid.glyphs[node].width / 2
                left += grid.glyphs[node].width + GAP
    return x, columns


def _width(line: list[int], grid: Grid) -> float:
    return sum(grid.glyphs[node].width for node in line) + GAP * (len(line) - 1)


def _upward(
    grid: Grid, cells: dict[tuple[int, int], Lines]
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " row_borders"]]:
    used = np.zeros(grid.shape[0])
    for (row, _), lines in cells.items():
        used[row] = max(used[row], sum(_height(line, grid) for line in lines) + GAP)
    least = np.clip(TALL / max(1, int((used > 0).sum())), 30.0, 76.0)
    height = np.where(used > 0, np.maximum(used + PADDING, least), EMPTY)
    height[[0, -1]] = np.maximum(used[[0, -1]] + PADDING, 30.0)
    rows = np.concatenate([[0.0], np.cumsum(height)])
    y = np.zeros(len(grid.glyphs))
    for (row, _), lines in cells.items():
        low = (rows[row] + rows[row + 1] - sum(_height(line, grid) for line in lines)) / 2
        for line in reversed(lines):
            y[line] = low + _height(line, grid) / 2
            low += _height(line, grid)
    return y, rows


def _height(line: list[int], grid: Grid) -> float:
    return max(grid.glyphs[node].height for node in line) + GAP


def routes(grid: Grid, layout: Layout, curved: bool) -> list[Points]:
    """A route for every link, from the top of its source to the bottom of its target.

    Leaves and enters vertically, so that labels are struck through less and the point of entry
    shows; ends on wide glyphs are fanned by where the other end lies. No curve passes behind a box
    that it does not end at: one that would bends around it, or takes the gaps between boxes.
    Curves from other columns into the last one run together before they enter it. Straight if not
    `curved`, behind whatever lies there.

    Returns:
        For each, the (3 n + 1, 2) points of n cubic Bézier curves, in points.
    """
    plain = _plain_routes(grid, layout, curved)
    if not curved or len(plain) > REROUTED:
        return list(plain)
    return _clear_routes(grid, layout, plain)


def _plain_routes(grid: Grid, layout: Layout, curved: bool) -> Float[np.ndarray, "edges 4 2"]:
    """One curve a link, whatever lies behind it; the steep ones already bend inward.

    Returns:
        (edges, 4, 2) control points, in points.
    """
    source, target, _ = grid.links
    size = np.array([(glyph.width, glyph.height) for glyph in grid.glyphs]).reshape(-1, 2)
    bend = _bend(grid, layout) if curved else np.zeros(len(source))
    ends = []
    for one, other, sign in ((source, target, 1), (target, source, -1)):
        reach = np.maximum(size[one, 0] / 2 - 8, 0)
        fan = np.clip((layout.x[other] - layout.x[one]) * 0.08 + bend * 0.3, -reach, reach)
        ends.append((layout.x[one] + fan, layout.y[one] + sign * size[one, 1] / 2))
    (x0, y0), (x3, y3) = ends
    rise = y3 - y0
    pull = np.where(rise > 0, np.minimum(0.45 * rise, 90), 25)
    if curved:
        inner = (x0 + bend, y0 + pull, x3 + bend, y3 - pull)
    else:
        inner = (x0 + (x3 - x0) / 3, y0 + rise / 3, x3 - (x3 - x0) / 3, y3 - rise / 3)
    return np.stack([x0, y0, *inner, x3, y3], axis=1).reshape(-1, 4, 2)


def _clear_routes(
    grid: Grid, layout: Layout, plain: Float[np.ndarray, "edges 4 2"]
) -> list[Points]:
    """The plain curve where nothing is in its way, and a way around where something is."""
    source, target, _ = grid.links
    street = Streets.of(grid, layout)
    last = grid.shape[1] - 1
    found: list[Points] = []
    for curve, low, high in zip(plain, source.tolist(), target.tolist(), strict=True):
        others = street.others(low, high, curve)
        bundled = grid.column[high] == last > grid.column[low]
        tries = [street.bundled(curve, high)] if bundled else []
        tries.append(curve)
        clear = (one for one in tries if not behind([one], others, [set()], CLEAR).any())
        route = next(clear, None)
        if route is None:
            around = partial(street.around, curve[0], curve[3], low, high)
            ends = (curve[0], curve[3])
            bounds = (-MARGIN, layout.columns[-1] + MARGIN)
            route = clear_route(*ends, others, bounds, around, BENDS[:FEW])
            if behind([route], others, [set()]).any():
                route = clear_route(*ends, others, bounds)
        found.append(route)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Streets:
    """Where edges can run between the boxes of a grid."""

    grid: Grid
    layout: Layout
    box: Boxes
    """(nodes, 4), of circles and diamonds empty."""
    boxed: Bool[np.ndarray, " nodes"]
    ends: dict[int, tuple[float, float]]
    """Lowest and highest of each row's boxes."""

    @classmethod
    def of(cls, grid: Grid, layout: Layout) -> Streets:
        """From where everything stands."""
        size = np.array([(one.width, one.height) for one in grid.glyphs]).reshape(-1, 2) / 2
        middle = np.stack([layout.x, layout.y], 1)
        box = np.concatenate([middle - size, middle + size], 1)
        boxed = np.array([bool(glyph.text) for glyph in grid.glyphs], bool)
        ends = {
            row: (float(box[some, 1].min()), float(box[some, 3].max()))
            for row in range(grid.shape[0])
            if (some := boxed & (grid.row == row)).any()
        }
        return cls(grid, layout, box, boxed, ends)

    def others(self, low: int, high: int, curve: Points) -> Boxes:
        """Boxes that may be in the way between two nodes."""
        some = self.boxed.copy()
        some[[low, high]] = False
        least, most = sorted((curve[0, 1], curve[-1, 1]))
        some &= (self.box[:, 3] > least - 60) & (self.box[:, 1] < most + 60)
        return self.box[some]

    def bundled(self, curve: Points, high: int) -> Points:
        """A curve into the last column that passes its lower left corner with all others."""
        floor = self.ends.get(int(self.grid.row[high]), (curve[3, 1], 0.0))[0]
        corner = np.array([self.layout.columns[-2] + 3.0, floor - ROOM - 1.0])
        start, end = curve[0], curve[3]
        rise = max(corner[1] - start[1], 8.0)
        across = max(corner[0] - start[0], 8.0)
        (x0, y0), (x1, y1), (x2, y2) = start.tolist(), corner.tolist(), end.tolist()
        first = [(x0, y0), (x0, y0 + 0.5 * rise), (x1 - min(0.5 * across, 110.0), y1), (x1, y1)]
        last = [(x1 + 0.6 * (x2 - x1), y1), (x2, y2 - max(y2 - y1, 2.0)), (x2, y2)]
        return np.array([*first, *last])

    def around(self, start: Points, end: Points, low: int, high: int) -> Points:
        """A route from one node up to another through the gaps of everything between them."""
        rows, edges = self.grid.row, self.layout.columns
        bounds = (-MARGIN, float(edges[-1]) + MARGIN)
        between = [
            crossing(self.box[self.boxed & (rows == row)], bounds)
            for row in range(int(rows[low]) + 1, int(rows[high]))
            if row in self.ends
        ]
        own = (
            self.ends.get(int(rows[low]), (0.0, float(start[1])))[1] + ROOM,
            self.ends.get(int(rows[high]), (float(end[1]), 0.0))[0] - ROOM,
        )
        first = self._out_of_cell(low, start[1], own[0], above=True)
        last = self._out_of_cell(high, end[1], own[1], above=False)
        inner = (
            first[0].low - ROOM / 2 if first else own[0],
            last[0].high + ROOM / 2 if last else own[1],
        )
        return through_gaps(start.tolist(), end.tolist(), [*first, *between, *last], inner)

    def _out_of_cell(self, node: int, edge: float, beyond: float, above: bool) -> list[Crossing]:
        """What lies between a node and the border of its row, in its own cell."""
        grid, box = self.grid, self.box
        some = self.boxed & (grid.row == grid.row[node]) & (grid.column == grid.column[node])
        some &= (box[:, 1] >= edge) if above else (box[:, 3] <= edge)
        if not some.any():
            return []
        column, edges = int(grid.column[node]), self.layout.columns
        whole = grid.row[node] == grid.shape[0] - 1
        bounds = (edges[0], edges[-1]) if whole else (edges[column], edges[column + 1])
        gaps = crossing(box[some], (float(bounds[0]), float(bounds[1]))).gaps
        near = float(box[some, 1].min() - ROOM) if above else float(box[some, 3].max() + ROOM)
        return [Crossing(min(near, beyond), max(near, beyond), gaps)]


def _bend(grid: Grid, layout: Layout) -> Float[np.ndarray, " edges"]:
    """How far each link leans aside: the steep ones that would run behind a glyph, inward."""
    source, target, _ = grid.links
    x, y = layout.x, layout.y
    steep = np.maximum(0, 1 - np.abs(x[target] - x[source]) / STEEP)
    bend = np.where(x[source] > layout.columns[-1] / 2, -1, 1) * steep
    bend *= np.clip(0.4 * (y[target] - y[source]), 0, 110)
    reach = np.array([glyph.width / 2 + GAP for glyph in grid.glyphs])
    for edge in np.flatnonzero(bend).tolist():
        low, high = source[edge], target[edge]
        between = (grid.row > grid.row[low]) & (grid.row < grid.row[high])
        line = x[low] + (x[high] - x[low]) * (y[between] - y[low]) / (y[high] - y[low])
        bend[edge] *= (np.abs(x[between] - line) < reach[between]).any()
    return bend


def text_width(text: str, size: float) -> float:
    """Width of one line in points, as wide as the widest of the usual sans-serif fonts."""
    return size * 1.12 * sum(_advance(char) for char in text)


def _advance(char: str) -> float:
    """Width of a character in em, roughly."""
    for width, holds in _WIDTHS:
        if holds(char):
            return width
    return 0.56


_WIDTHS: tuple[tuple[float, Callable[[str], bool]], ...] = (
    (0.0, lambda char: unicodedata.combining(char) > 0 or char == "\u200d"),
    (0.27, lambda char: char in "iljI|!.,:;'`"),
    (0.38, lambda char: char in 'ftr()[]{}-/\\"“”* '),
    (0.86, lambda char: char in "mwMW@%…→⊣"),
    (1.05, lambda char: unicodedata.east_asian_width(char) in "WF"),
    (0.70, str.isupper),
)
