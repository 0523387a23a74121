"""How much of the output each node accounts for, over all paths."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse


def row_sums(effect: sparse.csr_array, size: bool = False) -> Float[np.ndarray, " nodes"]:
    """Sum of each row of `effect`, of absolute values where `size`.

    Returns:
        (nodes,) float64, in the units of `effect`; 0 for rows without entries.
    """
    value = np.abs(effect.data, dtype=np.float64) if size else effect.data.astype(np.float64)
    filled = np.diff(effect.indptr) > 0
    total = np.zeros(effect.shape[0])
    if filled.any():
        total[filled] = np.add.reduceat(value, effect.indptr[:-1][filled])
    return total


def input_absolute(effect: sparse.csr_array) -> Float[np.ndarray, " nodes"]:
    """What drives each target.

    Returns:
        (nodes,) sum of |A[t, s]| over the sources s of each target t, float64.
    """
    return row_sums(effect, size=True)


def shares(effect: sparse.csr_array, total: Float[np.ndarray, " nodes"]) -> sparse.csr_array:
    """P: of what drives each target, the part that comes from each source.

    Args:
        effect: (nodes, nodes) direct effects, rows are targets.
        total: (nodes,) what each row is divided by: `input_absolute` of the same graph, or of
            the unpruned one, where rows then add up to less than one. Rows with 0 stay 0.

    Returns:
        (nodes, nodes) |A[t, s]| / total[t], float64, sharing the indices of `effect`.

    >>> effect = sparse.csr_array([[0.0, 0, 0], [2, 0, 0], [1, -3, 0]])
    >>> shares(effect, input_absolute(effect)).toarray().tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.25, 0.75, 0.0]]
    """
    size = np.abs(effect.data, dtype=np.float64)
    size /= np.repeat(np.where(total == 0, 1.0, total), np.diff(effect.indptr))
    return sparse.csr_array((size, effect.indices, effect.indptr), shape=effect.shape)


def influence(
    share: sparse.csr_array, weight: Float[np.ndarray, " nodes"]
) -> Float[np.ndarray, " nodes"]:
    """Share of the weighted outputs that flows through each node.

    `w (P + P^2 + ...)`, the weight that reaches each node along paths of any length. P is
    strictly lower triangular, so the series is one solve, `b = (I - P)^-T w - w`, done here by
    back substitution over blocks of rows that do not read one another (the sites of the
    forward pass): exact, without an iteration limit, each edge visited once.

    Args:
        share: (nodes, nodes) P with sorted indices, rows add up to at most 1.
        weight: (nodes,) w, non-negative; probabilities at the logits, else 0.

    Returns:
        (nodes,) influence b, in the units of `weight`. The roots (tokens and errors) add up to
        `weight.sum()` when every other node they reach through has inputs that add up to 1.

    Source: Ameisen et al. 2025, "Circuit Tracing", appendix on graph pruning.

    Of an answer of weight 1, three quarters come by way of the node between:

    >>> share = sparse.csr_array([[0.0, 0, 0], [1, 0, 0], [0.25, 0.75, 0]])
    >>> influence(share, np.array([0.0, 0.0, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """
    start, index = share.indptr, share.indices
    reached = weight.astype(np.float64)
    for low, high in _blocks(share):
        edges = slice(start[low], start[high])
        inflow = np.repeat(reached[low:high], np.diff(start[low : high + 1]))
        reached += np.bincount(index[edges], share.data[edges] * inflow, len(weight))
    return reached - weight


def steps(
    share: sparse.csr_array,
    weight: Float[np.ndarray, " nodes"],
    tokens: Bool[np.ndarray, " nodes"],
    counted: Bool[np.ndarray, " nodes"],
) -> float:
    """How many nodes the ways from tokens to the outputs pass, mean over what flows along each.

    Ways that begin at an error take no part, so graphs with more and with less error compare.

    Args:
        share: (nodes, nodes) P, as for `influence`.
        weight: (nodes,) w, likewise.
        tokens: (nodes,) where ways begin.
        counted: (nodes,) which nodes count.

    Returns:
        Nodes a way, at least 0; 0 where no way leads from a token to an output.

    Of an answer of weight 1, three quarters come by way of the node between:

    >>> share = sparse.csr_array([[0.0, 0, 0], [1, 0, 0], [0.25, 0.75, 0]])
    >>> first, middle = np.array([True, False, False]), np.array([False, True, False])
    >>> steps(share, np.array([0.0, 0.0, 1.0]), first, middle)
    0.75
    """
    start, index = share.indptr, share.indices
    from_tokens = tokens.astype(np.float64)
    for low, high in reversed(_blocks(share)):
        edges = slice(start[low], start[high])
        row = np.repeat(np.arange(high - low), np.diff(start[low : high + 1]))
        flow = share.data[edges] * from_tokens[index[edges]]
        from_tokens[low:high] += np.bincount(row, flow, high - low)
    passed = float((influence(share, weight) * counted) @ from_tokens)
    whole = float(weight @ from_tokens)
    return passed / whole if whole else 0.0


def _blocks(share: sparse.csr_array) -> list[tuple[int, int]]:
    """Row ranges, last first, in which no row reads a column of its own range."""
    start = share.indptr
    latest = np.full(share.shape[0], -1)
    filled = np.diff(start) > 0
    latest[filled] = share.indices[start[1:][filled] - 1]
    blocks: list[tuple[int, int]] = []
    high = share.shape[0]
    while high > 0:
        low, reach = high - 1, latest[high - 1]
        while reach < low - 1:
            low -= 1
            reach = max(reach, latest[low])
        blocks.append((low, high))
        high = low
    return blocks


def cumulative(value: Float[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
    """Share of the total held by each entry and all larger ones; ties in index order.

    Small means important: the entries with `cumulative <= q` are the largest that together
    hold the share q.

    Returns:
        (nodes,) shares from 0 to 1; all 1 where the total is 0.

    >>> cumulative(np.array([1.0, 6.0, 3.0])).tolist()
    [1.0, 0.6, 0.9]
    """
    order = np.argsort(-value, kind="stable")
    running = np.cumsum(value[order])
    held = np.ones_like(value)
    if len(value) and running[-1] > 0:
        held[order] = running / running[-1]
    return held
