"""What nodes of several graphs are matched by."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from graphs.graph import AttributionGraph
from graphs.schema import NodeKind, number


class NodeKey(NamedTuple):
    """One node in every graph that has it; equal keys are the same node."""

    kind: str
    site: str
    name: str
    """Number of a feature, token of an embedding or answer, label of a user's own target."""
    column: int | None
    """Where it stands, as positions are aligned; None: wherever it stands."""


def node_key(row: dict[str, Any], column: int | None) -> NodeKey:
    """The key of a row of the node table.

    Answers stand where the prompt ends, so their position takes no part.
    """
    kind, site = str(row["kind"]), str(row["site"])
    if kind == NodeKind.FEATURE:
        return NodeKey(kind, site, str(row["feature"]), column)
    if kind == NodeKind.ERROR:
        return NodeKey(kind, site, "", row["position"] if column is None else column)
    name = str(row["label"]) if row["token"] is None else f"{row['token']}/{row['text']}"
    return NodeKey(kind, site, name, None if kind == NodeKind.LOGIT else column)


def node_keys(graph: AttributionGraph, columns: Sequence[int] | None) -> list[NodeKey]:
    """Keys of a graph's nodes, in node order.

    Args:
        graph: whose nodes.
        columns: of its positions; None: features and tokens go by what they are, wherever.
    """
    return [
        node_key(row, None if columns is None else columns[row["position"]])
        for row in graph.nodes.to_pylist()
    ]


def node_shares(graph: AttributionGraph) -> np.ndarray:
    """Part of the answer that each node carries.

    Returns:
        (nodes,) influence and weight over the weight of all targets; of the graph as traced.
    """
    weight = number(graph.nodes, "probability")
    return (number(graph.nodes, "influence") + weight) / (float(weight.sum()) or 1.0)


def edge_shares(graph: AttributionGraph) -> np.ndarray:
    """Part of the answer that each edge carries.

    Returns:
        (edges,) influence over the weight of all targets; of the graph as traced.
    """
    whole = float(number(graph.nodes, "probability").sum()) or 1.0
    return graph.edges["influence"].to_numpy() / whole


def explained_tokens(graph: AttributionGraph) -> list[str]:
    """Tokens of the prompt up to the one whose next token is explained."""
    places = graph.nodes["position"].to_numpy()
    count = 1 + int(places.max(initial=-1))
    known = [str(text) for text in graph.metadata.get("tokens", [])][:count]
    return known + [f"position {at}" for at in range(len(known), count)]
