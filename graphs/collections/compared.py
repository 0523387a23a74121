"""What a comparison of two graphs holds."""

from dataclasses import dataclass

import pyarrow as pa

from graphs.collections.alignment import Pairs
from graphs.collections.node_keys import NodeKey
from graphs.graph import AttributionGraph

STATUSES = ("changed", "shared", "only_a", "only_b")
"""In both with another influence, in both with about the same, in one alone."""

NODE_COLUMNS = {
    "status": pa.string(),
    "kind": pa.string(),
    "site": pa.string(),
    "name": pa.string(),
    "column": pa.int32(),
    "nodes_a": pa.list_(pa.string()),
    "nodes_b": pa.list_(pa.string()),
    "influence_a": pa.float64(),
    "influence_b": pa.float64(),
    "change": pa.float64(),
    "pruned_away": pa.float64(),
}
EDGE_COLUMNS = {
    "status": pa.string(),
    "source": pa.string(),
    "target": pa.string(),
    "edges_a": pa.list_(pa.string()),
    "edges_b": pa.list_(pa.string()),
    "influence_a": pa.float64(),
    "influence_b": pa.float64(),
    "change": pa.float64(),
    "weight_a": pa.float64(),
    "weight_b": pa.float64(),
}
EdgeKey = tuple[NodeKey, NodeKey]


@dataclass(frozen=True, eq=False)
class Compared:
    """Two graphs beside each other, as tables."""

    a: AttributionGraph
    b: AttributionGraph
    """As they were compared: pruned."""
    align: str
    """One of `graphs.collections.alignment.ALIGNMENTS`."""
    columns: Pairs
    """Positions of both that go together, from left to right."""
    nodes: pa.Table
    """One row a node of either, the largest change first: status, kind, site, name (in words),
    column, nodes_a and nodes_b (ids), influence_a, influence_b and change (parts of the answer; 0
    where it is not), pruned_away (of a node that one graph lacks: what it carried there before
    pruning, null where it was no node)."""
    edges: pa.Table
    """Likewise: status, source and target (in words), edges_a and edges_b (`source__target`),
    influence_a, influence_b, change, weight_a and weight_b (effects; null where it is not). An edge
    whose sign differs has changed."""
    keys: tuple[NodeKey, ...]
    """Of the rows of `nodes`."""
    ends: tuple[EdgeKey, ...]
    """Of the rows of `edges`."""
    overlap: float
    """Of features: sum of the smaller influence over the sum of the larger, from 0 to 1."""
    overlap_anywhere: float
    """The same wherever they fire, as the viewer gives it."""
    notes: tuple[str, ...] = ()
    """What a reader must know before all else."""
