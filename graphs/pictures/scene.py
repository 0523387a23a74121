"""What of a graph is drawn, as what, and where: decided once, before any text is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from graphs import node_sites, words
from graphs.edges import share_matrix
from graphs.paths import strongest, without_skips
from graphs.pictures import placement
from graphs.pictures.head_colours import HeadColours, head_colours
from graphs.pictures.marks import box
from graphs.pictures.placement import Glyph, Grid, Layout
from graphs.schema import NodeKind, is_kind, number
from graphs.scores import Scores

LINES = 3
"""Of a label whose truth was measured: it says where the feature fires."""


@dataclass(frozen=True, slots=True)
class Style:
    """What to draw of a graph, and how."""

    edges: int | None = 300
    """At most so many edges, by influence; None for all."""
    labels: int = 18
    """So many features as boxes with their label, by influence; those of the main path besides."""
    curved: bool = True
    """Curves, or straight lines."""
    bitmap: bool = False
    """For PNG: at twice the resolution of the screen, less where it would grow too large."""
    heads: bool = False
    """Colour edges by the head that carried them, instead of by sign."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a picture is of: a graph as tables, as the exports take it."""

    nodes: pa.Table
    """One row a node, columns as `graphs.schema.COLUMNS`."""
    edges: pa.Table
    """One row an edge, as `graphs.edges.edge_table` gives them."""
    scores: Scores
    metadata: dict[str, Any]
    """Prompt, tokens and layers, and what was pruned."""
    heads: pa.Table | None = None
    """Edges split over heads, as `graphs.attention_tables` has them."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A graph with everything decided that its drawing needs."""

    content: Content
    rows: list[dict[str, Any]]
    drawn: np.ndarray
    """Row numbers in `content.edges` of the edges drawn, weakest first."""
    answer: int | None
    """The target of the largest weight."""
    marked: frozenset[int]
    """Nodes on the strongest path through features."""
    tokens: list[str]
    bands: dict[str, str]
    """Site -> name of the row that its nodes stand in, from below."""
    grid: Grid
    places: Layout
    style: Style
    heads: HeadColours | None
    """What carried each edge, where the style asks for it."""


def compose(content: Content, style: Style) -> Scene:
    """Choose edges and boxes, size every glyph, and place it.

    Raises:
        GraphError: heads are asked for and the graph does not say which carried its edges.
    """
    rows = content.nodes.to_pylist()
    drawn = _strongest_edges(content, style.edges)
    marked = _main_path(content)
    boxed = _most_influential(content, style.labels) | marked
    tokens = _tokens(content, rows)
    peak = max((row["influence"] for row in rows if row["kind"] == NodeKind.FEATURE), default=0.0)
    ends = (content.edges[name].to_numpy()[drawn] for name in ("source", "target", "influence"))
    layers = 1 + max((row["layer"] for row in rows if row["kind"] != NodeKind.LOGIT), default=-1)
    count = max(layers, _count(content.metadata.get("layers")))
    bands = node_sites.bands((row["site"] for row in rows), count)
    band = {site: at for at, site in enumerate(bands)}
    lines = LINES if content.metadata.get("labels") else 2
    grid = Grid(
        glyphs=[_glyph(row, at in boxed, peak, tokens, lines) for at, row in enumerate(rows)],
        row=np.array([band[_stands(row)] for row in rows], int),
        column=np.array([row["position"] for row in rows], int),
        shape=(len(bands), len(tokens)),
        links=tuple(ends),
    )
    return Scene(
        content,
        rows,
        drawn,
        _answer(rows),
        marked,
        tokens,
        bands,
        grid,
        placement.place(grid),
        style,
        _heads(content, drawn) if style.heads else None,
    )


def _heads(content: Content, drawn: np.ndarray) -> HeadColours:
    return head_colours(content.nodes, content.edges, content.heads, drawn)


def _answer(rows: list[dict[str, Any]]) -> int | None:
    logits = (at for at, row in enumerate(rows) if row["kind"] == NodeKind.LOGIT)
    return max(logits, key=lambda at: (rows[at]["probability"] or 0, -at), default=None)


def _strongest_edges(content: Content, count: int | None) -> np.ndarray:
    order = np.argsort(-content.edges["influence"].to_numpy(), kind="stable")
    return order[:count][::-1]


def _most_influential(content: Content, count: int) -> frozenset[int]:
    feature = is_kind(content.nodes, NodeKind.FEATURE)
    order = np.argsort(-number(content.nodes, "influence"), kind="stable")
    return frozenset(order[feature[order]][:count].tolist())


def _main_path(content: Content) -> frozenset[int]:
    """Nodes of the strongest path from a token that goes through a feature, if there is one.

    With the steps between that carry more than an edge of it does.
    """
    token, logit = (is_kind(content.nodes, k) for k in (NodeKind.EMBEDDING, NodeKind.LOGIT))
    share = share_matrix(content.edges, len(token))
    target = np.repeat(np.arange(len(token)), np.diff(share.indptr))
    share.data[token[share.indices] & logit[target]] = 0
    weight = number(content.nodes, "probability")
    best = strongest(share, weight, token, 1)
    return frozenset(without_skips(share, weight, best[0].nodes) if best else ())


def _tokens(content: Content, rows: list[dict[str, Any]]) -> list[str]:
    """Text over every column: the prompt's tokens, or what the nodes know of them."""
    count = 1 + max((row["position"] for row in rows), default=0)
    tokens = [words.token(text) for text in content.metadata.get("tokens", [])[:count]]
    return tokens or [str(position) for position in range(count)]


def _count(value: object) -> int:
    """A number of layers from foreign metadata, unless it is absurd."""
    return value if isinstance(value, int) and 0 <= value <= 1000 else 0


def _stands(row: dict[str, Any]) -> str:
    """The site whose row a node stands in: targets stand together, wherever they read."""
    return node_sites.LOGITS if row["kind"] == NodeKind.LOGIT else str(row["site"])


def _glyph(row: dict[str, Any], boxed: bool, peak: float, tokens: list[str], lines: int) -> Glyph:
    size = (row["influence"] / peak) ** 0.5 if peak else 0.0
    if row["kind"] == NodeKind.ERROR:
        side = 8 + 5 * min(size, 1.0)
        return Glyph(side, side)
    if row["kind"] == NodeKind.FEATURE and not boxed:
        return Glyph(5 + 9 * size, 5 + 9 * size)
    return box(_caption(row, tokens, lines))


def _caption(row: dict[str, Any], tokens: list[str], lines: int) -> str:
    """What a box says, on one line or several."""
    if row["kind"] == NodeKind.EMBEDDING:
        return words.clipped(tokens[row["position"]], 16)
    if row["kind"] == NodeKind.LOGIT:
        name = (
            words.token(row["text"] or "") if row["token"] is not None else words.short_label(row)
        )
        return f"{words.clipped(name, 18)} {words.percent(row['probability'] or 0)}"
    name, (_, on) = words.short_label(row), words.label_parts(row["label"])
    if on and on != tokens[row["position"]]:
        return f"{words.clipped(name, 18)}\non {words.clipped(on, 15)}"
    return "\n".join(words.wrapped(name, 18, lines))
