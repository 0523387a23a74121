"""The picture of a graph, as DOT text with our own coordinates.

Tokens are columns, layers are rows, and an edge is as wide as the influence it carries: its share
of the target's input from the nodes traced, times the influence of the target. The most influential
features are boxes with their label, the others circles whose area is their influence. Edges are
coloured by their sign or, on demand, by the head that carried them (`head_colours`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from graphs import words
from graphs.edges import STABILITY
from graphs.pictures import dot, placement
from graphs.pictures.captions import captions, question, row_names
from graphs.pictures.marks import COLOURS, look, shape, tier
from graphs.pictures.render import write_picture
from graphs.pictures.scene import Content, Scene, Style, compose
from graphs.schema import NodeKind

BANDS = ("#f7f6f1", "#f1efe8")
EDGE_BANDS = "#e9e7df"
LARGEST = 30_000
"""Pixels on a side that every drawing library can make."""


def draw(path: Path, content: Content, style: Style) -> None:
    """Write the picture in the format that the suffix of `path` names.

    Raises:
        GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot be
            written.
    """
    write_picture(path, lambda bitmap: dot_source(content, replace(style, bitmap=bitmap)))


def dot_source(content: Content, style: Style) -> str:
    """DOT text of a graph's picture, the source of every format."""
    scene = compose(content, style)
    statements = [*_background(scene), *_nodes(scene), *_edges(scene), *captions(scene)]
    extent = 200 + max(scene.places.columns[-1], scene.places.rows[-1])
    dpi = {"dpi": min(144.0, 72 * LARGEST / extent)} if style.bitmap else {}
    return dot.digraph(question(scene), statements, **dpi)


def _background(scene: Scene) -> list[str]:
    """Bands for the rows, rules for the columns."""
    columns, rows = scene.places.columns, scene.places.rows
    names = row_names(scene)
    last = len(names) - 1
    statements = []
    for at, (low, high) in enumerate(pairwise(rows)):
        fill = EDGE_BANDS if at in (0, last) else BANDS[at % 2]
        box = (0.0, low, columns[-1], high)
        statements.append(dot.rectangle(f"band {at}", box, fill, names[at]))
    for at, x in enumerate(columns[1:-1], start=1):
        box = (x - 0.6, rows[0], x + 0.6, rows[-1])
        statements.append(dot.rectangle(f"rule {at}", box, "#ffffff", f"from position {at}"))
    return statements


def _edges(scene: Scene) -> list[str]:
    """Weakest first; `_nodes` tells in which order they are painted."""
    rows, style = scene.rows, scene.style
    edges, heads = scene.content.edges.take(scene.drawn).to_pylist(), scene.heads
    curves = placement.routes(scene.grid, scene.places, style.curved)
    peak = max((edge["influence"] for edge in edges), default=0.0)
    statements = []
    for rank, (edge, route) in enumerate(zip(edges, curves, strict=True)):
        source, target = rows[edge["source"]], rows[edge["target"]]
        strength = tier(len(edges) - rank)
        kind = "excites" if edge["weight"] > 0 else "inhibits"
        grey = source["kind"] == NodeKind.ERROR
        size = (edge["influence"] / peak) ** 0.5 if peak else 0.0
        number = int(scene.drawn[rank])
        colour = COLOURS["error" if grey else kind][strength]
        said = _edge_tooltip(edge, source, target)
        if heads is not None:
            colour, said = heads.colour(number, strength), f"{said}\n{heads.said(number)}"
        statements.append(
            dot.edge(
                source["id"], target["id"], route.ravel().tolist(),
                id=f"edge_{source['id']}__{target['id']}",
                head=None, **{"class": f"{kind} tier{strength}{' from_error' if grey else ''}"},
                color=colour,
                penwidth=f"{0.5 + 4.0 * size:.2f}",
                style="solid" if edge["weight"] > 0 else "dashed",
                tooltip=dot.text(said),
            )
        )  # fmt: skip
    return statements


def _edge_tooltip(edge: dict[str, Any], source: dict[str, Any], target: dict[str, Any]) -> str:
    return (
        f"{_name(source)} {'→' if edge['weight'] > 0 else '⊣'} {_name(target)}\n"
        f"effect {edge['weight']:+.4g}, {100 * edge['share']:+.1f}% of the input\n"
        f"influence {edge['influence']:.4g}{_stable(edge)}"
    )


def _stable(row: dict[str, Any]) -> str:
    """How stable a node or an edge is, where somebody asked."""
    known = row.get(STABILITY)
    return f"\nstability {words.percent(known)}" if isinstance(known, float) else ""


def _name(row: dict[str, Any]) -> str:
    return row["label"] or (row["text"] or "").strip() or row["id"]


def _nodes(scene: Scene) -> list[str]:
    """All nodes, those with the strongest outputs last.

    Graphviz paints edges by source, in the order in which the nodes stand: so the strongest
    edges come last, over the others.
    """
    rank = np.full(len(scene.rows), -1)
    rank[scene.grid.links[0]] = np.arange(len(scene.drawn))
    x, y = scene.places.x.tolist(), scene.places.y.tolist()
    return [
        dot.node(
            scene.rows[at]["id"],
            (x[at], y[at]),
            id=f"node_{scene.rows[at]['id']}",
            **shape(scene.grid.glyphs[at], scene.rows[at]["kind"]),
            **look(scene.rows[at]["kind"], at in scene.marked, at == scene.answer),
            tooltip=dot.text(_node_tooltip(scene.rows[at], scene.tokens)),
        )
        for at in np.argsort(rank, kind="stable").tolist()
    ]


def _node_tooltip(row: dict[str, Any], tokens: list[str]) -> str:
    place = f"position {row['position']} “{tokens[row['position']]}”"
    layer = f"layer {row['layer']}, " if row["kind"] in (NodeKind.FEATURE, NodeKind.ERROR) else ""
    lines = [_name(row), f"{row['kind']} {row['id']}: {layer}{place}"]
    if row["activation"] is not None and row["kind"] == NodeKind.FEATURE:
        lines.append(f"activation {row['activation']:.4g}")
    if row["probability"] and row["kind"] == NodeKind.LOGIT:
        lines.append(f"probability {words.percent(row['probability'])}")
    lines.append(f"influence {row['influence']:.4g}{_stable(row)}")
    return "\n".join(lines)
