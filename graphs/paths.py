"""The strongest single routes from a root to a logit."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse


@dataclass(frozen=True, slots=True)
class NodePath:
    """One route through the graph."""

    nodes: tuple[int, ...]
    """Row numbers, from the root to the logit."""

    strength: float
    """Product of the shares along it times the weight of its logit: what this route alone
    contributes to the influence of its root."""


def strongest(
    share: sparse.csr_array,
    weight: Float[np.ndarray, " nodes"],
    root: Bool[np.ndarray, " nodes"],
    count: int,
) -> list[NodePath]:
    """The `count` strongest paths from a root to a target, strongest first, exactly.

    From the last node to the first, every node keeps its `count` best continuations, chosen
    among the best of its targets: `count` times the edges, whatever the number of paths. Equal
    strengths go to the path through the lower rows.

    Args:
        share: (nodes, nodes) P, strictly lower triangular.
        weight: (nodes,) w of the targets.
        root: which nodes a path may begin at.
        count: at least 1.

    Returns:
        At most `count` paths; strengths in the units of `weight`.

    >>> share = sparse.csr_array([[0.0, 0, 0], [1, 0, 0], [0.25, 0.75, 0]])
    >>> for path in strongest(share, np.array([0, 0, 0.8]), np.array([True, False, False]), 2):
    ...     print(path.nodes, round(path.strength, 3))
    (0, 1, 2) 0.6
    (0, 2) 0.2
    """
    nodes = len(weight)
    outputs = share.tocsc()
    best = np.zeros((nodes, count))
    best[:, 0] = weight
    follow = np.full((nodes, count, 2), -1)
    for node in np.flatnonzero(np.diff(outputs.indptr))[::-1]:
        edges = slice(outputs.indptr[node], outputs.indptr[node + 1])
        targets = outputs.indices[edges]
        strength = (outputs.data[edges, None] * best[targets]).ravel()
        pick = _largest(strength, count)
        best[node, : len(pick)] = strength[pick]
        follow[node, : len(pick), 0] = targets[pick // count]
        follow[node, : len(pick), 1] = pick % count
    starts = np.flatnonzero(root)
    pick = _largest(best[starts].ravel(), count)
    return [
        NodePath(
            _walk(follow, int(starts[at // count]), int(at % count)), float(best[starts].flat[at])
        )
        for at in pick
        if best[starts].flat[at] > 0
    ]


def strongest_of_sign(
    signed: sparse.csr_array,
    weight: Float[np.ndarray, " nodes"],
    root: Bool[np.ndarray, " nodes"],
    count: int,
    sign: int,
) -> list[NodePath]:
    """The `count` strongest paths whose effects multiply to one sign.

    Args:
        signed: (nodes, nodes) shares of each row's input with the sign of the effect.
        weight: (nodes,) w of the targets.
        root: which nodes a path may begin at.
        count: at least 1.
        sign: 1 for paths that excite their target, -1 for those that suppress it.

    Returns:
        At most `count` paths, strongest first; strengths are sizes, in the units of `weight`.

    >>> signed = sparse.csr_array([[0.0, 0, 0], [-1, 0, 0], [0.25, -0.75, 0]])
    >>> ends = np.array([0, 0, 0.8]), np.array([True, False, False])
    >>> [(path.nodes, round(path.strength, 3)) for path in strongest_of_sign(signed, *ends, 2, 1)]
    [((0, 1, 2), 0.6), ((0, 2), 0.2)]
    >>> strongest_of_sign(signed, *ends, 2, -1)
    []
    """
    states = by_sign(signed)
    held = np.stack([weight, np.zeros_like(weight)], 1).ravel()
    starts = np.stack([root & (sign > 0), root & (sign < 0)], 1).ravel()
    found = strongest(states, held, starts, count)
    return [NodePath(tuple(at // 2 for at in path.nodes), path.strength) for path in found]


def by_sign(signed: sparse.csr_array) -> sparse.csr_array:
    """A graph with two states a node: what it sends on excites the target, or suppresses it.

    Args:
        signed: (nodes, nodes) shares with the sign of the effect, strictly lower triangular.

    Returns:
        (2 nodes, 2 nodes) sizes, rows 2 n of node n exciting and 2 n + 1 suppressing: a negative
        edge leads from one state to the other.
    """
    target, source = signed.tocoo().coords
    turn = (signed.data < 0).astype(target.dtype)
    size = np.abs(signed.data)
    ends = (
        np.concatenate([2 * target, 2 * target + 1]),
        np.concatenate([2 * source + turn, 2 * source + 1 - turn]),
    )
    count = 2 * signed.shape[0]
    return sparse.csr_array((np.concatenate([size, size]), ends), shape=(count, count))


def without_skips(
    share: sparse.csr_array, weight: Float[np.ndarray, " nodes"], nodes: tuple[int, ...]
) -> tuple[int, ...]:
    """A path with the steps put in that carry more than the edge they were skipped by.

    Between two neighbours s and t of the path influence flows over their edge, P[t, s], and by way
    of every other node m, N[t, m] N[m, s] with N = (I - P)^-1, paths of any length. Where the most
    by way of one node is more than the edge, that node joins the path, until none does.

    Args:
        share: (nodes, nodes) P, strictly lower triangular.
        weight: (nodes,) of the targets; fixes how many nodes there are.
        nodes: rows of a path, from its root to its logit.

    Returns:
        Rows of the whole path.

    Dallas carries 0.4 of the answer by itself and 0.6 by way of Texas, which so joins:

    >>> share = sparse.csr_array([[0.0, 0, 0], [1, 0, 0], [0.4, 0.6, 0]])
    >>> without_skips(share, np.zeros(3), (0, 2))
    (0, 1, 2)
    """
    count = len(weight)
    system = sparse.csc_array(sparse.eye_array(count) - share)
    columns: dict[int, np.ndarray] = {}
    rows: dict[int, np.ndarray] = {}

    def step(low: int, high: int) -> int | None:
        if low not in columns:
            columns[low] = _column(system, low)
        if high not in rows:
            rows[high] = _column(sparse.csc_array(system.T), high)
        by_way = columns[low] * rows[high]
        by_way[[low, high]] = 0
        best = int(by_way.argmax())
        return best if by_way[best] > share[high, low] * (1 + 1e-9) else None

    path = list(nodes)
    at = 0
    while at < len(path) - 1:
        middle = step(path[at], path[at + 1])
        if middle is None:
            at += 1
        else:
            path.insert(at + 1, middle)
    return tuple(path)


def _column(system: sparse.csc_array, node: int) -> np.ndarray:
    """The column of the inverse that belongs to a node."""
    unit = np.zeros(system.shape[0])
    unit[node] = 1
    return solved(system, unit)


def solved(
    system: sparse.csc_array, right: Float[np.ndarray, " nodes"]
) -> Float[np.ndarray, " nodes"]:
    """Solve a sparse system; the solver is imported here, since that takes long.

    Args:
        system: (nodes, nodes).
        right: its right side.

    Returns:
        (nodes,) the solution.
    """
    from scipy.sparse import linalg

    return np.asarray(linalg.spsolve(system, right)).reshape(-1)


def _largest(value: Float[np.ndarray, " values"], count: int) -> np.ndarray:
    """Positions of the `count` largest, largest first, ties to the lower position."""
    if len(value) > count:
        bound = np.partition(value, len(value) - count)[len(value) - count]
        above = np.flatnonzero(value > bound)
        ties = np.flatnonzero(value == bound)[: count - len(above)]
        candidates = np.sort(np.concatenate([above, ties]))
    else:
        candidates = np.arange(len(value))
    return candidates[np.argsort(-value[candidates], kind="stable")]


def _walk(follow: np.ndarray, node: int, rank: int) -> tuple[int, ...]:
    nodes = [node]
    while follow[node, rank, 0] >= 0:
        node, rank = (int(number) for number in follow[node, rank])
        nodes.append(node)
    return tuple(nodes)
