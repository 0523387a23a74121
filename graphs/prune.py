"""Which nodes and edges of a graph are worth looking at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from scipy import sparse

from graphs.influence import influence, input_absolute, row_sums, shares
from graphs.schema import number
from graphs.steering import joined, places


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What survives: masks over the nodes, and over the entries of `effect` in their order."""

    nodes: Bool[np.ndarray, " nodes"]
    edges: Bool[np.ndarray, " edges"]
    steering: Bool[np.ndarray, " entries"] | None = None
    """Over the entries of what steers, where pruning was told of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Where paths begin and end: masks over the nodes."""

    token: Bool[np.ndarray, " nodes"]
    error: Bool[np.ndarray, " nodes"]
    logit: Bool[np.ndarray, " nodes"]

    @property
    def roots(self) -> tuple[Bool[np.ndarray, " nodes"], Bool[np.ndarray, " nodes"]]:
        """Where paths begin.

        Returns:
            Two masks (nodes,): tokens and errors.
        """
        return self.token, self.error


def prune(
    effect: sparse.csr_array,
    weight: Float[np.ndarray, " nodes"],
    reached: Float[np.ndarray, " nodes"],
    ends: Ends,
    quantiles: tuple[float, float],
) -> Kept:
    """Keep the nodes, then the edges, that hold the given shares of influence.

    Nodes: the most influential that together hold `quantiles[0]` of all node influence, ties
    included, and every token and logit. Edges: rows are scaled anew over the nodes left, the
    influence is computed anew, and each edge scores `P'[t, s] (b'_t + w_t)`; those that hold
    `quantiles[1]` of it stay, ties included. Paths: a feature stays iff it lies on a path from a
    token or an error to a logit, an error iff it reaches a logit.

    Args:
        effect: (nodes, nodes) strictly lower triangular, sorted indices.
        weight: (nodes,) w, of the targets.
        reached: (nodes,) influence b over all rows of `effect`, each divided by its own sum.
        ends: which nodes are tokens, errors and logits.
        quantiles: (nodes, edges), each in (0, 1]; 1 drops nothing.

    Returns:
        Masks over the nodes and over the entries of `effect`.

    Source: Ameisen et al. 2025, "Circuit Tracing", appendix on graph pruning.
    """
    target = np.repeat(np.arange(len(weight)), np.diff(effect.indptr))
    source = effect.indices
    nodes = (reached >= threshold(reached, quantiles[0])) | ends.token | ends.logit
    edges = nodes[target] & nodes[source]

    left = sparse.csr_array((effect.data * edges, source, effect.indptr), shape=effect.shape)
    share = shares(left, input_absolute(left))
    score = share.data * (influence(share, weight) + weight)[target]
    edges &= score >= threshold(score, quantiles[1])
    nodes &= connected(source[edges], target[edges], ends)
    return Kept(nodes, edges & nodes[target] & nodes[source])


def prune_steered(
    effect: sparse.csr_array,
    steers: sparse.csr_array,
    weight: Float[np.ndarray, " nodes"],
    ends: Ends,
    quantiles: tuple[float, float],
) -> Kept:
    """Keep what holds the given shares of influence where what steers attention has its part.

    The rule of `prune` over |effect| + steers: what sets the attention patterns and norms that an
    edge went through drives its target too, and what drives that node in turn. Influence is worked
    out anew, rows scaled over both; a path may run along either.

    Args:
        effect: (nodes, nodes) strictly lower triangular, sorted indices.
        steers: (nodes, nodes) non-negative, as `graphs.steering.matrix` gives it.
        weight: (nodes,) w, of the targets.
        ends: which nodes are tokens, errors and logits.
        quantiles: (nodes, edges), each in (0, 1]; 1 drops nothing.

    Returns:
        Masks over the nodes, over the entries of `effect` and over those of `steers`.
    """
    whole = joined(effect, steers)
    reached = influence(shares(whole, input_absolute(whole)), weight)
    kept = prune(whole, weight, reached, ends, quantiles)
    edges, steering = (kept.edges[places(part, whole)] for part in (effect, steers))
    return Kept(kept.nodes, edges, steering)


def cut(nodes: pa.Table, effect: sparse.csr_array, kept: Kept) -> tuple[pa.Table, sparse.csr_array]:
    """The part of a graph that is kept.

    Nodes keep their order and edges theirs, so that the invariants of a graph hold in its parts.

    Returns:
        The rows of `nodes` kept, with what their rows of `effect` lost added to `left_out` and
        `left_out_absolute`, and the (kept nodes, kept nodes) effects.
    """
    target = np.repeat(np.arange(nodes.num_rows), np.diff(effect.indptr))[kept.edges]
    row = np.cumsum(kept.nodes) - 1
    part = sparse.csr_array(
        (effect.data[kept.edges], (row[target], row[effect.indices[kept.edges]])),
        shape=(int(kept.nodes.sum()),) * 2,
    )
    part.sort_indices()
    dropped = sparse.csr_array(
        (effect.data * ~kept.edges, effect.indices, effect.indptr), shape=effect.shape
    )
    table = nodes.filter(pa.array(kept.nodes))
    for name, size in (("left_out", False), ("left_out_absolute", True)):
        lost = row_sums(dropped, size)[kept.nodes]
        null = table[name].is_null().to_numpy() & (lost == 0)
        column = pa.array(number(table, name) + lost, mask=null)
        table = table.set_column(table.column_names.index(name), name, column)
    return table, part


def threshold(value: Float[np.ndarray, " values"], quantile: float) -> float:
    """The value at which the cumulative share, from the largest down, first reaches `quantile`.

    Returns:
        In the units of `value`; -inf where all are to be kept, inf where none holds anything.

    >>> threshold(np.array([1.0, 6.0, 3.0]), 0.8)
    3.0
    """
    if quantile >= 1:
        return -np.inf
    falling = np.sort(value)[::-1]
    running = np.cumsum(falling)
    if not len(value) or running[-1] == 0:
        return np.inf
    first = np.searchsorted(running / running[-1], quantile)
    return float(falling[min(int(first), len(falling) - 1)])


def connected(
    source: Int[np.ndarray, " edges"], target: Int[np.ndarray, " edges"], ends: Ends
) -> Bool[np.ndarray, " nodes"]:
    """Tokens, logits, errors that reach a logit, and what lies between roots and logits.

    Args:
        source: of every edge, a row.
        target: of every edge, a row.
        ends: which nodes are tokens, errors and logits.

    Returns:
        (nodes,) a mask.
    """
    import networkx as nx

    count = len(ends.token)
    first, last = count, count + 1
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from((first, last))
    graph.add_edges_from(zip(source.tolist(), target.tolist(), strict=True))
    graph.add_edges_from((first, root) for root in np.flatnonzero(ends.token | ends.error).tolist())
    graph.add_edges_from((node, last) for node in np.flatnonzero(ends.logit).tolist())
    between = nx.descendants(graph, first) & nx.ancestors(graph, last)
    kept = ends.token | ends.logit
    kept[np.array(sorted(between - {first, last}), dtype=np.intp)] = True
    return kept
