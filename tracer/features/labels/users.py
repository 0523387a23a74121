"""Users' own labels in a store or in a graph: set, taken away, written to a file, read from one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphs import AttributionGraph, NodeKind
from tracer.errors import TraceError
from tracer.features.labels.own import read_own, write_own
from tracer.features.labels.table import USER
from tracer.features.store import FeatureStore
from tracer.features.tables import ABOUT

Place = tuple[int, int]


def set_label(where: Path, place: Place, text: str | None) -> None:
    """Name a feature in a store or in a graph, or take its name away.

    Raises:
        TraceError: there is no such feature, or what is taken away from a graph is not a user's.
        GraphError: what stands there is neither a store nor a graph.
    """
    if is_store(where):
        FeatureStore.load(where).set_labels({place: text})
        return
    graph = AttributionGraph.load(where)
    found = with_own(graph, {place: text})
    if not _nodes(graph, place):
        raise TraceError(f"{where}: no node is feature {place[0]}/{place[1]}")
    found.save(where)


def export_labels(where: Path, path: Path) -> int:
    """Write the users' own labels of a store or a graph to a file.

    Returns:
        How many there are.

    Raises:
        TraceError: there is none, or the graph does not say which dictionary it is of.
    """
    labels, dictionary = _own(where)
    if not labels:
        raise TraceError(f"{where}: holds no labels of your own; make one with tracer label")
    write_own(path, labels, dictionary)
    return len(labels)


def import_labels(where: Path, path: Path) -> int:
    """Take labels of the same dictionary from a file into a store or a graph.

    Returns:
        How many there are.

    Raises:
        TraceError: no such file, or it is another dictionary's.
        ModelError: it is no file of labels.
    """
    if not path.is_file():
        raise TraceError(f"{path}: there is no such file of labels")
    if is_store(where):
        store = FeatureStore.load(where)
        labels = read_own(path, store.about["dictionary_hash"])
        store.set_labels(labels)
    else:
        graph = AttributionGraph.load(where)
        labels = read_own(path, dictionary_of(where, graph))
        with_own(graph, labels).save(where)
    return len(labels)


def with_own(graph: AttributionGraph, labels: Mapping[Place, str | None]) -> AttributionGraph:
    """A graph with users' own labels; those of features it does not hold are kept all the same.

    Args:
        graph: any.
        labels: by (layer, feature); None brings back what stood there before.

    Returns:
        The graph, with the labels in `metadata["labels"]`.

    Raises:
        TraceError: what is taken away is no user's own label.
    """
    known = dict(graph.metadata.get("labels", {}))
    words: dict[str, str] = {}
    for place, text in labels.items():
        name = f"{place[0]}/{place[1]}"
        before = known.get(name, {})
        own = before.get("source") == USER
        if text is not None:
            was = before["was"] if own else {"known": before, "nodes": _labels(graph, place)}
            known[name] = _own_label(text, before, was)
            words |= {node: f"{text} · {_token(graph, node)}" for node in _nodes(graph, place)}
        elif own:
            words |= before["was"]["nodes"]
            known[name] = before["was"]["known"]
            known = {key: found for key, found in known.items() if found}
        else:
            raise TraceError(f"feature {name} has no label of your own")
    found = graph.relabel(words)
    found.metadata["labels"] = known
    return found


def _own_label(text: str, before: Mapping[str, Any], was: Mapping[str, Any]) -> dict[str, Any]:
    """What metadata say of a user's label: the feature stays as mixed as it is."""
    about = {"polysemantic": before.get("polysemantic", False), "mixed": before.get("mixed")}
    return {"text": text, "f1": None, "source": USER, **about, "was": was}


def is_store(path: Path) -> bool:
    """Whether a feature store stands there."""
    return (path / ABOUT).is_file()


def dictionary_of(where: Path, graph: AttributionGraph) -> str:
    """Content hash of the dictionary that a graph was traced with.

    Raises:
        TraceError: the graph does not say.
    """
    about = graph.metadata
    found = about.get("dictionary_hash")
    if not found and about.get("transcoders_hash"):
        beyond = about.get("elsewhere")
        found = about["transcoders_hash"] + (f"+{beyond}" if beyond else "")
    if not found:
        raise TraceError(
            f"{where}: does not say which dictionary it is of; trace it with --store, or label the "
            "store instead"
        )
    return str(found)


def _own(where: Path) -> tuple[dict[Place, str], str]:
    if is_store(where):
        store = FeatureStore.load(where)
        return store.own_labels, store.about["dictionary_hash"]
    graph = AttributionGraph.load(where)
    labels = {}
    for name, found in graph.metadata.get("labels", {}).items():
        if found.get("source") == USER:
            layer, _, feature = name.partition("/")
            labels[int(layer), int(feature)] = str(found["text"])
    return labels, dictionary_of(where, graph) if labels else ""


def _nodes(graph: AttributionGraph, place: Place) -> list[str]:
    rows = graph.nodes.select(["id", "kind", "layer", "feature"]).to_pylist()
    return [
        row["id"]
        for row in rows
        if row["kind"] == NodeKind.FEATURE and (row["layer"], row["feature"]) == place
    ]


def _labels(graph: AttributionGraph, place: Place) -> dict[str, str]:
    wanted = {*_nodes(graph, place)}
    pairs = zip(*(graph.nodes[name].to_pylist() for name in ("id", "label")), strict=True)
    return {name: text for name, text in pairs if name in wanted}


def _token(graph: AttributionGraph, node: str) -> str:
    position = int(node.rpartition("_")[2])
    tokens = graph.metadata.get("tokens", [])
    return tokens[position].strip() if position < len(tokens) else ""
