"""Graphs of many prompts taken together: how often each feature and edge appears, what it carries.

A node's frequency is the share of a group's graphs that hold it; its influence the mean over all of
them, 0 where it is not, as parts of the answer. Both have intervals: prompts drawn anew (bootstrap,
95 %). Dataset graphs are pruned ones as a rule: what pruning took counts as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from graphs.collections.aggregate_words import in_words
from graphs.collections.bootstrap import bootstrap
from graphs.collections.dataset import GraphDataset
from graphs.collections.incidence import Incidence, incidence
from graphs.collections.merged_picture import Group, draw
from graphs.schema import GraphError, NodeKind

EVERY = "all"
"""The group where nothing is grouped."""
MOST_PANELS = 4
SLACK = 1e-9
"""Of a graph, by which rounding may miss a share."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What the graphs of a dataset have in common, group by group."""

    nodes: pa.Table
    """One row a node and group that holds it often enough (`least`), the most frequent first, then
    the most influential: group, node (row of `incidence.nodes`) with its kind, site, layer, name,
    column, place and label; count (of graphs), frequency, frequency_low, frequency_high, influence,
    low and high (of the mean over all graphs), when_present (mean over those that hold it)."""
    edges: pa.Table
    """Likewise: group, source and target (in words), source_node and target_node, sign (from -1,
    inhibits wherever it is, to 1, excites) and the same numbers."""
    groups: pa.Table
    """One row a group: group and prompts (of graphs)."""
    incidence: Incidence
    """What it is made of."""
    group_of: np.ndarray
    """(prompts,) the group of each row of `incidence.prompts`."""
    least: float
    """Frequency below which nodes and edges are left out."""

    def consensus(self, group: str = EVERY, frequency: float = 0.5) -> tuple[pa.Table, pa.Table]:
        """The circuit that at least such a share of a group's graphs hold.

        Args:
            group: one of `groups`.
            frequency: least share of graphs, of nodes and of edges.

        Returns:
            Rows of `nodes`, and rows of `edges` between them.

        Raises:
            GraphError: no such group, or a share below `least` or above 1.
        """
        self._check(group, frequency)
        nodes, edges = (
            table.filter(
                (np.array(table["group"].to_pylist(), object) == group)
                & (table["frequency"].to_numpy() >= frequency - SLACK)
            )
            for table in (self.nodes, self.edges)
        )
        kept = nodes["node"].to_numpy()
        inside = np.isin(edges["source_node"].to_numpy(), kept)
        inside &= np.isin(edges["target_node"].to_numpy(), kept)
        return nodes, edges.filter(inside)

    def features(self, group: str = EVERY, frequency: float = 0.5) -> list[tuple[int, int]]:
        """Features of the consensus circuit.

        Returns:
            Layer and number, in order; where nodes are told apart by position, once.

        Raises:
            GraphError: as `consensus`.
        """
        nodes, _ = self.consensus(group, frequency)
        rows = (row for row in nodes.to_pylist() if row["kind"] == NodeKind.FEATURE)
        return sorted({(row["layer"], int(row["name"])) for row in rows})

    def stability(
        self, group: str = EVERY, frequency: float = 0.5, draws: int = 1000, seed: int = 0
    ) -> tuple[float, float, float]:
        """How far the circuit's features are those of as many prompts drawn anew.

        Args:
            group: one of `groups`.
            frequency: least share of graphs.
            draws: of prompts, with replacement.
            seed: of the draws.

        Returns:
            Features in both circuits over those in either: median, and the ends of the middle 95 %
            of the draws. 1 where no draw has a feature either.

        Raises:
            GraphError: as `consensus`.
        """
        self._check(group, frequency)
        rows = self.incidence.carried[np.flatnonzero(self.group_of == group)]
        features = np.array(self.incidence.nodes["kind"].to_pylist(), object) == NodeKind.FEATURE
        held = sparse.csr_array(rows[:, np.flatnonzero(features)])
        held.data = np.ones_like(held.data)
        count = held.shape[0]
        times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
        enough = frequency * count - SLACK
        drawn = np.asarray(held.T @ times.T) >= enough  # (features, draws)
        whole = np.asarray(held.sum(axis=0)).reshape(-1, 1) >= enough
        both, either = (drawn & whole).sum(0), (drawn | whole).sum(0)
        shares = np.divide(both, either, out=np.ones(draws), where=either > 0)
        low, middle, high = np.quantile(shares, (0.025, 0.5, 0.975)).tolist()
        return middle, low, high

    def shared(self, frequency: float = 0.5) -> pa.Table:
        """Features by the groups whose consensus circuit holds them, those of most groups first.

        Args:
            frequency: least share of a group's graphs.

        Returns:
            node, layer, feature, label, groups (names), frequencies (in each of them).

        Raises:
            GraphError: a share below `least` or above 1.
        """
        self._check(self.groups["group"][0].as_py(), frequency)
        found: dict[int, dict[str, Any]] = {}
        for row in self.nodes.to_pylist():
            if row["kind"] == NodeKind.FEATURE and row["frequency"] >= frequency - SLACK:
                known = found.setdefault(
                    row["node"],
                    {"node": row["node"], "layer": row["layer"], "feature": int(row["name"]),
                     "label": row["label"], "groups": [], "frequencies": []},
                )  # fmt: skip
                known["groups"].append(row["group"])
                known["frequencies"].append(row["frequency"])
        rows = sorted(
            found.values(),
            key=lambda row: (-len(row["groups"]), -sum(row["frequencies"]), row["node"]),
        )
        return pa.Table.from_pylist(rows, pa.schema(list(SHARED.items())))

    def render(
        self, path: str | Path, frequency: float = 0.5, groups: Sequence[str] | None = None
    ) -> Path:
        """Draw the consensus circuits, a panel a group, to .svg, .png, .pdf or .dot.

        Args:
            path: where.
            frequency: least share of a group's graphs.
            groups: which; None: all, at most four.

        Returns:
            The path written.

        Raises:
            GraphError: more than four groups, none of that name, nothing to draw, an unknown
                suffix, Graphviz is missing (not for .dot), or the place cannot be written.
        """
        names = self.groups["group"].to_pylist() if groups is None else list(groups)
        if not 0 < len(names) <= MOST_PANELS:
            raise GraphError(
                f"a picture has 1 to {MOST_PANELS} groups beside each other, got {len(names)}: "
                "name those to draw"
            )
        sizes = dict(zip(*(self.groups[c].to_pylist() for c in ("group", "prompts")), strict=True))
        parts = []
        for name in names:
            nodes, edges = self.consensus(name, frequency)
            parts.append(Group(name, sizes[name], nodes.to_pylist(), edges.to_pylist()))
        place = Path(path)
        draw(place, parts, frequency)
        return place

    def to_json(self, frequency: float = 0.5) -> dict[str, Any]:
        """Everything found, JSON throughout.

        Returns:
            groups, nodes, edges and shared; in nodes and edges `consensus` says whether a row is
            part of its group's circuit.
        """
        inside = {"nodes": set[tuple[str, Any]](), "edges": set[tuple[str, Any]]()}
        for group in self.groups["group"].to_pylist():
            nodes, edges = self.consensus(group, frequency)
            inside["nodes"] |= {(group, row["node"]) for row in nodes.to_pylist()}
            inside["edges"] |= {(group, _ends(row)) for row in edges.to_pylist()}
        return {
            "frequency": frequency,
            "least": self.least,
            "groups": self.groups.to_pylist(),
            "nodes": [
                row | {"consensus": (row["group"], row["node"]) in inside["nodes"]}
                for row in self.nodes.to_pylist()
            ],
            "edges": [
                row | {"consensus": (row["group"], _ends(row)) in inside["edges"]}
                for row in self.edges.to_pylist()
            ],
            "shared": self.shared(frequency).to_pylist(),
        }

    def _check(self, group: str, frequency: float) -> None:
        known = self.groups["group"].to_pylist()
        if group not in known:
            raise GraphError(f"no group is called {group!r:.80}: expected one of "
                             f"{', '.join(known)[:300]}")  # fmt: skip
        if not self.least - SLACK <= frequency <= 1:
            raise GraphError(f"frequency is {frequency:g}, expected a share from {self.least:g} "
                             "(least: what is rarer was left out) to 1")  # fmt: skip


