"""The store that comes with the embedded default, for graphs of it; needs no torch."""

import gzip
import json
from pathlib import Path
from typing import Any

import replacement_models
from graphs import AttributionGraph, NodeKind
from graphs.exchange.tables import edge_list_json
from tracer.features.panel import panels
from tracer.features.store import FeatureStore

EMBEDDED = Path(replacement_models.__file__).parent / "tiny"
TIMES = 1.2
"""All data of a page, as base64 of gzip, over the gzipped JSON of its graph, at most."""
FEW, AN_EDGE = 5_000, 20
"""Edges up to which both are counted out; bytes an edge that examples may take beyond: the JSON
takes about 30 there, and the page's columns at most 6."""


def store_of_graph(graph: AttributionGraph) -> FeatureStore | None:
    """The embedded default's own store where a graph was traced with its dictionary.

    Returns:
        The store; None for any other dictionary.
    """
    about = graph.metadata
    if not str(about.get("transcoders")).startswith("embedded/"):
        return None
    wanted = about.get("dictionary_hash") or about.get("transcoders_hash")
    for folder in sorted(EMBEDDED.glob("*.features")):
        store = FeatureStore.load(folder)
        if store.about["dictionary_hash"] == wanted:
            return store
    return None


def shown(graph: AttributionGraph, named: FeatureStore | None) -> dict[str, dict[str, Any]]:
    """What a viewer shows of a graph's features.

    Args:
        graph: whose features are wanted.
        named: the store to take them from; None: the embedded default's own, for its graphs, and
            of that the most influential features that fit (`TIMES`).

    Returns:
        As `tracer.features.panel.panels`.
    """
    if named is not None:
        return panels(named, graph)
    store = store_of_graph(graph)
    return {} if store is None else _fitting(panels(store, graph), graph)


def _fitting(known: dict[str, dict[str, Any]], graph: AttributionGraph) -> dict[str, Any]:
    room = room_for_examples(graph)
    while known and _size(known) > room:
        known = dict(list(known.items())[: len(known) * 3 // 4])
    return known


def room_for_examples(graph: AttributionGraph) -> int:
    """Bytes that examples may take in a page of a graph."""
    if graph.effect.nnz > FEW:
        return AN_EDGE * graph.effect.nnz
    text = edge_list_json(graph.nodes, graph.edges, graph.metadata)
    return int(TIMES * len(gzip.compress(text))) - len(graph.packed()) * 4 // 3


def _size(known: dict[str, Any]) -> int:
    return len(gzip.compress(json.dumps(known).encode("utf-8", "replace"))) * 4 // 3


def said(graph: AttributionGraph, known: dict[str, Any], named: bool) -> str | None:
    """How many features a page shows examples of, in words; None where none is known."""
    rows = graph.nodes.to_pylist()
    every = {(row["layer"], row["feature"]) for row in rows if row["kind"] == NodeKind.FEATURE}
    whose = "--store" if named else "the embedded default's own store"
    if not known:
        return None
    return f"It shows examples of {len(known)} of {len(every)} features, from {whose}"
