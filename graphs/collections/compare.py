"""Two graphs beside each other: what they share, what one lacks, what changed.

Nodes are the same where kind, place in the layers and number (of a token: its text) agree, and the
positions they stand at go together (`graphs.collections.alignment`). With "anywhere" positions take
no part, which is how the viewer compares. Both graphs are pruned first, and what a node carries is
its influence as traced, as part of the answer, so that two answers of different odds compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphs import words
from graphs.collections.alignment import Pairs, aligned
from graphs.collections.compare_picture import draw
from graphs.collections.compare_words import sentences
from graphs.collections.compared import EDGE_COLUMNS, NODE_COLUMNS, Compared, EdgeKey
from graphs.collections.node_keys import (
    NodeKey,
    edge_shares,
    explained_tokens,
    node_keys,
    node_shares,
)
from graphs.graph import AttributionGraph
from graphs.schema import GraphError, NodeKind

CHANGE = 0.01
"""Part of the answer by which influence must differ to have changed."""
SKIPS = 0.75
"""Of the steps that one dictionary takes, what another takes at most where they disagree; what that
is worth on circuits that are known, benchmarks/ground_truth.py measures."""


@dataclass(frozen=True, eq=False)
class Comparison(Compared):
    """What two graphs have in common."""

    def sentences(self, count: int = 5) -> list[str]:
        """The comparison in words.

        Args:
            count: of nodes named in a list.

        Returns:
            Lines; shares in them are parts of the answer.
        """
        return sentences(self, count)

    def render(self, path: str | Path) -> Path:
        """Draw both side by side, every node at the same place, to .svg, .png, .pdf or .dot.

        Returns:
            The path written.

        Raises:
            GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot
                be written.
        """
        place = Path(path)
        draw(place, self)
        return place

    def to_json(self) -> dict[str, Any]:
        """Everything found, JSON throughout.

        Returns:
            prompts, align, columns, overlap, overlap_anywhere, notes, sentences, nodes, edges.
        """
        return {
            "prompts": [graph.metadata.get("prompt") for graph in (self.a, self.b)],
            "align": self.align,
            "columns": [list(pair) for pair in self.columns],
            "overlap": self.overlap,
            "overlap_anywhere": self.overlap_anywhere,
            "notes": list(self.notes),
            "sentences": self.sentences(),
            "nodes": self.nodes.to_pylist(),
            "edges": self.edges.to_pylist(),
        }


def compare(
    a: AttributionGraph,
    b: AttributionGraph,
    align: str = "text",
    nodes: float = 0.8,
    edges: float = 0.98,
    change: float = CHANGE,
) -> Comparison:
    """Compare two graphs of one model and dictionary.

    Args:
        a: one graph, pruned or not.
        b: the other.
        align: how positions go together: "text" (by the text of the tokens), "end" (counted from
            the end), "anywhere" (a feature is the same wherever it fires).
        nodes: share of node influence that both are pruned to, in (0, 1].
        edges: share of edge influence, likewise.
        change: part of the answer by which influence must differ to have changed.

    Returns:
        What is shared, missing and changed.

    Raises:
        GraphError: a share out of range, or another way of aligning.
    """
    if not 0 <= change <= 1:
        raise GraphError(f"change is {change}, expected a part of the answer from 0 to 1")
    small = (a.prune(nodes, edges), b.prune(nodes, edges))
    pairs = aligned(explained_tokens(a), explained_tokens(b), align)
    apart = _dictionaries_differ(a, b)
    sides = [
        _Side.of(whole, cut, None if align == "anywhere" else _columns(pairs, side), apart, side)
        for side, (whole, cut) in enumerate(zip((a, b), small, strict=True))
    ]
    node_rows = _node_rows(sides, change)
    edge_rows = _edge_rows(sides, change)
    return Comparison(
        a=small[0],
        b=small[1],
        align=align,
        columns=pairs,
        nodes=pa.Table.from_pylist([row for _, row in node_rows], pa.schema(NODE_COLUMNS)),
        edges=pa.Table.from_pylist([row for _, row in edge_rows], pa.schema(EDGE_COLUMNS)),
        keys=tuple(key for key, _ in node_rows),
        ends=tuple(key for key, _ in edge_rows),
        overlap=overlap(*(side.carried for side in sides)),
        overlap_anywhere=overlap(*(side.anywhere for side in sides)),
        notes=_notes(a, b, apart),
    )


def overlap(a: Mapping[NodeKey, float], b: Mapping[NodeKey, float]) -> float:
    """What the features of two graphs have in common.

    Returns:
        Sum of the smaller share over the sum of the larger, from 0 to 1; 0 without features.
    """
    names = {key for key in (*a, *b) if key.kind == NodeKind.FEATURE}
    pairs = [(a.get(key, 0.0), b.get(key, 0.0)) for key in sorted(names, key=str)]
    larger = sum(map(max, pairs))
    return sum(map(min, pairs)) / larger if larger else 0.0


@dataclass(frozen=True)
class _Side:
    """One graph, by the keys of its nodes."""

    graph: AttributionGraph
    ids: list[str]
    names: list[str]
    """Of its nodes, in words."""
    shares: list[float]
    """Part of the answer that each node carries."""
    keys: list[NodeKey]
    rows: dict[NodeKey, list[int]]
    carried: dict[NodeKey, float]
    """Part of the answer."""
    whole: dict[NodeKey, float]
    """The same before pruning."""
    anywhere: dict[NodeKey, float]
    """The same of the pruned graph, wherever nodes stand."""

    @classmethod
    def of(
        cls,
        whole: AttributionGraph,
        small: AttributionGraph,
        columns: Sequence[int] | None,
        apart: bool,
        side: int,
    ) -> _Side:
        def keys(graph: AttributionGraph, places: Sequence[int] | None) -> list[NodeKey]:
            found = node_keys(graph, places)
            return [_own(key, side) if apart else key for key in found]

        own = keys(small, columns)
        rows: dict[NodeKey, list[int]] = defaultdict(list)
        for row, key in enumerate(own):
            rows[key].append(row)
        tokens, shares = explained_tokens(small), node_shares(small).tolist()
        return cls(
            small,
            small.nodes["id"].to_pylist(),
            [_name(row, tokens) for row in small.nodes.to_pylist()],
            shares,
            own,
            dict(rows),
            _summed(own, shares),
            _summed(keys(whole, columns), node_shares(whole).tolist()),
            _summed(keys(small, None), shares),
        )


def _name(row: dict[str, Any], tokens: Sequence[str]) -> str:
    """A node in words; of an answer without its odds, which stand beside it."""
    if row["kind"] == NodeKind.LOGIT:
        return words.short_label(row) if row["token"] is None else words.word(row)
    return words.node(row, tokens)


def _own(key: NodeKey, side: int) -> NodeKey:
    """A feature's key that no other dictionary's has."""
    return key._replace(name=f"{side}:{key.name}") if key.kind == NodeKind.FEATURE else key


def _summed(keys: Sequence[NodeKey], shares: Sequence[float]) -> dict[NodeKey, float]:
    found: dict[NodeKey, float] = defaultdict(float)
    for key, share in zip(keys, shares, strict=True):
        found[key] += share
    return dict(found)


def _columns(pairs: Pairs, side: int) -> list[int]:
    """Of each position of one prompt, the column it stands in."""
    return [column for column, pair in enumerate(pairs) if pair[side] is not None]


def _dictionaries_differ(a: AttributionGraph, b: AttributionGraph) -> bool:
    known = [graph.metadata.get("transcoders_hash") for graph in (a, b)]
    return None not in known and known[0] != known[1]


def _notes(a: AttributionGraph, b: AttributionGraph, apart: bool) -> tuple[str, ...]:
    notes = []
    models = [graph.metadata.get("model") for graph in (a, b)]
    if models[0] != models[1]:
        notes.append(f"the graphs are of two models, {models[0]} and {models[1]}")
    if apart:
        notes.append(
            "the graphs are of two dictionaries, whose features have nothing but numbers in common:"
            " no feature was matched"
        )
        notes += _skipped(a, b)
    return tuple(notes)


def _skipped(a: AttributionGraph, b: AttributionGraph) -> list[str]:
    """What is to be said where two dictionaries disagree on the steps of one prompt."""
    one_model = a.metadata.get("model") == b.metadata.get("model")
    if not one_model or explained_tokens(a) != explained_tokens(b):
        return []
    (few, shorter), (many, longer) = sorted([(a.steps, "A"), (b.steps, "B")])
    if not few or few >= SKIPS * many:
        return []
    return [
        f"from a token to the answer influence passes {few:.1f} features in {shorter} and "
        f"{many:.1f} in {longer}: a sign that one dictionary leaves out or skips steps that the "
        "model takes, as cross-layer ones can; believe their edges only as far as `tracer "
        "validate` bears them out"
    ]


def _status(carried: Sequence[float | None], change: float, turned: bool = False) -> str:
    a, b = carried
    if a is None or b is None:
        return "only_b" if a is None else "only_a"
    return "changed" if turned or abs(b - a) >= change else "shared"


Found = list[tuple[Any, dict[str, Any]]]


def _in_order(found: Found) -> Found:
    """The largest change first, then the largest part of the answer, then as they stand."""
    return sorted(
        found,
        key=lambda one: (-abs(one[1]["change"]), -one[1]["influence_a"] - one[1]["influence_b"]),
    )


def _node_rows(sides: Sequence[_Side], change: float) -> Found:
    found = []
    for key in dict.fromkeys((*sides[0].rows, *sides[1].rows)):
        carried = [side.carried.get(key) for side in sides]
        side = sides[0] if carried[0] is not None else sides[1]
        absent = next((at for at, one in enumerate(carried) if one is None), None)
        strongest = max(side.rows[key], key=side.shares.__getitem__)
        values = [one or 0.0 for one in carried]
        row: dict[str, Any] = {
            "status": _status(carried, change),
            "kind": key.kind,
            "site": key.site,
            "name": side.names[strongest],
            "column": key.column,
            "change": values[1] - values[0],
            "pruned_away": None if absent is None else sides[absent].whole.get(key),
        }
        for letter, at, value in zip("ab", sides, values, strict=True):
            ids = [at.ids[here] for here in at.rows.get(key, [])]
            row |= {f"nodes_{letter}": ids, f"influence_{letter}": value}
        found.append((key, row))
    return _in_order(found)


def _edges_of(side: _Side) -> dict[EdgeKey, dict[str, Any]]:
    """Edges of one graph by their ends; influences and effects of equal ones summed."""
    found: dict[EdgeKey, dict[str, Any]] = {}
    shares = edge_shares(side.graph).tolist()
    table = side.graph.edges.select(["source", "target", "weight"]).to_pylist()
    for edge, share in zip(table, shares, strict=True):
        source, target = edge["source"], edge["target"]
        key = (side.keys[source], side.keys[target])
        one = found.setdefault(
            key, {"edges": [], "influence": 0.0, "weight": 0.0, "ends": (source, target)}
        )
        one["edges"].append(f"{side.ids[source]}__{side.ids[target]}")
        one["influence"] += share
        one["weight"] += float(edge["weight"])
    return found


def _edge_rows(sides: Sequence[_Side], change: float) -> Found:
    tables = [_edges_of(side) for side in sides]
    found = []
    for key in dict.fromkeys((*tables[0], *tables[1])):
        held = [table.get(key) for table in tables]
        at = 0 if held[0] is not None else 1
        one = held[at]
        assert one is not None
        carried = [None if edge is None else edge["influence"] for edge in held]
        effects = [None if edge is None else edge["weight"] for edge in held]
        turned = (effects[0] or 0.0) * (effects[1] or 0.0) < 0
        values = [value or 0.0 for value in carried]
        row: dict[str, Any] = {
            "status": _status(carried, change, turned),
            "source": sides[at].names[one["ends"][0]],
            "target": sides[at].names[one["ends"][1]],
            "change": values[1] - values[0],
        }
        for letter, edge, value, effect in zip("ab", held, values, effects, strict=True):
            names = [] if edge is None else edge["edges"]
            row |= {f"edges_{letter}": names, f"influence_{letter}": value,
                    f"weight_{letter}": effect}  # fmt: skip
        found.append((key, row))
    return _in_order(found)
