"""Effects as a table of edges and back."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy import sparse

from graphs.influence import shares
from graphs.schema import GraphError

COLUMNS = {
    "source": pa.int32(),
    "target": pa.int32(),
    "weight": None,
    "influence": pa.float64(),
    "share": pa.float64(),
}
"""`weight` keeps the precision of the trace, float32 or float64."""
STABILITY = "stability"
"""A column more where somebody asked (`graphs.collections.stability`), also of nodes: shares, null
where it is not known."""


def edge_table(
    effect: sparse.csr_array,
    totals: tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]],
    through: Float[np.ndarray, " nodes"],
) -> pa.Table:
    """One row an edge, ordered by target, then source.

    Args:
        effect: (nodes, nodes) direct effects.
        totals: (nodes,) row sums of |effect| in the unpruned graph, over its nodes, and over
            everything the model computed, features beyond a cap included.
        through: (nodes,) influence and weight b + w of each node in the unpruned graph.

    Returns:
        source and target (row numbers), weight A[t, s], influence |A[t, s]| (b_t + w_t) over the
        first total, and share A[t, s] over the second, signed, of all the target's input.

    >>> effect = sparse.csr_array([[0.0, 0], [-3, 0]])
    >>> total, computed = np.array([0.0, 4.0]), np.array([0.0, 6.0])
    >>> edge_table(effect, (total, computed), np.array([0.0, 0.5])).to_pylist()
    [{'source': 0, 'target': 1, 'weight': -3.0, 'influence': 0.375, 'share': -0.5}]
    """
    total, computed = totals
    among = shares(effect, total).data
    share = among if computed is total else shares(effect, computed).data
    target = np.repeat(np.arange(len(through), dtype=np.int32), np.diff(effect.indptr))
    return pa.table(
        {
            "source": effect.indices.astype(np.int32, copy=False),
            "target": target,
            "weight": effect.data,
            "influence": among * through[target],
            "share": np.copysign(share, effect.data),
        }
    )


def nullable(values: Float[np.ndarray, " rows"]) -> pa.Array:
    """Numbers as a column, null where they are NaN.

    Returns:
        (rows,) float64.
    """
    return pa.array(np.asarray(values, np.float64), mask=np.isnan(values))


def stability_of(edges: pa.Table) -> Float[np.ndarray, " edges"] | None:
    """The column `stability` of an edge table, in the order that effects have.

    Returns:
        (edges,) shares, NaN where it is null; None where there is no such column.

    Raises:
        GraphError: it holds something else than shares.

    >>> rows = {"source": [1, 0], "target": [2, 2], "weight": [1.0, 2.0], "stability": [None, 0.5]}
    >>> stability_of(pa.table(rows)).tolist()
    [0.5, nan]
    """
    if STABILITY not in edges.column_names:
        return None
    column = edges[STABILITY]
    if not (pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        raise GraphError(f"edge column {STABILITY!r} is {column.type}, expected float64")
    values = column.cast(pa.float64()).to_numpy()
    check_stability(values, edges.num_rows)
    return values[np.lexsort([edges[name].to_numpy() for name in ("source", "target")])]


def check_stability(values: Float[np.ndarray, " rows"], count: int) -> None:
    """Refuse what is no share a row.

    Raises:
        GraphError: another number of rows, or a number outside 0 to 1.
    """
    if np.shape(values) != (count,):
        raise GraphError(f"stability has shape {np.shape(values)}, expected {(count,)}")
    wrong = ~np.isnan(values) & ~((values >= 0) & (values <= 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise GraphError(f"stability of row {row} is {values[row]}, expected 0 to 1, or NaN where "
                         "it is not known")  # fmt: skip


def share_matrix(edges: pa.Table, count: int) -> sparse.csr_array:
    """P of `count` nodes from the columns source, target and share of their edge table.

    Returns:
        (count, count) |share| of all the target's input that comes from the source, float64.
    """
    source, target, share = (edges[name].to_numpy() for name in ("source", "target", "share"))
    start = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=count))])
    return sparse.csr_array((np.abs(share), source, start), shape=(count, count))


def effect_matrix(edges: pa.Table, count: int) -> sparse.csr_array:
    """Effects between `count` nodes from the columns source, target and weight.

    Returns:
        (count, count) `effect[target, source]`, float32 or float64 as the column `weight`.

    Raises:
        GraphError: a column is missing, of another type or has nulls, an edge leads to a row
            that is no node, or stands twice.
    """
    for name, kind in (("source", pa.int32()), ("target", pa.int32()), ("weight", None)):
        if edges.column_names.count(name) != 1:
            raise GraphError(f"edges need one column {name!r}, got {edges.column_names}")
        got = edges[name].type
        if got != kind and not (kind is None and got in (pa.float32(), pa.float64())):
            raise GraphError(
                f"edge column {name!r} is {got}, expected {kind or 'float32, float64'}"
            )
        if edges[name].null_count:
            raise GraphError(f"edge column {name!r} has nulls: every edge must have a value")
    source, target, weight = (edges[name].to_numpy() for name in ("source", "target", "weight"))
    outside = (np.minimum(source, target) < 0) | (np.maximum(source, target) >= count)
    if outside.any():
        at = int(outside.argmax())
        raise GraphError(
            f"edge {source[at]} -> {target[at]} leads outside the graph, expected rows "
            f"0 to {count - 1}"
        )
    effect = sparse.csr_array((weight, (target, source)), shape=(count, count))
    effect.sum_duplicates()
    if effect.nnz != len(weight):
        raise GraphError(f"{len(weight) - effect.nnz} edges stand twice: list each edge once")
    return effect
