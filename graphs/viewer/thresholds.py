"""What of a large graph a page takes with it: the strongest edges, and what they connect."""

from typing import Any

import numpy as np
import pyarrow as pa

from graphs.edges import effect_matrix
from graphs.prune import Ends, Kept, connected, cut
from graphs.schema import NodeKind, is_kind

MOST_EDGES = 100_000
"""Edges that a page holds at most unless told otherwise."""


def strongest_edges(
    nodes: pa.Table, edges: pa.Table, most: int
) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """The `most` edges of the largest influence, and the nodes on paths along them.

    Args:
        nodes: the node table.
        edges: the edge table, with `influence`.
        most: edges to keep at most; ties at the bound go.

    Returns:
        Nodes and edges, whose rows count what they lost as left out, and what was left behind:
        empty where nothing was, otherwise the counts `nodes`, `edges`, `total_nodes`,
        `total_edges` and `influence`, the share of all edge influence that is held.
    """
    if edges.num_rows <= most:
        return nodes, edges, {}
    through = edges["influence"].to_numpy()
    bound = np.partition(through, len(through) - most - 1)[len(through) - most - 1]
    strong = through > bound
    source, target = (edges[name].to_numpy() for name in ("source", "target"))
    kinds = (NodeKind.EMBEDDING, NodeKind.ERROR, NodeKind.LOGIT)
    linked = connected(source[strong], target[strong], Ends(*(is_kind(nodes, k) for k in kinds)))
    strong &= linked[source] & linked[target]
    table, effect = cut(nodes, effect_matrix(edges, nodes.num_rows), Kept(linked, strong))
    row = np.cumsum(linked) - 1
    kept = edges.filter(pa.array(strong))
    for at, name in enumerate(("source", "target")):
        kept = kept.set_column(at, name, pa.array(row[kept[name].to_numpy()].astype(np.int32)))
    whole = float(through.sum())
    counts = {
        "nodes": table.num_rows,
        "edges": effect.nnz,
        "total_nodes": nodes.num_rows,
        "total_edges": edges.num_rows,
        "influence": float(through[strong].sum()) / whole if whole else 1.0,
    }
    return table, kept, counts