SHARED = {
    "node": pa.int64(),
    "layer": pa.int32(),
    "feature": pa.int64(),
    "label": pa.string(),
    "groups": pa.list_(pa.string()),
    "frequencies": pa.list_(pa.float64()),
}


def aggregate(
    dataset: GraphDataset | str | Path,
    group_by: str | None = None,
    align: str = "anywhere",
    draws: int = 1000,
    seed: int = 0,
    least: float = 0.1,
) -> Aggregate:
    """Take the graphs of a dataset together.

    Args:
        dataset: of graphs, or its folder.
        group_by: a column of its prompts whose values are groups of their own; None: one group.
        align: "anywhere" (a feature is the same wherever it fires), or "end" (only at the same
            distance from the last token).
        draws: of prompts, for the intervals.
        seed: of the draws.
        least: frequency below which nodes and edges of a group are left out, in (0, 1].

    Returns:
        Nodes and edges with frequency and mean influence, group by group.

    Raises:
        GraphError: no dataset, no graph in it, no such column, or a number out of range.
    """
    if not 0 < least <= 1:
        raise GraphError(f"least is {least}, expected a share above 0 and at most 1")
    if not 1 <= draws <= 100_000:
        raise GraphError(f"draws is {draws}, expected 1 to 100000")
    if seed < 0:
        raise GraphError(f"seed is {seed}, expected a whole number from 0 up")
    held = dataset if isinstance(dataset, GraphDataset) else GraphDataset.load(dataset)
    known = incidence(held, align, group_by)
    named = np.full(known.prompts.num_rows, EVERY, object)
    if group_by is not None:
        named = np.array([_named(one) for one in known.prompts[group_by].to_pylist()], object)
    words = [in_words(row) for row in known.nodes.to_pylist()]
    nodes, edges, sizes = [], [], []
    for group in sorted(set(named.tolist())):
        rows = np.flatnonzero(named == group)
        sizes.append({"group": group, "prompts": len(rows)})
        how = _How(group, rows, draws, seed, least)
        nodes.append(_nodes(known, how))
        edges.append(_edges(known, how, words))
    return Aggregate(
        pa.concat_tables(nodes),
        pa.concat_tables(edges),
        pa.Table.from_pylist(sizes),
        known,
        named,
        least,
    )


