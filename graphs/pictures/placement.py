"""Where everything in a picture stands: tokens are columns, layers are rows.

Lengths are points (1/72 inch), x to the right, y upward. A cell is one column in one row; its
glyphs stand side by side, in as many lines as it takes, the first on top.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

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


def routes(grid: Grid, layout: Layout, curved: bool) -> Float[np.ndarray, "edges 8"]:
    """A cubic Bézier for every link, from the top of its source to the bottom of its target.

    Leaves and enters vertically, so that labels are struck through less and the point of entry
    shows; ends on wide glyphs are fanned by where the other end lies. An edge that would run
    straight up behind the glyphs between its ends bends around them. Straight if not `curved`.

    Returns:
        (edges, 8) x and y of the four points of each curve, in points.
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
    return np.stack([x0, y0, *inner, x3, y3], axis=1)


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
