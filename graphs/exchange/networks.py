"""Graphs as networkx holds them, and back."""

import copy
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa

from graphs import node_sites
from graphs.edges import STABILITY
from graphs.schema import COLUMNS, GraphError


def to_networkx(nodes: pa.Table, edges: pa.Table, metadata: dict[str, Any]) -> "nx.DiGraph[str]":
    """A directed graph, cause to effect, with every column as an attribute.

    Returns:
        Nodes named by their id, in computation order; what is null is no attribute. Edges carry
        weight, influence and share; the graph carries the metadata.

    >>> nodes = pa.table({"id": ["dallas", "texas"], "label": [None, "Texas"]})
    >>> edges = pa.table({"source": [0], "target": [1], "weight": [2.5]})
    >>> graph = to_networkx(nodes, edges, {})
    >>> graph.nodes(data=True), graph.edges["dallas", "texas"]
    (NodeDataView({'dallas': {}, 'texas': {'label': 'Texas'}}), {'weight': 2.5})
    """
    graph: nx.DiGraph[str] = nx.DiGraph(**copy.deepcopy(metadata))
    for row in nodes.to_pylist():
        name = row.pop("id")
        graph.add_node(name, **{key: value for key, value in row.items() if value is not None})
    names = nodes["id"].to_pylist()
    for row in edges.to_pylist():
        ends = names[row.pop("source")], names[row.pop("target")]
        graph.add_edge(*ends, **{key: value for key, value in row.items() if value is not None})
    return graph


def from_networkx(graph: "nx.DiGraph[str]") -> tuple[dict[str, list[Any]], pa.Table]:
    """Node columns and the edge table of a graph as `to_networkx` makes it, or of a part of one.

    Nodes are brought into the order of their sites, out of which cutting a subgraph may have taken
    them; where an edge runs backward in it, they are sorted by the edges. Weights that float32
    holds exactly become float32.

    Returns:
        name -> one entry a node, None where it has no such attribute; and the columns source,
        target (places in that order) and weight, one row an edge, then stability where any edge
        has it.

    Raises:
        GraphError: an undirected graph or one with cycles, or an edge without a weight.
    """
    if not graph.is_directed() or graph.is_multigraph():
        raise GraphError(f"expected a networkx.DiGraph, got a {type(graph).__name__}")
    order = _computation_order(graph)
    names = dict.fromkeys(COLUMNS) | dict.fromkeys(key for n in order for key in graph.nodes[n])
    columns = {name: [graph.nodes[node].get(name) for node in order] for name in names}
    columns["id"] = [str(node) for node in order]
    return columns, _edges(graph, {node: row for row, node in enumerate(order)})


def _edges(graph: "nx.DiGraph[str]", row: dict[str, int]) -> pa.Table:
    ends = np.array([(row[s], row[t]) for s, t in graph.edges], np.int32).reshape(-1, 2)
    try:
        weight = np.array([float(data["weight"]) for _, _, data in graph.edges.data()])
    except (KeyError, TypeError, ValueError) as error:
        raise GraphError(f"every edge needs a number as its 'weight': {error!r}") from error
    single = weight.astype(np.float32)
    exact = bool((single == weight).all())
    table = pa.table(
        {"source": ends[:, 0], "target": ends[:, 1], "weight": single if exact else weight}
    )
    known = [data.get(STABILITY) for _, _, data in graph.edges.data()]
    if all(value is None for value in known):
        return table
    try:
        return table.append_column(STABILITY, pa.array(known, pa.float64()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise GraphError(f"an edge's {STABILITY!r} is no number: {error!r:.100}") from error


def _site_key(node: dict[str, Any]) -> tuple[bool, tuple[int, int]]:
    """What nodes sort by: targets last, everything else by its site."""
    kind = str(node.get("kind"))
    site = node.get("site") or node_sites.usual(kind, node.get("layer"))
    return kind == "logit", node_sites.rank(str(site))


def _computation_order(graph: "nx.DiGraph[str]") -> list[str]:
    order = sorted(graph, key=lambda node: _site_key(graph.nodes[node]))
    row = {node: at for at, node in enumerate(order)}
    if all(row[source] < row[target] for source, target in graph.edges):
        return order
    try:
        return list(nx.lexicographical_topological_sort(graph, key=row.__getitem__))
    except nx.NetworkXUnfeasible as error:
        raise GraphError(
            "the graph has a cycle: effects run one way, from cause to effect"
        ) from error
