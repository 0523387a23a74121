"""How stable the nodes and edges of a graph are: over thresholds, rephrasings, prompts drawn anew.

A node's stability is the share of other graphs, pruned alike, that hold it, and an edge's likewise.
Without others the graph is pruned at several thresholds instead. Nodes of two prompts are the same
as `graphs.collections.compare` and `incidence` have it: by kind, place in the layers and number,
tokens by their text, the likeliest answer whatever it is, other answers by their token.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from graphs import words
from graphs.collections.alignment import ALIGNMENTS, aligned
from graphs.collections.dataset import GraphDataset
from graphs.collections.incidence import ANSWER
from graphs.collections.node_keys import NodeKey, explained_tokens, node_key
from graphs.edges import STABILITY
from graphs.graph import AttributionGraph
from graphs.schema import GraphError, NodeKind, number

THRESHOLDS = ((0.5, 0.98), (0.6, 0.98), (0.7, 0.98), (0.8, 0.98), (0.9, 0.98))
"""Shares of node and edge influence at which a graph without others is pruned."""
USUAL = ((0.8, 0.98),)
"""At which others are."""
SLACK = 1e-9
CHUNK = 4096
"""Nodes and edges that are drawn for together."""

Others = GraphDataset | str | Path | Iterable[AttributionGraph]


def stability(
    graph: AttributionGraph,
    others: Others | None = None,
    thresholds: Sequence[tuple[float, float]] | None = None,
    align: str = "anywhere",
    draws: int | None = None,
    frequency: float = 0.5,
    seed: int = 0,
) -> AttributionGraph:
    """Say of every node and edge of a graph how often others hold it.

    A trace draws no random numbers, so one model and dictionary have no other seeds to compare
    with; prompts can be drawn anew (`draws`).

    Args:
        graph: as traced, or pruned.
        others: graphs of the same model and dictionary, as of rephrasings: a dataset, its folder,
            or graphs; None: this graph at several thresholds. Held are 4 bytes for each of them
            and each node and edge.
        thresholds: shares of node and edge influence to prune at; None: 0.5, 0.6, 0.7, 0.8 and 0.9
            of node influence, and 0.8 where there are others, with 0.98 of edge influence, or what
            a graph was pruned at (of others the first) where that is less.
        align: how positions of prompts go together: "anywhere" (a feature is the same wherever it
            fires), "text" (by the text of the tokens) or "end" (counted from the end). What stands
            where no other prompt has a token is not known.
        draws: of as many others, with replacement; a node's stability is then the share of draws
            whose consensus circuit holds it. None: the share of others.
        frequency: least share of the others drawn that hold what their consensus circuit does.
        seed: of the draws.

    Returns:
        The same graph with the column `stability` in nodes and edges, 0 to 1, null where it is not
        known, and what it is over in `metadata["stability"]`.

    Raises:
        GraphError: no others, another dictionary's, a number out of range, or a threshold above
            the one that a graph was pruned at.
    """
    if align not in ALIGNMENTS:
        raise GraphError(f"align is {align!r}, expected one of {', '.join(ALIGNMENTS)}")
    _check_drawn(others, draws, frequency, seed)
    if others is None:
        pairs = _allowed(graph, THRESHOLDS) if thresholds is None else tuple(thresholds)
        found = np.array([_at_thresholds(graph, pairs)])
    else:
        pairs = () if thresholds is None else tuple(thresholds)
        rows: list[np.ndarray] = []
        for one in _graphs(others):
            if thresholds is None and not rows:
                pairs = _at_most(one, USUAL)
            rows.append(_beside(graph, one, pairs, align).astype(np.float32))
        if not rows:
            raise GraphError("there is no other graph to compare with: none of the prompts was "
                             "traced")  # fmt: skip
        found = np.array(rows)
    shares = _means(found) if draws is None else _selected(found, draws, frequency, seed)
    about = _about(len(found) if others is not None else 0, pairs)
    if others is not None:
        about["align"] = align
    if draws is not None:
        about |= {"draws": draws, "frequency": frequency, "seed": seed}
    count = graph.nodes.num_rows
    return graph.with_stability(shares[:count], shares[count:], about | {"over": _over(about)})


def stable_share(graph: AttributionGraph) -> float | None:
    """How stable the features of a graph are in the mean, each weighed by its influence.

    Args:
        graph: with the column `stability`; pruned to 0.8 and 0.98 unless it has been.

    Returns:
        A share; None where it is not known of any feature.
    """
    small = graph if "pruned" in graph.metadata else graph.prune()
    if STABILITY not in small.nodes.column_names:
        return None
    known = small.nodes[STABILITY].is_valid().to_numpy()
    weight = number(small.nodes, "influence") * known
    weight[np.array(small.nodes["kind"].to_pylist(), object) != NodeKind.FEATURE] = 0
    whole = float(weight.sum())
    if not whole:
        return None
    return min(1.0, float(weight @ number(small.nodes, STABILITY)) / whole)


def _check_drawn(others: Others | None, draws: int | None, frequency: float, seed: int) -> None:
    if draws is not None and others is None:
        raise GraphError("draws need others to draw from: give graphs of other prompts")
    if draws is not None and not 1 <= draws <= 100_000:
        raise GraphError(f"draws is {draws}, expected 1 to 100000")
    if not 0 < frequency <= 1:
        raise GraphError(f"frequency is {frequency}, expected a share above 0 and at most 1")
    if seed < 0:
        raise GraphError(f"seed is {seed}, expected a whole number from 0 up")


def _graphs(others: Others) -> Iterable[AttributionGraph]:
    if isinstance(others, str | Path):
        others = GraphDataset.load(others)
    return (graph for _, graph in others.graphs()) if isinstance(others, GraphDataset) else others


Pairs = tuple[tuple[float, float], ...]


def _limits(graph: AttributionGraph) -> tuple[float, float]:
    """Shares of node and edge influence that a graph was pruned at."""
    before = graph.metadata.get("pruned", {"nodes": 1, "edges": 1})
    return before["nodes"], before["edges"]


def _allowed(graph: AttributionGraph, thresholds: Pairs) -> Pairs:
    """Those that a pruned graph can still be pruned at."""
    nodes, edges = _limits(graph)
    return tuple((n, min(e, edges)) for n, e in thresholds if n <= nodes)


def _at_most(graph: AttributionGraph, thresholds: Pairs) -> Pairs:
    """The same, lowered to what a graph was pruned at."""
    nodes, edges = _limits(graph)
    return tuple((min(n, nodes), min(e, edges)) for n, e in thresholds)


def _pruned(graph: AttributionGraph, pair: tuple[float, float]) -> AttributionGraph:
    nodes, edges = _limits(graph)
    if nodes < pair[0] <= 1 or edges < pair[1] <= 1:
        raise GraphError(
            f"a graph was pruned at {nodes:g} of node and {edges:g} of edge influence, what it "
            f"held at {pair[0]:g} and {pair[1]:g} is not known: take the graph as traced, or lower "
            "thresholds"
        )
    return graph.prune(*pair)


def _at_thresholds(
    graph: AttributionGraph, pairs: Sequence[tuple[float, float]]
) -> Float[np.ndarray, " both"]:
    """Share of thresholds at which each node, then each edge, is kept."""
    if not pairs:
        raise GraphError("there is no threshold to prune at: give shares of node influence, at "
                         "most what the graph was pruned at")  # fmt: skip
    names: list[Hashable] = graph.nodes["id"].to_pylist()
    known = dict.fromkeys(names, 0) | {name: at for at, name in enumerate(names)}
    codes = np.arange(len(names))
    found = []
    for pair in pairs:
        small = _pruned(graph, pair)
        theirs = np.array([known[name] for name in small.nodes["id"].to_pylist()], int)
        found.append(_held((graph, codes), (small, theirs)))
    return np.mean(found, axis=0)


def _beside(
    graph: AttributionGraph,
    other: AttributionGraph,
    pairs: Sequence[tuple[float, float]],
    align: str,
) -> Float[np.ndarray, " both"]:
    """Share of thresholds at which another graph holds each node, then each edge; NaN unknown."""
    hashes = [one.metadata.get("transcoders_hash") for one in (graph, other)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise GraphError("a graph is of another dictionary, whose features have nothing but "
                         "numbers in common with this one's")  # fmt: skip
    if not pairs:
        raise GraphError("there is no threshold to prune at: give shares of node influence")
    mine, theirs = _columns(graph, other, align)
    names = _keys(graph, mine)
    known: dict[NodeKey, int] = {}
    codes = np.array([-1 if n is None else known.setdefault(n, len(known)) for n in names], int)
    found = []
    for pair in pairs:
        small = _pruned(other, pair)
        keys = _keys(small, theirs)
        theirs_coded = np.array([-1 if key is None else known.get(key, -1) for key in keys], int)
        found.append(_held((graph, codes), (small, theirs_coded)))
    return np.mean(found, axis=0)


Columns = Sequence[int | None] | None


def _columns(
    graph: AttributionGraph, other: AttributionGraph, align: str
) -> tuple[Columns, Columns]:
    """Of each position of both prompts a column, None where the other has none; None: anywhere."""
    if align == "anywhere":
        return None, None
    tokens = (explained_tokens(graph), explained_tokens(other))
    mine, theirs = ([None] * len(text) for text in tokens)
    for column, (one, two) in enumerate(aligned(*tokens, align)):
        if one is not None and two is not None:
            mine[one] = theirs[two] = column  # type: ignore[call-overload]
    return mine, theirs


def _keys(graph: AttributionGraph, columns: Columns) -> list[NodeKey | None]:
    """What each node is the same by; None where the other prompt has no such place."""
    weight = number(graph.nodes, "probability")
    best = int(weight.argmax()) if len(weight) else -1
    return [_key(row, at == best, columns) for at, row in enumerate(graph.nodes.to_pylist())]


def _key(row: dict[str, Any], best: bool, columns: Columns) -> NodeKey | None:
    logit = row["kind"] == NodeKind.LOGIT
    if columns is None or logit:
        key = node_key(row, None)._replace(column=None)
        return key._replace(name=ANSWER) if logit and best else key
    column = columns[row["position"]]
    return None if column is None else node_key(row, column)


Coded = tuple[AttributionGraph, Int[np.ndarray, " nodes"]]


def _held(mine: Coded, theirs: Coded) -> Float[np.ndarray, " both"]:
    """Which nodes, then which edges, another graph holds: 1, 0, or NaN where no code is known."""
    codes = mine[1]
    most = int(codes.max(initial=0)) + 1
    own, other = (_edges(*one, most) for one in (mine, theirs))
    nodes = np.where(codes < 0, np.nan, np.isin(codes, theirs[1]))
    edges = np.where(own < 0, np.nan, np.isin(own, other))
    return np.concatenate([nodes, edges])


def _edges(
    graph: AttributionGraph, codes: Int[np.ndarray, " nodes"], most: int
) -> Int[np.ndarray, " edges"]:
    """A number for each edge by the codes of its ends; -1 where one of them has none."""
    target, source = (codes[end] for end in graph.effect.tocoo().coords)
    return np.where((source < 0) | (target < 0), -1, source.astype(np.int64) * most + target)


def _means(found: Float[np.ndarray, "others both"]) -> Float[np.ndarray, " both"]:
    """Mean over those of which it is known; NaN where it is of none."""
    known = ~np.isnan(found)
    count = known.sum(axis=0)
    total = np.where(known, found, 0).sum(axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full(found.shape[1], np.nan), where=count > 0)


def _selected(
    found: Float[np.ndarray, "others both"], draws: int, frequency: float, seed: int
) -> Float[np.ndarray, " both"]:
    """Share of draws in which at least such a share of the others drawn holds each.

    Source: Meinshausen and Bühlmann 2010, "Stability selection", with the bootstrap.
    """
    count = len(found)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    shares = np.full(found.shape[1], np.nan)
    for start in range(0, found.shape[1], CHUNK):
        some = found[:, start : start + CHUNK].astype(np.float64)
        known = ~np.isnan(some)
        of = times @ known
        held = (times @ np.where(known, some, 0) >= frequency * of - SLACK) & (of > 0)
        told = (of > 0).sum(axis=0)
        part = shares[start : start + CHUNK]
        np.divide(held.sum(axis=0), told, out=part, where=told > 0)
    return shares


def _about(prompts: int, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    about: dict[str, Any] = {"thresholds": [list(pair) for pair in pairs]}
    return about | ({"prompts": prompts} if prompts else {})


def _over(about: dict[str, Any]) -> str:
    """What shares are of, in words."""
    several = len(about["thresholds"])
    thresholds = f"{several} threshold{'s' if several > 1 else ''}"
    if "prompts" not in about:
        return thresholds
    prompts = f"{about['prompts']} other prompt{'s' if about['prompts'] > 1 else ''}"
    at = f" at {thresholds}" if several > 1 else ""
    if "draws" not in about:
        return prompts + at
    share = words.percent(about["frequency"])
    return f"{about['draws']} draws of {prompts}{at}, held where {share} of those drawn do"
