"""Several pictures on one grid, side by side: the same node stands at the same place in each.

What compares or sums graphs draws with it: the caller says which nodes and edges there are, how
they look in each panel, and this module places and routes them once, for all panels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphs import node_sites, words
from graphs.pictures import dot, placement
from graphs.pictures.marks import FONT, box
from graphs.pictures.placement import Glyph, Grid, Layout

BANDS = ("#f7f6f1", "#f1efe8")
INK, GREY = "#222222", "#777777"
APART = 90.0
"""Points between two panels: room for the names of rows."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a node looks in one panel."""

    fill: str
    tooltip: str
    line: str = "#333333"
    width: float = 0.8
    """Of its outline, in points."""


@dataclass(frozen=True, slots=True)
class PanelNode:
    """One node of all panels."""

    site: str
    column: int
    text: str
    """Of its box; empty for a circle, or a diamond where `error`."""
    size: float
    """Of a circle: diameter in points."""
    marks: tuple[Mark | None, ...]
    """One a panel, None where it is not."""
    error: bool = False


@dataclass(frozen=True, slots=True)
class Stroke:
    """How an edge looks in one panel."""

    colour: str
    width: float
    tooltip: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class PanelEdge:
    """One edge of all panels; ends count the nodes."""

    source: int
    target: int
    strength: float
    strokes: tuple[Stroke | None, ...]


@dataclass(frozen=True, slots=True)
class Panels:
    """What to draw."""

    title: str
    heads: Sequence[Sequence[str]]
    """Lines over each panel, the first one large."""
    columns: Sequence[Sequence[str]]
    """Of each panel, the token over every column; '' for none."""
    nodes: Sequence[PanelNode]
    edges: Sequence[PanelEdge]
    """Strongest first."""
    legend: Sequence[tuple[str, str]]
    """Fill of a box, and what it means."""
    layers: int


def panels_source(panels: Panels, bitmap: bool = False) -> str:
    """DOT text of panels beside each other, every position given.

    Args:
        panels: what to draw.
        bitmap: for PNG.
    """
    bands = node_sites.bands((node.site for node in panels.nodes), panels.layers)
    order = {site: at for at, site in enumerate(bands)}
    grid = Grid(
        glyphs=[_glyph(node) for node in panels.nodes],
        row=np.array([order[node.site] for node in panels.nodes], int),
        column=np.array([node.column for node in panels.nodes], int),
        shape=(len(bands), len(panels.columns[0])),
        links=(
            np.array([edge.source for edge in panels.edges], int),
            np.array([edge.target for edge in panels.edges], int),
            np.array([edge.strength for edge in panels.edges], float),
        ),
    )
    layout = placement.place(grid)
    routes = placement.routes(grid, layout, curved=True)
    statements = []
    for at in range(len(panels.heads)):
        shift = at * (float(layout.columns[-1]) + APART)
        statements += _background(at, layout, list(bands.values()), panels.columns[at], shift)
        statements += _head(at, panels.heads[at], layout, shift)
        statements += _nodes(at, panels.nodes, grid, layout, shift)
        statements += _edges(at, panels.edges, routes, shift)
    statements += _legend(panels.legend)
    extent = len(panels.heads) * (float(layout.columns[-1]) + APART) + 200
    dpi = {"dpi": min(144.0, 72 * 30_000 / extent)} if bitmap else {}
    return dot.digraph(panels.title, statements, **dpi)


def _glyph(node: PanelNode) -> Glyph:
    return box(node.text) if node.text else Glyph(node.size, node.size)


def _text(
    name: str, text: str, place: tuple[float, float], width: float, **look: str | float
) -> str:
    """A line of text in the middle of `place`."""
    plain: dict[str, str | float] = {"fontsize": 8.0, "fontcolor": GREY}
    return dot.node(
        name, place, shape="plaintext", style="", width=f"{width / 72:.4f}", height=0.2,
        **{"id": name.replace(" ", "_"), "class": name.split(" ")[0], "label": dot.text(text)}
        | plain | look,
    )  # fmt: skip


def _left(text: str) -> str:
    """A label that begins at the left."""
    return dot.text(text) + "\\l"