def _named(value: Any) -> str:
    return "none" if value is None else str(value)


def _ends(row: dict[str, Any]) -> tuple[int, int]:
    return row["source_node"], row["target_node"]


@dataclass(frozen=True)
class _How:
    """What is measured of one group."""

    group: str
    rows: np.ndarray
    """Of `Incidence.prompts`."""
    draws: int
    seed: int
    least: float


def _measured(values: sparse.csr_array, how: _How) -> tuple[np.ndarray, dict[str, Any]]:
    """Columns of a matrix that appear, the most frequent first, and what is measured of them."""
    count = np.bincount(values.indices, minlength=values.shape[1])
    here = np.flatnonzero((count > 0) & (count >= how.least * values.shape[0] - SLACK))
    held = sparse.csr_array(values[:, here])
    there = held.copy()
    there.data = np.ones_like(there.data)
    total = np.asarray(held.sum(axis=0)).ravel()
    low, high = bootstrap(held, how.draws, how.seed)
    often = bootstrap(there, how.draws, how.seed)
    order = np.lexsort((here, -total, -count[here]))
    table = {
        "count": count[here],
        "frequency": count[here] / held.shape[0],
        "frequency_low": often[0],
        "frequency_high": often[1],
        "influence": total / held.shape[0],
        "low": low,
        "high": high,
        "when_present": total / count[here],
    }
    return here[order], {name: column[order] for name, column in table.items()}


def _nodes(known: Incidence, how: _How) -> pa.Table:
    here, found = _measured(sparse.csr_array(known.carried[how.rows]), how)
    taken = known.nodes.take(here)
    columns = {name: taken[name] for name in taken.column_names}
    group = pa.array([how.group] * len(here), pa.string())
    return pa.table({"group": group, "node": here, **columns, **found})


def _edges(known: Incidence, how: _How, words: list[str]) -> pa.Table:
    moved = sparse.csr_array(known.moved[how.rows])
    here, found = _measured(moved, how)
    whole, signed = (
        np.asarray(part.sum(axis=0)).ravel()[here] for part in (moved, known.signed[how.rows])
    )
    ends = known.edges[here]
    return pa.table(
        {
            "group": pa.array([how.group] * len(here), pa.string()),
            "source": pa.array([words[at] for at in ends[:, 0].tolist()], pa.string()),
            "target": pa.array([words[at] for at in ends[:, 1].tolist()], pa.string()),
            "source_node": ends[:, 0],
            "target_node": ends[:, 1],
            "sign": np.divide(signed, whole, out=np.zeros(len(here)), where=whole != 0),
            **found,
        }
    )
