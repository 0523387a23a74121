"""Consensus circuits as pictures: a panel a group, the same node at the same place in each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphs import words
from graphs.collections.aggregate_words import in_words, interval, name_of, place, summary
from graphs.pictures.panels import Mark, PanelEdge, PanelNode, Panels, Stroke, panels_source
from graphs.pictures.render import write_picture
from graphs.schema import NodeKind

SHADES = ("#f4f7fb", "#d6e4f2", "#a9c8e6", "#7fb0dc")
SHADED_FROM = (0.5, 0.75, 1.0)
"""Frequencies from which a node has the next fill."""
EXCITES, INHIBITS = "#5a8f66b0", "#c0483eb0"
BOXES, EDGES = 24, 150
"""Features with their label, and edges drawn, of all groups together."""


@dataclass(frozen=True)
class Group:
    """The consensus circuit of one group."""

    name: str
    prompts: int
    nodes: Sequence[dict[str, Any]]
    edges: Sequence[dict[str, Any]]


def draw(path: Path, groups: Sequence[Group], frequency: float) -> None:
    """Write the picture in the format that the suffix of `path` names.

    Args:
        path: where.
        groups: one or more.
        frequency: share of the graphs that hold each node and edge at least.

    Raises:
        GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot be
            written.
    """
    write_picture(path, lambda bitmap: panels_source(panels_of(groups, frequency), bitmap))


def panels_of(groups: Sequence[Group], frequency: float) -> Panels:
    """What is drawn of the groups."""
    held = [{row["node"]: row for row in group.nodes} for group in groups]
    known = sorted({node for rows in held for node in rows})
    first = {node: next(rows[node] for rows in held if node in rows) for node in known}
    places = sorted({row["place"] for row in first.values()}, reverse=True) or [0]
    features = [node for node in known if first[node]["kind"] == NodeKind.FEATURE]
    boxed = set(sorted(features, key=lambda node: -_peak(held, node))[:BOXES])
    nodes = [
        _node(first[node], [rows.get(node) for rows in held], places, node in boxed)
        for node in known
    ]
    edges = _edges(groups, {node: at for at, node in enumerate(known)})
    drawn, names = edges[:EDGES], ["end" if at == 0 else f"−{at}" for at in places]
    return Panels(
        title="What the graphs of a dataset have in common",
        heads=[_head(group, frequency) for group in groups],
        columns=[names] * len(groups),
        nodes=nodes,
        edges=drawn,
        legend=[
            (SHADES[0], "in under half of the graphs"), (SHADES[1], "half"),
            (SHADES[2], "three quarters"), (SHADES[3], "all of them"),
            ("", "columns: where a node usually stands, from the last token; dashed: inhibits; "
                 f"width: mean influence; {len(drawn)} edges of {len(edges)}"),
        ],
        layers=1 + max((row["layer"] for row in first.values() if row["layer"] is not None),
                       default=-1),
    )  # fmt: skip


def _head(group: Group, frequency: float) -> list[str]:
    said = summary(group.name, group.prompts, frequency, [*group.nodes], [*group.edges])
    name, _, rest = said.rpartition(": ")
    return [words.clipped(name, 60), rest]


def _peak(held: Sequence[dict[int, dict[str, Any]]], node: int) -> float:
    return max(float(rows[node]["influence"]) for rows in held if node in rows)


def _node(
    row: dict[str, Any], own: Sequence[dict[str, Any] | None], places: list[int], boxed: bool
) -> PanelNode:
    marks = tuple(
        None
        if one is None
        else Mark(SHADES[bisect_right(SHADED_FROM, one["frequency"] + 1e-9)], _tooltip(one))
        for one in own
    )
    peak = max(one["influence"] for one in own if one is not None)
    kind = row["kind"]
    named = boxed or kind in (NodeKind.EMBEDDING, NodeKind.LOGIT)
    text = words.clipped(name_of(row), 18) if named else ""
    size = 5 + 9 * min(1.0, peak) ** 0.5
    return PanelNode(row["site"], places.index(row["place"]), text, size, marks,
                     kind == NodeKind.ERROR)  # fmt: skip


def _tooltip(row: dict[str, Any]) -> str:
    return (
        f"{in_words(row)}\nin {interval(row, 'frequency', 'frequency_low', 'frequency_high')} of "
        f"the graphs, usually {place(row['place'])}\n"
        f"carries {interval(row, 'influence', 'low', 'high')} of the answer"
    )


def _edges(groups: Sequence[Group], at: dict[int, int]) -> list[PanelEdge]:
    """Edges of all groups, the strongest first."""
    found: dict[tuple[int, int], list[dict[str, Any] | None]] = {}
    for number, group in enumerate(groups):
        for row in group.edges:
            ends = (row["source_node"], row["target_node"])
            found.setdefault(ends, [None] * len(groups))[number] = row
    strength = {
        ends: max(row["influence"] for row in rows if row is not None)
        for ends, rows in found.items()
    }
    peak = max(strength.values(), default=1.0) or 1.0
    return [
        PanelEdge(at[ends[0]], at[ends[1]], strength[ends],
                  tuple(None if row is None else _stroke(row, peak) for row in found[ends]))
        for ends in sorted(found, key=lambda ends: (-strength[ends], ends))
    ]  # fmt: skip


def _stroke(row: dict[str, Any], peak: float) -> Stroke:
    sign = "→" if row["sign"] > 0 else "⊣"
    said = (
        f"{row['source']} {sign} {row['target']}\n"
        f"in {interval(row, 'frequency', 'frequency_low', 'frequency_high')} of the graphs\n"
        f"carries {interval(row, 'influence', 'low', 'high')} of the answer"
    )
    width = 0.5 + 3.5 * (row["influence"] / peak) ** 0.5
    colour = EXCITES if row["sign"] > 0 else INHIBITS
    return Stroke(colour, width, said, row["sign"] <= 0)