def _background(
    at: int, layout: Layout, names: list[str], columns: Sequence[str], shift: float
) -> list[str]:
    """Bands for the rows with their names, rules and tokens for the columns."""
    right = float(layout.columns[-1])
    statements = []
    for row, (low, high) in enumerate(pairwise(layout.rows.tolist())):
        bounds = (shift, low, shift + right, high)
        fill = BANDS[row % 2]
        statements.append(dot.rectangle(f"band {at} {row}", bounds, fill, names[row]))
        statements.append(
            _text(f"row {at} {row}", names[row], (shift - 30.0, (low + high) / 2), 50.0)
        )
    for column, (low, high) in enumerate(pairwise(layout.columns.tolist())):
        if columns[column]:
            name = words.clipped(columns[column], 16)
            middle = (shift + (low + high) / 2, -9.0)
            statements.append(_text(f"column {at} {column}", name, middle, 40.0))
    return statements


def _head(at: int, lines: Sequence[str], layout: Layout, shift: float) -> list[str]:
    top, statements = float(layout.rows[-1]) + 8 + 13.0 * len(lines), []
    for number, line in enumerate(lines):
        look: dict[str, str | float] = {"fontcolor": INK}
        if number == 0:
            look |= {"fontsize": 11.0, "fontname": "Helvetica-Bold"}
        size = 11.0 if number == 0 else 8.0
        width = max(float(layout.columns[-1]), 1.1 * placement.text_width(line, size) + 8)
        place = (shift + width / 2, top - 13.0 * number)
        statements.append(
            _text(f"head {at} {number}", line, place, width, label=_left(line), **look)
        )
    return statements


def _nodes(
    at: int, nodes: Sequence[PanelNode], grid: Grid, layout: Layout, shift: float
) -> list[str]:
    statements = []
    for number, node in enumerate(nodes):
        mark = node.marks[at]
        if mark is None:
            continue
        glyph = grid.glyphs[number]
        form = "box" if glyph.text else "diamond" if node.error else "circle"
        statements.append(
            dot.node(
                f"panel {at} {number}",
                (float(layout.x[number]) + shift, float(layout.y[number])),
                shape=form, style="rounded,filled" if form == "box" else "filled",
                width=f"{glyph.width / 72:.4f}", height=f"{glyph.height / 72:.4f}",
                label=dot.text(glyph.text), fontsize=FONT, fillcolor=mark.fill, color=mark.line,
                penwidth=f"{mark.width:.2f}", tooltip=dot.text(mark.tooltip),
                id=f"node_{at}_{number}",
            )
        )  # fmt: skip
    return statements


def _edges(
    at: int, edges: Sequence[PanelEdge], routes: Sequence[np.ndarray], shift: float
) -> list[str]:
    """Weakest first."""
    statements = []
    for edge, route in reversed(list(zip(edges, routes, strict=True))):
        stroke = edge.strokes[at]
        if stroke is None:
            continue
        moved = route + np.array([shift, 0.0])
        statements.append(
            dot.edge(
                f"panel {at} {edge.source}", f"panel {at} {edge.target}", moved.ravel().tolist(),
                id=f"edge_{at}_{edge.source}__{edge.target}", color=stroke.colour,
                penwidth=f"{stroke.width:.2f}", style="dashed" if stroke.dashed else "solid",
                tooltip=dot.text(stroke.tooltip),
            )
        )  # fmt: skip
    return statements


def _legend(meanings: Sequence[tuple[str, str]]) -> list[str]:
    x, y, statements = 0.0, -34.0, []
    for at, (fill, meaning) in enumerate(meanings):
        room = placement.text_width(meaning, 8.0) + 4
        if fill:
            look = {"style": "rounded,filled", "fillcolor": fill, "color": "#333333"}
            statements.append(
                dot.node(f"legend {at}", (x + 9, y), shape="box", width="0.2500", height="0.1528",
                         label="", penwidth=0.8, **look)
            )  # fmt: skip
            x += 22
        statements.append(
            _text(f"meaning {at}", meaning, (x + room / 2, y), room, label=_left(meaning))
        )
        x += room + 16
    return statements
