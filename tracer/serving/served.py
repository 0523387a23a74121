"""A graph that the viewer shows: read from its folder, and what a user made of it written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphs import AttributionGraph, GraphError, NodeKind
from graphs.exchange.arrow import GROUPS, VIEW
from graphs.exchange.files import write_together
from graphs.exchange.views import with_view
from graphs.groups import Group, check, from_json, to_bytes
from graphs.viewer.beside import read_beside
from graphs.viewer.payload import Extras
from tracer.errors import TraceError
from tracer.features.packaged import shown
from tracer.features.store import FeatureStore

LABEL = 2000
"""Characters of a label, at most."""


@dataclass(frozen=True)
class Served:
    """One graph's folder or .zip."""

    path: Path
    store: FeatureStore | None = None
    """Where features are shown from; None: the embedded default's own, for its graphs."""

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
        known = shown(graph, self.store)
        return graph.packed(Extras(known, opening, beside=read_beside(self.path)))

    def save(self, wanted: object) -> None:
        """Write labels, groups and view back, all or nothing.

        Args:
            wanted: `{labels: {id: text}, groups: [{name, members, place}], view: {...}}`, as JSON
                gave it.

        Raises:
            TraceError: it is anything else, or names nodes that the graph does not have.
            GraphError: the place cannot be written.
        """
        graph = self.graph()
        labels, groups, view = checked(wanted, graph.nodes["id"].to_pylist())
        if labels or self.path.is_file():
            _relabelled(graph, labels).with_groups(groups).save(self.path, view=view)
        else:
            files = {GROUPS: to_bytes(groups), VIEW: with_view(view)}
            write_together(self.path, {name: pa.py_buffer(one) for name, one in files.items()})


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
    wanted: object, ids: Sequence[str]
) -> tuple[dict[str, str], tuple[Group, ...], dict[str, Any]]:
    """What a page asks to be saved, if it is that.

    Args:
        wanted: whatever JSON gave.
        ids: of the graph's nodes.

    Returns:
        Labels by node id, the groups, the view.

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
    known = {*ids}
    for name, text in labels.items():
        if name not in known or not isinstance(text, str) or len(text) > LABEL:
            raise TraceError(f"cannot save: {name[:80]!r} is no node, or its label no text "
                             f"of at most {LABEL} characters")  # fmt: skip
    try:
        found = from_json(groups)
        check(found, ids)
    except GraphError as error:
        raise TraceError(f"cannot save: {error}") from error
    return labels, found, view
