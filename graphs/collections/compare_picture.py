"""Two graphs side by side, what they share marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphs import words
from graphs.collections.compare_words import asked
from graphs.collections.compared import Compared
from graphs.collections.node_keys import NodeKey, explained_tokens
from graphs.graph import AttributionGraph
from graphs.pictures.panels import Mark, PanelEdge, PanelNode, Panels, Stroke, panels_source
from graphs.pictures.render import write_picture
from graphs.schema import NodeKind

SHARED, CHANGED, ALONE = "#d5ead8", "#fff2c4", ("#f9d9c2", "#cfdff2")
"""Fill of what both have, of what changed, and of what one has alone."""
LINES = {"shared": "#5a8f66", "changed": "#b08a2e", "only_a": "#c05c1e", "only_b": "#2f6db5"}
FILLS = {"shared": SHARED, "changed": CHANGED, "only_a": ALONE[0], "only_b": ALONE[1]}
BOXES, EDGES = 22, 150
"""Features with their label, and edges drawn, of both graphs together."""


def draw(path: Path, found: Compared) -> None:
    """Write the picture in the format that the suffix of `path` names.

    Raises:
        GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot be
            written.
    """
    write_picture(path, lambda bitmap: panels_source(panels_of(found), bitmap))


def panels_of(found: Compared) -> Panels:
    """What is drawn of a comparison."""
    rows = found.nodes.to_pylist()
    known = {key: at for at, key in enumerate(found.keys)}
    ranked = sorted(range(len(rows)), key=lambda at: -_peak(rows[at]))
    features = [at for at in ranked if rows[at]["kind"] == NodeKind.FEATURE]
    boxed = set(features[:BOXES])
    parts = {side: _parts(graph) for side, graph in enumerate((found.a, found.b))}
    nodes = [
        _node(row, key, at in boxed, parts, found)
        for at, (row, key) in enumerate(zip(rows, found.keys, strict=True))
    ]
    drawn = sorted(
        zip(found.edges.to_pylist(), found.ends, strict=True), key=lambda one: -_peak(one[0])
    )[:EDGES]
    peak = max((_peak(row) for row, _ in drawn), default=1.0) or 1.0
    edges = [_edge(row, (known[ends[0]], known[ends[1]]), peak) for row, ends in drawn]
    tokens = [explained_tokens(graph) for graph in (found.a, found.b)]
    return Panels(
        title=f"{asked(found.a)} beside {asked(found.b)}",
        heads=[_head("A", found.a), _head("B", found.b)],
        columns=[
            ["" if (at := pair[side]) is None else words.token(tokens[side][at])
             for pair in found.columns]
            for side in (0, 1)
        ],
        nodes=nodes,
        edges=edges,
        legend=[
            (SHARED, "in both"), (CHANGED, "in both, influence changed"), (ALONE[0], "in A alone"),
            (ALONE[1], "in B alone"),
            ("", f"dashed: inhibits; width: influence; the {len(edges)} strongest edges of "
                 f"{found.edges.num_rows}"),
        ],
        layers=_layers(found),
    )  # fmt: skip


def _peak(row: dict[str, Any]) -> float:
    return max(row["influence_a"], row["influence_b"])


def _layers(found: Compared) -> int:
    inner = ("feature", "error")
    return 1 + max(
        (
            row["layer"]
            for graph in (found.a, found.b)
            for row in graph.nodes.select(["kind", "layer"]).to_pylist()
            if row["kind"] in inner
        ),
        default=-1,
    )


def _head(letter: str, graph: AttributionGraph) -> list[str]:
    pruned = graph.metadata.get("pruned")
    size = f"{graph.nodes.num_rows:,} nodes, {graph.effect.nnz:,} edges"
    kept = f" (thresholds {pruned['nodes']:g} and {pruned['edges']:g})" if pruned else ", unpruned"
    return [f"{letter}: {asked(graph)}", size + kept]


Parts = dict[str, dict[str, Any]]


def _parts(graph: AttributionGraph) -> Parts:
    return {row["id"]: row for row in graph.nodes.to_pylist()}


def _node(
    row: dict[str, Any], key: NodeKey, boxed: bool, parts: dict[int, Parts], found: Compared
) -> PanelNode:
    side = 0 if row["nodes_a"] else 1
    first = parts[side][row[f"nodes_{'ab'[side]}"][0]]
    column = row["column"]
    if column is None:  # an answer, or a feature wherever it fires
        column = [pair[side] for pair in found.columns].index(first["position"])
    marks = tuple(
        Mark(FILLS[row["status"]], _tooltip(row, letter), LINES[row["status"]],
             1.6 if row["status"] == "changed" else 0.8) if row[f"nodes_{letter}"] else None
        for letter in "ab"
    )  # fmt: skip
    size = 5 + 9 * min(1.0, _peak(row)) ** 0.5
    text = _caption(row, first, boxed)
    site = "logits" if row["kind"] == NodeKind.LOGIT else key.site
    return PanelNode(site, column, text, size, marks, row["kind"] == NodeKind.ERROR)


def _caption(row: dict[str, Any], node: dict[str, Any], boxed: bool) -> str:
    if row["kind"] == NodeKind.EMBEDDING:
        return words.clipped(words.token(node["text"] or f"[{node['token']}]"), 16)
    if row["kind"] == NodeKind.LOGIT:
        name = words.short_label(node) if node["token"] is None else words.word(node)
        odds = [words.percent(row[f"influence_{one}"]) for one in "ab" if row[f"nodes_{one}"]]
        return f"{words.clipped(name, 18)}\n{' → '.join(odds)}"
    named = boxed and row["kind"] == NodeKind.FEATURE
    return words.clipped(words.short_label(node), 18) if named else ""


def _tooltip(row: dict[str, Any], letter: str) -> str:
    shares = ", ".join(
        f"{words.percent(row[f'influence_{one}'])} in {one.upper()}"
        for one in "ab"
        if row[f"nodes_{one}"]
    )
    ids = ", ".join(row[f"nodes_{letter}"])
    return f"{row['name']}\n{row['status'].replace('_', ' ')}: {shares} of the answer\n{ids}"


def _edge(row: dict[str, Any], ends: tuple[int, int], peak: float) -> PanelEdge:
    strokes: list[Stroke | None] = []
    for letter in "ab":
        weight = row[f"weight_{letter}"]
        if weight is None:
            strokes.append(None)
            continue
        carried = row[f"influence_{letter}"]
        sign = "→" if weight > 0 else "⊣"
        said = (
            f"{row['source']} {sign} {row['target']}\n{row['status'].replace('_', ' ')}: "
            f"{words.percent(carried)} of the answer, effect {weight:+.4g}"
        )
        width = 0.5 + 3.5 * (carried / peak) ** 0.5
        strokes.append(Stroke(f"{LINES[row['status']]}b0", width, said, weight <= 0))
    return PanelEdge(*ends, _peak(row), tuple(strokes))
