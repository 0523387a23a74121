"""A graph that the viewer shows: read from its folder, and what a user made of it written back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphs import AttributionGraph, NodeKind
from graphs.viewer.beside import read_beside, write_beside
from graphs.viewer.payload import Extras
from tracer.errors import TraceError
from tracer.features.panel import panels
from tracer.features.store import FeatureStore

NAME, LABEL = 200, 2000
"""Characters of a group's name and of a label, at most."""


@dataclass(frozen=True)
class Served:
    """One graph's folder or .zip."""

    path: Path
    store: FeatureStore | None = None

    def graph(self) -> AttributionGraph:
        """Read it as it now is.

        Returns:
            The graph.

        Raises:
            GraphError: it cannot be read.
        """
        return AttributionGraph.load(self.path)

    def packed(self, opening: Mapping[str, float]) -> bytes:
        """The graph with what stands beside it, as the viewer reads it.

        Returns:
            gzip.

        Raises:
            GraphError: it, or a file beside it, cannot be read.
        """
        graph = self.graph()
        known = {} if self.store is None else panels(self.store, graph)
        return graph.packed(Extras(known, opening, beside=read_beside(self.path)))

    def save(self, wanted: object) -> None:
        """Write labels, groups and view back, each whole or not at all.

        Args:
            wanted: `{labels: {id: text}, groups: [{name, members, place}], view: {...}}`, as JSON
                gave it.

        Raises:
            TraceError: it is anything else, or names nodes that the graph does not have.
            GraphError: the place cannot be written.
        """
        graph = self.graph()
        labels, groups, view = checked(wanted, {*graph.nodes["id"].to_pylist()})
        if self.path.is_file() and (groups or view):
            if labels:
                _relabelled(graph, labels).save(self.path)
            raise TraceError(
                f"{self.path.name} is a .zip, which keeps labels only: groups and view need the "
                "graph as a folder (tracer prune GRAPH.zip -o FOLDER --nodes 1 --edges 1)"
            )
        if labels:
            _relabelled(graph, labels).save(self.path)
        write_beside(self.path, groups, view)


def _relabelled(graph: AttributionGraph, labels: Mapping[str, str]) -> AttributionGraph:
    """The graph with a user's labels; what was measured of the old ones holds no more."""
    known = dict(graph.metadata.get("labels") or {})
    for row in graph.nodes.to_pylist():
        if row["id"] in labels and row["kind"] == NodeKind.FEATURE:
            name = f"{row['layer']}/{row['feature']}"
            known[name] = {**known.get(name, {"polysemantic": False}), "f1": None, "source": "user"}
    metadata = graph.metadata | ({"labels": known} if known else {})
    return replace(graph.relabel(labels), metadata=metadata)


def checked(
    wanted: object, ids: set[str]
) -> tuple[dict[str, str], list[Mapping[str, Any]], dict[str, Any]]:
    """What a page asks to be saved, if it is that.

    Args:
        wanted: whatever JSON gave.
        ids: of the graph's nodes.

    Returns:
        Labels by node id, groups as groups.json has them, the view.

    Raises:
        TraceError: something is not of the kind it should be, or too long.
    """
    if not isinstance(wanted, dict):
        raise TraceError("cannot save: expected an object with labels, groups and view")
    labels, groups, view = (
        wanted.get(name, kind())
        for name, kind in (("labels", dict), ("groups", list), ("view", dict))
    )
    if not (isinstance(labels, dict) and isinstance(groups, list) and isinstance(view, dict)):
        raise TraceError("cannot save: labels and view must be objects, groups a list")
    for name, text in labels.items():
        if name not in ids or not isinstance(text, str) or len(text) > LABEL:
            raise TraceError(f"cannot save: {name[:80]!r} is no node, or its label no text "
                             f"of at most {LABEL} characters")  # fmt: skip
    found = [_group(one, ids) for one in groups]
    names = [one["name"] for one in found]
    members = [member for one in found for member in one["members"]]
    if len({*names}) < len(names) or len({*members}) < len(members):
        raise TraceError(
            "cannot save: two groups have one name, or a node stands in two: give each its own"
        )
    return labels, found, view


def _group(group: object, ids: set[str]) -> Mapping[str, Any]:
    given: dict[str, Any] = group if isinstance(group, dict) else {}
    name, members = given.get("name"), given.get("members")
    named = isinstance(name, str) and 0 < len(name.strip()) <= len(name) <= NAME
    if not (named and isinstance(members, list) and members and ids.issuperset(map(str, members))):
        raise TraceError(
            f"cannot save: {str(group)[:80]!r} is no group: expected a name of at most {NAME} "
            "characters and members that are nodes of the graph"
        )
    return {"name": name, "members": members, "place": _place(given.get("place"))}


def _place(value: object) -> list[float] | None:
    pair = value if isinstance(value, list) and len(value) == 2 else []
    finite = [at for at in pair if isinstance(at, int | float) and abs(at) < math.inf]
    return finite if len(finite) == 2 else None
