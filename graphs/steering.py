"""What nodes change beside their edges: the table `steering`, as a matrix beside `effect`.

A graph holds attention patterns and norm denominators as they were recorded, and its edges say
nothing of the nodes that set them. The table has what those do to the first order, made by
`tracer.keep_attention`. It is not conserved and takes no part in effects, scores or the columns of
the nodes; only pruning reads it, where it is asked to keep what steers the edges that it keeps.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int
from scipy import sparse

from graphs.schema import GraphError

NAME = "steering"
COLUMNS: dict[str, pa.DataType] = {
    "source": pa.int32(),
    "target": pa.int32(),
    "attention": pa.float64(),
    "norms": pa.float64(),
}
"""Rows of `nodes`, ordered by target, then source; what the target would lose to the first order,
in units of `effect`, if the source no longer moved attention scores, and norm denominators."""
MISSING = (
    "graph has no table of what steers attention; trace it with keep_attention (--keep-attention), "
    "or make one with tracer.keep_attention(model, graph)"
)


def table(attention: sparse.csr_array, norms: sparse.csr_array) -> pa.Table:
    """The table of two matrices, entries that are zero in both left out.

    Args:
        attention: (nodes, nodes) [target, source], in units of `effect`.
        norms: the same through norm denominators.

    Returns:
        The columns of COLUMNS.
    """
    both = sparse.csr_array(abs(attention) + abs(norms))
    both.eliminate_zeros()
    both.sort_indices()
    target = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))
    values = (
        both.indices,
        target,
        *(_at(part, target, both.indices) for part in (attention, norms)),
    )
    columns = zip(COLUMNS.items(), values, strict=True)
    return pa.table({name: pa.array(value, kind) for (name, kind), value in columns})


def _at(part: sparse.csr_array, target: np.ndarray, source: np.ndarray) -> np.ndarray:
    if not len(target):
        return np.zeros(0)
    return np.asarray(part[target, source], dtype=np.float64).ravel()


def check(steering: pa.Table, count: int) -> None:
    """Refuse a table that does not belong to a graph.

    Args:
        steering: columns as COLUMNS.
        count: nodes of the graph.

    Raises:
        GraphError: a row names no node, runs backward, stands twice, or is not a number.
    """
    ends = [steering[name].to_numpy() for name in ("source", "target")]
    values = [steering[name].to_numpy() for name in ("attention", "norms")]
    if any(column.null_count for column in steering.columns) or not all(
        np.isfinite(value).all() for value in values
    ):
        raise GraphError(f"table {NAME!r} has an entry that is no finite number; make it again")
    source, target = (end.astype(np.int64) for end in ends)
    if not ((source >= 0) & (source < target) & (target < count)).all():
        raise GraphError(
            f"table {NAME!r} has an entry that does not run from a node to a later one of the "
            f"graph's {count}; make it again with tracer.keep_attention"
        )
    if (np.diff(target * count + source) <= 0).any():
        raise GraphError(f"table {NAME!r} is not ordered by target, then source; make it again")


def matrix(steering: pa.Table, count: int) -> sparse.csr_array:
    """How much each node steers each target.

    Args:
        steering: columns as COLUMNS.
        count: nodes of the graph.

    Returns:
        (nodes, nodes) |attention| + |norms|, [target, source], in units of `effect`, one entry a
        row of the table in its order.
    """
    source, target, attention, norms = (steering[name].to_numpy() for name in COLUMNS)
    start = np.searchsorted(target, np.arange(count + 1))
    return sparse.csr_array((abs(attention) + abs(norms), source, start), shape=(count, count))


def left(
    steering: pa.Table, nodes: Bool[np.ndarray, " nodes"], entries: Bool[np.ndarray, " entries"]
) -> pa.Table:
    """The table of a graph of which only some nodes are left.

    Args:
        steering: columns as COLUMNS.
        nodes: which are left.
        entries: which rows of the table may stay; those between nodes left do.

    Returns:
        The rows that stay, numbered as the nodes left are.
    """
    row = np.cumsum(nodes) - 1
    source, target = (steering[name].to_numpy() for name in ("source", "target"))
    kept = entries & nodes[source] & nodes[target]
    found = steering.filter(pa.array(kept))
    for place, (name, end) in enumerate((("source", source), ("target", target))):
        found = found.set_column(place, name, pa.array(row[end[kept]], pa.int32()))
    return found


def joined(effect: sparse.csr_array, steers: sparse.csr_array) -> sparse.csr_array:
    """What drives each target: by edges, and by what steers it.

    Returns:
        (nodes, nodes) |effect| + steers, sorted indices, an entry wherever either has one.

    >>> effect = sparse.csr_array([[0.0, 0], [-2, 0]])
    >>> joined(effect, sparse.csr_array([[0.0, 0], [1, 0]])).toarray().tolist()
    [[0.0, 0.0], [3.0, 0.0]]
    """
    both = sparse.csr_array(abs(effect.astype(np.float64)) + steers)
    both.sort_indices()
    return both


def places(part: sparse.csr_array, whole: sparse.csr_array) -> Int[np.ndarray, " entries"]:
    """Where the entries of a matrix stand among those of one that has them all.

    Returns:
        (entries of `part`,) numbers of entries of `whole`, both in the order of their rows.
    """
    return np.searchsorted(_keys(whole), _keys(part))


def _keys(of: sparse.csr_array) -> Int[np.ndarray, " entries"]:
    target = np.repeat(np.arange(of.shape[0], dtype=np.int64), np.diff(of.indptr))
    return target * of.shape[1] + of.indices
