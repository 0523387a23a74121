"""An explanation of one attention score, as a value and as rows of a graph's tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graphs import AttributionGraph
from graphs.attention_tables import COLUMNS, empty
from replacement_models.one_line import one_line

CONTRASTS = ("odds", "plain", "score")
LOUD = 10.0
"""Cancellation from which an explanation is hard to read: parts are so many times the whole."""


@dataclass(frozen=True, eq=False)
class AttentionExplanation:
    """One head at one query and key, in units of scores (nats)."""

    layer: int
    head: int
    query: int
    key: int
    contrast: str
    """"odds": the score less the mean of the other keys', by attention; "plain": less the mean of
    all keys', the key's own included; "score": alone."""
    score: float
    """Before a soft cap."""
    capped: float
    """After it: what the softmax gets."""
    pattern: float
    """The attention that the key gets."""
    explained: float
    """What the tables add up to: the contrast of the capped scores."""
    log_odds: float
    """The capped score less the mean of the other keys', by the attention they get."""
    sink: float
    """Of `explained`: what a sink's own score contributes."""
    cancellation: float
    """Sizes of all marginals, of the larger side, over that of `explained`."""
    residual: float
    """By how much the worse side misses `explained`, over the largest score."""
    q: pa.Table
    """Nodes by what they contribute to the query: node, position, weight; strongest first, then the
    rest. Constants are `constant.positions`, `constant.biases`, `constant.skipped`."""
    k: pa.Table
    """Likewise to the key, and to those it is compared with."""
    by_position: pa.Table
    """All marginals by the position where nodes stand: side, position (null: no node), weight."""
    heads: pa.Table
    """What heads below wrote of either side: side, layer, head, weight; strongest first. Each layer
    is a split of its own, so weights of several layers are not added."""
    pairs: pa.Table | None
    """node_q, node_k, weight; what is not listed of a side is its row "rest"."""
    keys: pa.Table
    """Every key that the query may see: key, score, capped, pattern."""

    __repr__ = one_line

    @property
    def loud(self) -> bool:
        """Whether parts cancel so much that a few of them say little."""
        return self.cancellation > LOUD

    def joined(self, graph: AttributionGraph) -> AttributionGraph:
        """The graph with this explanation among its tables.

        One of the same head, query, key and contrast is replaced.
        """
        names = [name for name, columns in COLUMNS.items() if "explanation" in columns]
        known = {name: graph.tables.get(name, empty(name)) for name in names}
        place = ("layer", "head", "query", "key", "contrast")
        same = {
            row["explanation"]
            for row in known["attention"].to_pylist()
            if all(row[name] == getattr(self, name) for name in place)
        }
        every = known["attention"]["explanation"].to_pylist()
        number = max(every, default=-1) + 1
        for name, table in known.items():
            kept = [which not in same for which in table["explanation"].to_pylist()]
            added = _typed(name, [{"explanation": number, **row} for row in self._rows(name)])
            known[name] = pa.concat_tables([table.filter(pa.array(kept, pa.bool_())), added])
        return graph.with_tables(known)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if name == "attention":
            return [{column: getattr(self, column) for column in list(COLUMNS[name])[1:]}]
        if name == "attention_pairs":
            return [] if self.pairs is None else self.pairs.to_pylist()
        sides = (("q", self.q), ("k", self.k))
        return [{"side": side, **row} for side, table in sides for row in table.to_pylist()]


def _typed(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    wanted = COLUMNS[name]
    return pa.table(
        {column: pa.array([row[column] for row in rows], kind) for column, kind in wanted.items()}
    )
