"""The attribution graph of one prompt: the value every other module here reads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy import sparse

from graphs import attention_tables, grouped, similarity, steering, words
from graphs import groups as grouping
from graphs.conservation import CLAIM, broken, check_conservation
from graphs.described import misdescribed
from graphs.edges import (
    STABILITY,
    check_stability,
    edge_table,
    effect_matrix,
    nullable,
    stability_of,
)
from graphs.exchange import arrow, versions
from graphs.exchange.attribution_import import Imported, read_attribution_json
from graphs.exchange.attribution_json import About, attribution_json
from graphs.exchange.circuit_tracer_pt import read_circuit_tracer_pt
from graphs.exchange.files import place_of, writing
from graphs.exchange.views import pins_of, view_of, with_pins, with_view
from graphs.groups import Group
from graphs.influence import cumulative, influence, input_absolute, shares, steps
from graphs.paths import NodePath, by_sign, strongest, strongest_of_sign
from graphs.pictures import captions, picture, render
from graphs.pictures.scene import Content, Style
from graphs.pictures.summary_source import draw_summary, summary_source
from graphs.prune import Ends, Kept, connected, cut, prune, prune_steered
from graphs.schema import (
    COLUMNS,
    DERIVED,
    GIVEN,
    GraphError,
    NodeKind,
    check_effect,
    check_inputs,
    check_nodes,
    is_kind,
    node_table,
    number,
    plain_metadata,
)
from graphs.scores import ScorePair, Scores, as_computed, leak, score_pair, uncovered
from graphs.viewer.page import page
from graphs.viewer.payload import Beside, Extras, pack
from graphs.viewer.thresholds import MOST_EDGES, strongest_edges

if TYPE_CHECKING:
    import networkx as nx

LEAST = 0.3
"""Likeness that features of an automatic group share."""
MOST_STEPS = 1 << 24
"""Nodes times paths that are looked for at once: 24 bytes each."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttributionGraph:
    """Direct effects between the nodes of one prompt.

    Nodes stand in the order a forward pass computes them, so every edge runs from a lower row
    to a higher one: the graph is acyclic by construction, and sums over all paths are triangular
    solves. A value: nothing in it changes after it is made. Whoever traces calls `build`.

    Nodes and edges are checked once, where they come in: by `build`, `load`, `from_networkx` and
    this constructor. What pruning or new labels make of a graph that was checked needs no check.
    """

    nodes: pa.Table
    """One row a node, columns as `graphs.schema.COLUMNS`, then whatever else was given."""

    effect: sparse.csr_array
    """(nodes, nodes). `effect[target, source]`, in units of the target's pre-activation (of its
    logit, in logit rows), float32 or float64 as traced."""

    metadata: dict[str, Any]
    """What the graph is of and how it was made, JSON throughout: prompt, tokens, model,
    settings; `pruned` (thresholds, nodes and edges kept and traced) once it has been pruned."""

    groups: tuple[Group, ...] = ()
    """Named groups of nodes, a node in one at most; `group`, `ungroup` and `rename` change them."""

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """What is known of attention, by the names of `graphs.attention_tables.COLUMNS`."""

    view_json: bytes | None = None
    """What a viewer saved beside the graph, as it stands on disk: pins, thresholds, places."""
    edge_stability: Float[np.ndarray, " edges"] | None = None
    """(edges,) the column `stability` of `edges`, shares, NaN where it is not known; None where
    nobody has asked. That of nodes is a column of `nodes`."""

    def __post_init__(self) -> None:
        attention_tables.check(self.tables)
        if steering.NAME in self.tables:
            steering.check(self.tables[steering.NAME], self.nodes.num_rows)
        check_nodes(self.nodes, self.metadata)
        check_effect(self.effect, self.nodes)
        check_inputs(self._left, self.nodes)
        check_conservation(self.effect, self.nodes, self.metadata)
        grouping.check(self.groups, self.nodes["id"].to_pylist())
        if self.edge_stability is not None:
            check_stability(self.edge_stability, self.effect.nnz)
        _freeze(self.effect)

    @classmethod
    def _of(cls, **known: Any) -> AttributionGraph:
        """A graph whose invariants were checked, or hold since it is made of one that was.

        Args:
            known: the fields, and of the cached properties those whose values are known already.
        """
        graph = object.__new__(cls)
        vars(graph).update({"tables": {}} | known)
        _freeze(graph.effect)
        return graph

    @classmethod
    def build(
        cls,
        nodes: Mapping[str, Sequence[Any] | np.ndarray],
        effect: sparse.csr_array,
        metadata: Mapping[str, Any],
        lost: Float[np.ndarray, " nodes"] | float = 0.0,
    ) -> AttributionGraph:
        """A graph from what the engine traced; computes the influence columns.

        Args:
            nodes: every column of `graphs.schema.GIVEN`, one entry a node in computation order,
                None (not NaN) where a column has no value; more columns are kept as they are.
            effect: (nodes, nodes) `effect[target, source]`, float32 or float64.
            metadata: anything JSON can hold; `format_version` is added.
            lost: absolute inputs of each node that `effect` no longer holds (below an edge floor):
                part of what influence divides by. What a cap left out is not: it stands in the
                column `left_out_absolute`, with the former. Both count as error in the scores.

        Returns:
            The graph with the columns `influence` (in units of the targets' weights),
            `cumulative_influence` (a share) and `input_absolute` (in units of the effects).

        Raises:
            GraphError: an invariant does not hold; the message names the node or edge.

        Dallas makes the answer likelier, also through Texas, which makes it less likely:

        >>> nodes = dict.fromkeys(GIVEN, [None] * 3) | {
        ...     "id": ["dallas", "texas", "austin"], "kind": ["embedding", "feature", "logit"],
        ...     "layer": [-1, 0, 1], "position": [0, 0, 0], "text": [" Dallas", None, " Austin"],
        ...     "label": [None, "Texas", None], "feature": [None, 7, None], "token": [5, None, 9],
        ...     "probability": [None, None, 0.8],
        ... }
        >>> effect = sparse.csr_array([[0.0, 0, 0], [2, 0, 0], [1, -3, 0]])
        >>> graph = AttributionGraph.build(nodes, effect, {"tokens": [" Dallas"]})
        >>> graph.nodes["influence"].to_pylist()
        [0.8, 0.6000000000000001, 0.0]
        >>> graph.edges.select(["source", "target", "share"]).to_pylist()[-1]
        {'source': 1, 'target': 2, 'share': -0.75}
        >>> for path in graph.paths():
        ...     print(graph.describe(path))
        “Dallas” → Texas (L0, at “Dallas”) ⊣ “Austin” 80%   75%
        “Dallas” → “Austin” 80%   25%
        """
        given = node_table({name: nodes[name] for name in nodes if name not in DERIVED}, GIVEN)
        effect = sparse.csr_array(effect, copy=True)
        effect.sum_duplicates()
        effect.eliminate_zeros()
        check_effect(effect, given)
        left = input_absolute(effect)
        total = left + lost
        reached = influence(shares(effect, total), number(given, "probability"))
        derived = dict(zip(DERIVED, (reached, cumulative(reached), total), strict=True))
        table = node_table({name: given[name] for name in given.column_names} | derived, COLUMNS)
        plain = plain_metadata(metadata)
        check_nodes(table, plain)
        check_inputs(left, table)
        known = {"_left": left, "_reached": reached}
        return cls._of(nodes=table, effect=effect, metadata=plain, **known)

    @cached_property
    def edges(self) -> pa.Table:
        """The effects as a table, ordered by target, then source.

        Returns:
            One row an edge: source, target (row numbers of `nodes`), weight (the effect),
            influence (in units of the targets' weights) and share (signed, of the target's input).
            Influence is that of the graph as traced, among its nodes; shares are of all input that
            the model computed, what a cap left out included. Then stability, where it is known.
        """
        through = number(self.nodes, "influence") + self._weight
        table = edge_table(self.effect, (self._total, self._computed), through)
        if self.edge_stability is None:
            return table
        return table.append_column(STABILITY, nullable(self.edge_stability))

    @cached_property
    def scores(self) -> Scores:
        """How much of the output the graph explains; `graphs.scores` has the formulas.

        Returns:
            Replacement, completeness, leak and what a cap left uncovered, shares from 0 to 1; what
            a cap, an edge floor or pruning took from a row counts as error. `among_nodes` has the
            first two as if the cap had left nothing out. NaN where the targets weigh nothing.
        """
        among = self._pair(self._total, self._reached)
        whole = self._pair(self._computed, self._reached_computed) if self._capped else among
        return Scores(
            replacement=whole.replacement,
            completeness=whole.completeness,
            leak=leak(self._reached_computed, self._weight, self._ends.roots),
            uncovered=self._uncovered,
            among_nodes=among,
        )

    def _pair(self, total: Float[np.ndarray, " nodes"], reached: np.ndarray) -> ScorePair:
        return score_pair(self.effect, total, reached, self._weight, self._ends.roots)

    def prune(
        self, nodes: float = 0.8, edges: float = 0.98, keep_attention: bool | None = None
    ) -> AttributionGraph:
        """The part that holds the given shares of node and edge influence; see `graphs.prune`.

        Columns, shares and scores keep referring to the rows as traced (`scores.uncovered` is the
        traced graph's, in `metadata["pruned"]` where there is any); what a row loses joins its
        `left_out` and `left_out_absolute`. With both shares at 1 nothing is dropped. Of a
        pruned graph nothing is dropped unless a share is below the one it was pruned at; then the
        rule applies to what is left of it, with the influence among what is left, while columns,
        counts and scores still refer to the graph as traced.

        Edges take attention patterns and norms as recorded, so what set those has no part in
        influence. With `keep_attention` it has, as far as the first order tells, and so has what
        drove it: circuits then stand better when attention is made anew.

        Args:
            nodes: share of node influence, in (0, 1].
            edges: share of edge influence, in (0, 1].
            keep_attention: keep what steers the edges kept as well; None: where the graph was made
                to (`tracer.keep_attention`), or was pruned so.

        Returns:
            The part, with the shares and the counts of nodes and edges in `metadata["pruned"]`,
            and of nodes that no path of edges would keep, where attention is kept; this graph
            itself where nothing is dropped.

        Raises:
            GraphError: a share outside (0, 1], or nothing is known of what steers attention.
        """
        _check_shares(nodes, edges)
        before = self.metadata.get("pruned", {"nodes": 1, "edges": 1})
        steered = self.keeps_attention if keep_attention is None else keep_attention
        if steered and steering.NAME not in self.tables:
            raise GraphError(steering.MISSING)
        if nodes >= before["nodes"] and edges >= before["edges"]:
            return self
        kept = self._kept((nodes, edges), steered)
        table, effect = cut(self.nodes, self.effect, kept)
        counts = {
            "nodes": nodes,
            "edges": edges,
            "kept_nodes": table.num_rows,
            "kept_edges": effect.nnz,
            "total_nodes": before.get("total_nodes", self.nodes.num_rows),
            "total_edges": before.get("total_edges", self.effect.nnz),
        }
        if self._uncovered > 0:
            counts["uncovered"] = self._uncovered
        if steered:
            counts |= {"keep_attention": True, "only_steering": self._only_steering(kept)}
        metadata = plain_metadata(self.metadata | {"pruned": counts})
        ids = table["id"].to_pylist()
        return self._of(
            nodes=table,
            effect=effect,
            metadata=metadata,
            groups=grouping.left(self.groups, ids),
            tables=self._tables_left(kept, ids, effect),
            view_json=with_pins(pins) if (pins := pins_of(self.view_json)) else None,
            edge_stability=None if (known := self.edge_stability) is None else known[kept.edges],
        )

    @property
    def keeps_attention(self) -> bool:
        """Whether pruning also keeps what steers attention, unless it is told otherwise."""
        told = self.metadata.get("pruned", self.metadata.get("settings"))
        asked = isinstance(told, Mapping) and told.get("keep_attention") is True
        return asked and steering.NAME in self.tables

    def _kept(self, quantiles: tuple[float, float], steered: bool) -> Kept:
        """What pruning keeps."""
        if not steered:
            return prune(self.effect, self._weight, self._reached_left, self._ends, quantiles)
        steers = steering.matrix(self.tables[steering.NAME], self.nodes.num_rows)
        return prune_steered(self.effect, steers, self._weight, self._ends, quantiles)

    def _only_steering(self, kept: Kept) -> int:
        """How many nodes are kept that lie on no path of edges kept."""
        target, source = self.effect.tocoo().coords
        on_paths = connected(source[kept.edges], target[kept.edges], self._ends)
        return int((kept.nodes & ~on_paths).sum())

    def _tables_left(
        self, kept: Kept, ids: Sequence[str], effect: sparse.csr_array
    ) -> dict[str, pa.Table]:
        """Tables of the part of this graph that has these nodes and effects."""
        if not self.tables:
            return {}
        found = attention_tables.left(self.tables, _edge_names(ids, effect))
        if (known := found.get(steering.NAME)) is not None:
            every = np.ones(known.num_rows, dtype=bool)
            entries = every if kept.steering is None else kept.steering
            found[steering.NAME] = steering.left(known, kept.nodes, entries)
        return found

    def relabel(self, labels: Mapping[str, str]) -> AttributionGraph:
        """The same graph with the labels of some nodes changed.

        Args:
            labels: node id -> label.

        Returns:
            A graph that shares everything else with this one.

        Raises:
            GraphError: no node has one of the ids, or a label is no text.
        """
        ids = self.nodes["id"].to_pylist()
        if unknown := sorted(set(labels) - set(ids)):
            raise GraphError(f"no node has the id {unknown[0]!r}: take ids from the column 'id'")
        old = self.nodes["label"].to_pylist()
        column = [labels.get(name, label) for name, label in zip(ids, old, strict=True)]
        place = self.nodes.column_names.index("label")
        try:
            texts = pa.array(column, pa.string())
        except (pa.ArrowException, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise GraphError(f"a label is no text: {reason:.100}") from error
        table = self.nodes.set_column(place, "label", texts)
        return self._of(**vars(self) | {"nodes": table})

    def with_stability(
        self,
        nodes: Float[np.ndarray, " nodes"],
        edges: Float[np.ndarray, " edges"],
        about: Mapping[str, Any],
    ) -> AttributionGraph:
        """The same graph with how stable its nodes and edges are, as `tracer.stability` finds it.

        Args:
            nodes: (nodes,) shares, NaN where it is not known.
            edges: (edges,) likewise, in the order of `edges`.
            about: over what, JSON throughout; `over` says it in words.

        Returns:
            A graph with the column `stability` in nodes and edges and with `about` in the metadata.

        Raises:
            GraphError: something else than a share a row, or no JSON.
        """
        check_stability(nodes, self.nodes.num_rows)
        check_stability(edges, self.effect.nnz)
        table, column = self.nodes, nullable(nodes)
        if STABILITY in table.column_names:
            table = table.set_column(table.column_names.index(STABILITY), STABILITY, column)
        else:
            table = table.append_column(STABILITY, column)
        metadata = plain_metadata(self.metadata | {STABILITY: dict(about)})
        if said := misdescribed(metadata):
            raise GraphError(said)
        known = {name: value for name, value in vars(self).items() if name != "edges"}
        made = {"nodes": table, "metadata": metadata, "edge_stability": edges}
        return self._of(**known | made)

    def group(
        self, name: str, ids: Sequence[str], place: tuple[float, float] | None = None
    ) -> AttributionGraph:
        """The same graph with some nodes under one name.

        They leave the groups they are in; a group of this name is replaced by the new one.

        Args:
            name: what people call the group.
            ids: of its nodes, as in the column `id`; at least one.
            place: where a viewer puts it, None for anywhere.

        Returns:
            A graph that shares everything else with this one.

        Raises:
            GraphError: no node has one of the ids, or a name or place that is none.
        """
        return self.with_groups(grouping.grouped(self.groups, Group(name, tuple(ids), place)))

    def ungroup(self, name: str) -> AttributionGraph:
        """The same graph without a group; its nodes stay.

        Raises:
            GraphError: no group has the name.
        """
        return self.with_groups(grouping.without(self.groups, name))

    def rename(self, name: str, new: str) -> AttributionGraph:
        """The same graph with a group under another name.

        Raises:
            GraphError: no group has the name, or another one has the new name.
        """
        return self.with_groups(grouping.renamed(self.groups, name, new))

    def with_groups(self, groups: Sequence[Group]) -> AttributionGraph:
        """The same graph with these groups and no others.

        Raises:
            GraphError: they do not belong to its nodes; `graphs.groups.check` says how.
        """
        grouping.check(groups, self.nodes["id"].to_pylist())
        return self._of(**vars(self) | {"groups": tuple(groups)})

    @property
    def heads(self) -> pa.Table | None:
        """Edges split over the heads of every layer they pass, as `tracer.head_loadings` gives.

        Returns:
            edge (`source__target`), layer, head (-1 what stays, -2 what is written above, -3 the
            heads not listed), query, key, loading in units of the edge; rows without query and key
            add up to the edge at every layer, those with both are the strongest cells. None where
            nobody has asked.
        """
        return self.tables.get("heads")

    def with_tables(self, tables: Mapping[str, pa.Table]) -> AttributionGraph:
        """The same graph with tables about attention; those of other names stay.

        Raises:
            GraphError: an unknown name, or other columns than `graphs.attention_tables.COLUMNS`.
        """
        attention_tables.check(tables)
        if steering.NAME in tables:
            steering.check(tables[steering.NAME], self.nodes.num_rows)
        return self._of(**vars(self) | {"tables": {**self.tables, **tables}})

    def group_features(
        self,
        least: float = LEAST,
        by: str = "likeness",
        across: bool = False,
        decoders: Float[np.ndarray, "features features"] | None = None,
    ) -> AttributionGraph:
        """The same graph with its features in automatic groups, in place of all it had.

        Features of a group are all alike, every two of them by `least` or more; features alike to
        no other are in no group. `graphs.similarity` has the measures.

        Args:
            least: from 0 to 1.
            by: "likeness", of labels, neighbours and decoders; "profiles", Neuronpedia's measure.
            across: group features of several positions too.
            decoders: (features, features) cosines of what the features write, in node order, as
                `tracer.decoder_cosines` gives them; None: groups by the graph alone.

        Returns:
            A graph that shares everything else with this one; groups are named by what the labels
            of their members share.

        Raises:
            GraphError: `least` is no share, an unknown measure, or cosines of another shape.
        """
        features = np.flatnonzero(is_kind(self.nodes, NodeKind.FEATURE))
        through = number(self.nodes, "influence") + self._weight
        alike = similarity.chosen(
            by, self.nodes["label"].take(features).to_pylist(),
            (self._signed, through, features), decoders,
        )  # fmt: skip
        if not 0 < least <= 1:
            raise GraphError(f"least is {least}, expected a share above 0 and at most 1")
        place = self.nodes["position"].to_numpy()[features] * (not across)
        rows = self.nodes.to_pylist()
        members = [
            [rows[features[at]] for at in some] for some in similarity.clusters(alike, place, least)
        ]
        return self.with_groups(grouped.named(members, self.metadata.get("tokens", [])))

    def grouped_scores(self, alone: bool = False) -> ScorePair:
        """Replacement and completeness of the graph with its groups as nodes.

        To be read beside `scores`: what effects of opposite sign within a group take from one
        another counts as error. `graphs.grouped` has the formulas.

        Args:
            alone: count the features without a group as error too.

        Returns:
            Shares from 0 to 1, without units; NaN where the targets weigh nothing.
        """
        at = {name: row for row, name in enumerate(self.nodes["id"].to_pylist())}
        owner = np.full(self.nodes.num_rows, -1)
        for group, held in enumerate(self.groups):
            owner[[at[name] for name in held.members]] = group
        ends = (self._ends.token, self._ends.error, self._ends.logit)
        return grouped.grouped_scores(
            self._signed,
            self._computed > 0,
            self._weight,
            self._reached_computed,
            ends,
            owner,
            alone,
        )

    @cached_property
    def steps(self) -> float:
        """Features that influence passes on its ways from tokens to the targets, in the mean.

        Ways that begin at an error take no part. Two dictionaries that disagree on one prompt are a
        sign that the features of one skip steps of the model.
        """
        is_feature = is_kind(self.nodes, NodeKind.FEATURE)
        share = shares(self.effect, self._computed)
        return steps(share, self._weight, self._ends.token, is_feature)

    @cached_property
    def _signed(self) -> sparse.csr_array:
        """(nodes, nodes) signed shares of each row's input, as the model computed it."""
        size = shares(self.effect, self._computed)
        size.data = np.copysign(size.data, self.effect.data)
        return size

    def paths(self, count: int = 10, sign: int | None = None) -> list[NodePath]:
        """The strongest paths from a token or an error to a logit, strongest first.

        Strength is the product of the shares of the input along the path, of all that the model
        computed, times the weight of its logit. `describe` puts a path into words.

        Args:
            count: at most so many.
            sign: 1: only paths that excite their target, their effects multiplied; -1: only those
                that suppress it; None: all.

        Returns:
            Paths as row numbers of `nodes`, with their strength in units of the targets' weights.

        Raises:
            GraphError: `count` is below 1, or more than memory should be spent on, or a sign that
                is none.
        """
        if sign not in (None, 1, -1):
            raise GraphError(f"sign is {sign}, expected 1, -1 or None")
        most = max(1, MOST_STEPS // max(1, self.nodes.num_rows))
        if not 1 <= count <= most:
            raise GraphError(f"count is {count}, expected 1 to {most} paths in this graph")
        root = self._ends.token | self._ends.error
        if sign is not None:
            return strongest_of_sign(self._signed, self._weight, root, count, sign)
        return strongest(shares(self.effect, self._computed), self._weight, root, count)

    def by_sign(self) -> tuple[float, float]:
        """How much of the answer excites and how much suppresses it, over all paths.

        Returns:
            Influence of tokens and errors along paths whose effects multiply to a positive and to a
            negative number, as parts of the targets' weight; with what the graph left out they add
            up to 1.
        """
        weight = np.stack([self._weight, np.zeros_like(self._weight)], 1).ravel()
        reached = influence(by_sign(self._signed), weight).reshape(-1, 2)
        root = self._ends.token | self._ends.error
        whole = float(self._weight.sum()) or 1.0
        excite, suppress = (reached[root].sum(0) / whole).tolist()
        return excite, suppress

    def describe(self, path: NodePath) -> str:
        """A path in one line, with its share of the weight of all targets.

        As in: `“Dallas” → Texas, TX (L0, at “Dallas”) → “Austin” 92%   12.3%`; `⊣` inhibits.
        """
        rows = self.nodes.take(list(path.nodes)).to_pylist()
        effects = [self.effect[target, source] for source, target in pairwise(path.nodes)]
        share = words.percent(path.strength / float(self._weight.sum()))
        return f"{words.route(rows, effects, list(self.metadata.get('tokens', [])))}   {share}"

    def to_networkx(self) -> nx.DiGraph[str]:
        """The same graph for networkx.

        Returns:
            A directed graph from cause to effect, nodes named by their id, with the columns of
            `nodes` and `edges` as attributes and the metadata as those of the graph, `groups`
            among them where there are any.
        """
        from graphs.exchange import networks

        known = {"groups": grouping.to_json(self.groups)} if self.groups else {}
        return networks.to_networkx(self.nodes, self.edges, self.metadata | known)

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph[str]) -> AttributionGraph:
        """A graph from a networkx one with the attributes that `to_networkx` gives.

        Where no node has the derived columns, they are computed as in `build`.

        Returns:
            The graph, its nodes in the order of their sites.

        Raises:
            GraphError: a cycle, an attribute that is missing or of the wrong type, or an
                invariant that does not hold.
        """
        from graphs.exchange import networks

        columns, edges = networks.from_networkx(graph)
        effect = effect_matrix(edges, len(columns["id"]))
        metadata = dict(graph.graph)
        named = metadata.pop("groups") if isinstance(metadata.get("groups"), list) else []
        groups = grouping.left(grouping.from_json(named), columns["id"])
        if all(value is None for name in DERIVED for value in columns[name]):
            return cls.build(columns, effect, metadata).with_groups(groups)
        nodes, plain = node_table(columns, COLUMNS), plain_metadata(metadata)
        plain = _as_it_holds(effect, nodes, plain)
        stable = stability_of(edges)
        return cls(nodes=nodes, effect=effect, metadata=plain, groups=groups, edge_stability=stable)

    def save(
        self,
        path: str | pathlib.Path,
        pins: Sequence[str] = (),
        *,
        view: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `nodes.arrow` and `edges.arrow` to a folder, or to a zip when `path` ends in .zip.

        `groups.json` joins them where there are groups, or where groups of another graph stand, and
        so do tables about attention.

        Args:
            path: where.
            pins: ids of nodes that a viewer is to show pinned, written to `view.json`.
            view: what a viewer saved, JSON throughout, in place of the pins.

        Raises:
            GraphError: something else stands there, the place cannot be written, or the view holds
                what JSON has not.
        """
        path = pathlib.Path(path)
        stale = path.is_dir() and place_of(path, grouping.FILE) is not None
        held = grouping.to_bytes(self.groups) if self.groups or stale else None
        beside = {} if held is None else {grouping.FILE: held}
        files, digests = attention_tables.to_files(self.tables)
        beside |= _emptied(path) | files
        if pins or view is not None:
            beside |= {arrow.VIEW: with_pins(pins) if view is None else with_view(view)}
        described = self._described | ({"tables": digests} if digests else {})
        arrow.write(path, self.nodes, self.edges, described, beside)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> AttributionGraph:
        """Read what `save` wrote.

        Returns:
            The graph that was saved, equal in every table and group; its scores are worked out
            anew.

        Raises:
            GraphError: nothing there, no graph, a torn or foreign file, another format version,
                contents that break an invariant, the conservation law among them, or files that
                have changed since.
        """
        nodes, edges, metadata, beside, whole = arrow.read(pathlib.Path(path))
        metadata.pop("scores", None)
        digests = metadata.pop("tables", None)
        try:
            nodes = versions.upgraded(nodes, metadata)
            plain = plain_metadata(metadata)
            effect = effect_matrix(edges, nodes.num_rows)
            held = beside.get(grouping.FILE)
            groups = () if held is None else grouping.from_bytes(held)
            known = attention_tables.from_files(beside, digests)
            graph = cls(
                nodes=nodes,
                effect=effect,
                metadata=plain,
                groups=groups,
                tables=known,
                edge_stability=stability_of(edges),
                view_json=beside.get(arrow.VIEW),
            )
            if not whole:
                raise GraphError(
                    f"{arrow.NODES} or {arrow.EDGES} is not as it was written (their digest is "
                    "another one): copy or trace it again, or take "
                    f"{arrow.DIGEST.decode()!r} out of both schemas if you changed them yourself"
                )
            return graph
        except GraphError as error:
            raise GraphError(f"{path}: {error}") from error

    def export(self, path: str | pathlib.Path) -> None:
        """Write the graph for other programs: .json, .graphml, .csv, .parquet (edges), .html.

        Raises:
            GraphError: an unknown suffix, or the place cannot be written.
        """
        from graphs.exchange import tables

        known = {"groups": grouping.to_json(self.groups)} if self.groups else {}
        tables.export(pathlib.Path(path), self.nodes, self.edges, self._described | known)

    def to_attribution_json(
        self,
        profile: str,
        about: About,
        pins: Sequence[str] = (),
        whole: AttributionGraph | None = None,
    ) -> bytes:
        """The graph as Neuronpedia's and circuit-tracer's front ends read it.

        Draw-size graphs are what they can show: prune first.

        Args:
            profile: "neuronpedia", "self-hosted" (Neuronpedia with features from elsewhere) or
                "circuit-tracer".
            about: name of the graph and where its features are described.
            pins: ids of nodes to pin.
            whole: the graph that this one was pruned from, to name nodes that only explanations of
                attention name.

        Returns:
            JSON that `from_attribution_json` gives the same graph back from.

        Raises:
            GraphError: a graph or a name that the tools cannot show.
        """
        tables = (self.nodes, self.edges, self._described)
        known = (self if whole is None else whole).nodes
        return attribution_json(tables, self.groups, pins, profile, about, self.tables, known)

    @classmethod
    def from_attribution_json(cls, content: bytes) -> tuple[AttributionGraph, Imported]:
        """A graph from the JSON of circuit-tracer, Neuronpedia, or our own export.

        Of a foreign file the influence is worked out from the links that are there; what the file
        calls influence becomes the column `reported_influence`.

        Returns:
            The graph with its groups, and what was read: `pins`, and `notes` on what the file had
            that is in no graph.

        Raises:
            GraphError: it is no such JSON, or nothing that makes a graph.
        """
        return cls._imported(read_attribution_json(content))

    @classmethod
    def from_circuit_tracer_pt(
        cls, content: bytes, token_text: Callable[[int], str] | None = None
    ) -> tuple[AttributionGraph, Imported]:
        """A graph from a `.pt` file of circuit-tracer, without running anything in it.

        Args:
            content: of the file.
            token_text: the text of a vocabulary id, which the file does not have; None: tokens are
                named by id, as [1027].

        Returns:
            The graph, and what was read.

        Raises:
            GraphError: it is no such file, or its pickle holds more than tensors and plain values.
        """
        return cls._imported(read_circuit_tracer_pt(content, token_text))

    @classmethod
    def _imported(cls, read: Imported) -> tuple[AttributionGraph, Imported]:
        if read.whole:
            nodes = node_table(read.columns, COLUMNS)
            metadata = _as_it_holds(read.effect, nodes, plain_metadata(read.metadata))
            graph = cls(
                nodes=nodes,
                effect=read.effect,
                metadata=metadata,
                groups=read.groups,
                edge_stability=read.stability,
            )
            edges = _edge_names(nodes["id"].to_pylist(), graph.effect)
            return graph.with_tables(attention_tables.left(read.attention, edges)), read
        graph = cls.build(read.columns, read.effect, read.metadata)
        return graph.with_groups(read.groups), read

    def to_html(
        self,
        path: str | pathlib.Path,
        features: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        compare: Sequence[AttributionGraph] = (),
        beside: Beside | None = None,
        nodes: float = 0.8,
        edges: float = 0.98,
        max_edges: int = MOST_EDGES,
    ) -> pathlib.Path:
        """Write the viewer: one file to look at this graph in a browser, offline.

        The page holds the graph as it stands and opens at the thresholds given; of a graph with
        more than `max_edges` edges it holds the most influential, and says so.

        Args:
            path: file to write.
            features: `layer/feature` -> what is known of a feature, as
                `tracer.features.panel.panels` gives it from a feature store.
            compare: other graphs that the page takes along, to show beside this one.
            beside: what stands beside the graph on disk: its name, a saved view.
            nodes: share of node influence at which it opens, in (0, 1].
            edges: share of edge influence at which it opens, in (0, 1].
            max_edges: edges that the page holds at most.

        Returns:
            The path written.

        Raises:
            GraphError: a share or a number out of range, the view saved beside the graph is torn,
                or the file cannot be written.
        """
        _check_shares(nodes, edges)
        if max_edges < 1:
            raise GraphError(f"max_edges is {max_edges}, expected at least 1")
        path = pathlib.Path(path)
        opening = {"nodes": nodes, "edges": edges}
        extras = Extras(features=features or {}, opening=opening, beside=beside or Beside())
        packed = [self.packed(extras, max_edges)]
        packed += [one.packed(Extras(opening=opening), max_edges) for one in compare]
        content = page(packed, str(self.metadata.get("prompt", "")))
        with writing(path) as partial:
            partial.write_bytes(content)
        return path

    def packed(self, extras: Extras | None = None, max_edges: int = MOST_EDGES) -> bytes:
        """The graph as the viewer reads it (`graphs.viewer.payload`), with what stands beside it.

        Args:
            extras: what is shown beside it; groups, tables and a view given there stand for the
                graph's own.
            max_edges: edges at most, the most influential.

        Returns:
            gzip, the same bytes for the same graph.

        Raises:
            GraphError: the view that was saved beside the graph is torn.
        """
        nodes, edges, held = strongest_edges(self.nodes, self.edges, max_edges)
        given = extras or Extras()
        beside = replace(
            given.beside,
            groups=given.beside.groups or grouping.to_json(self.groups),
            tables=self._tables_shown(given.beside.tables or self.tables, nodes),
            view=given.beside.view or view_of(self.view_json, arrow.VIEW),
        )
        opening = {"steered": self.keeps_attention} | dict(given.opening)
        shown = replace(given, held=held, beside=beside, opening=opening)
        return pack(nodes, edges, self._described, shown)

    def _tables_shown(
        self, tables: Mapping[str, pa.Table], nodes: pa.Table
    ) -> Mapping[str, pa.Table]:
        """Tables as they fit a page that holds some of the nodes."""
        if steering.NAME not in tables or nodes.num_rows == self.nodes.num_rows:
            return tables
        import pyarrow.compute as pc

        known = tables[steering.NAME]
        shown = pc.is_in(self.nodes["id"], nodes["id"]).to_numpy()
        every = np.ones(known.num_rows, dtype=bool)
        return dict(tables) | {steering.NAME: steering.left(known, shown, every)}

    def to_dot(
        self,
        edges: int | None = 300,
        labels: int = 18,
        curved: bool = True,
        heads: bool = False,
    ) -> str:
        """The picture as DOT text with every position given: `neato -n2` draws it.

        Args:
            edges: at most so many edges, the most influential ones; None for all.
            labels: so many features as boxes with their label, besides those on the strongest
                path; the others as circles.
            curved: curves, or straight lines.
            heads: colour edges by the head that carried them; needs the table `heads`.

        Returns:
            The text; lengths in it are points, y upward.

        Raises:
            GraphError: `heads`, and the graph does not say which heads carried its edges.
        """
        return picture.dot_source(self._content, Style(edges, labels, curved, heads=heads))

    def render(
        self,
        path: str | pathlib.Path,
        edges: int | None = 300,
        labels: int = 18,
        curved: bool = True,
        heads: bool = False,
    ) -> pathlib.Path:
        """Draw the graph as it stands, pruned or not, to .svg, .png, .pdf or .dot.

        Arguments as for `to_dot`.

        Returns:
            The path written.

        Raises:
            GraphError: an unknown suffix, Graphviz is missing (not for .dot), the place cannot be
                written, or `heads` without the table.
        """
        path = pathlib.Path(path)
        picture.draw(path, self._content, Style(edges, labels, curved, heads=heads))
        return path

    def to_summary_dot(self, measured: Mapping[str, float] | None = None) -> str:
        """The summary as DOT text with every position given; arguments as for `render_summary`.

        Returns:
            The text; lengths in it are points, y upward.
        """
        return summary_source(self._content, self._summary_groups, measured)

    def render_summary(
        self, path: str | pathlib.Path, measured: Mapping[str, float] | None = None
    ) -> pathlib.Path:
        """Draw what the graph comes down to: at most 12 boxes and 20 edges, 8 cm wide.

        Boxes are the graph's groups, or those of `group_features` where it has none; what is too
        small is one box with its share. Draw a pruned graph.

        Args:
            path: .svg, .png, .pdf or .dot.
            measured: node id -> by how much the answer's logit falls when the node is zeroed, as
                the columns `id` and `measured` of `validation_features.arrow` have it; None: no
                badges.

        Returns:
            The path written.

        Raises:
            GraphError: as `render`.
        """
        path = pathlib.Path(path)
        draw_summary(path, self._content, self._summary_groups, measured)
        return path

    @property
    def _summary_groups(self) -> tuple[Group, ...]:
        return self.groups or self.group_features().groups

    def widget(self, features: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
        """The viewer in a notebook, with the package anywidget (`pip install 'tracer[notebook]'`).

        Its attribute `view` holds pins, groups, labels and thresholds as the user sets them.

        Args:
            features: as for `to_html`.

        Returns:
            The widget; let it be the last line of a cell.

        Raises:
            GraphError: anywidget is not installed, or the view saved beside the graph is torn.
        """
        try:
            from graphs.viewer.widget import GraphWidget
        except ImportError as error:
            raise GraphError(
                f"the viewer in a notebook needs anywidget ({error}): pip install "
                "'tracer[notebook]', or write a page with graph.to_html(path)"
            ) from error
        opening = {"nodes": 0.8, "edges": 0.98}
        return GraphWidget(self.packed(Extras(features=features or {}, opening=opening)))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any] | None:
        """In a notebook the viewer where anywidget is installed, with the picture for elsewhere."""
        try:
            bundle = self.widget()._repr_mimebundle_()
        except GraphError:
            return None
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
        for kind, made in {
            "image/svg+xml": self._repr_svg_(),
            "text/html": self._repr_html_(),
        }.items():
            if made is not None:
                data[kind] = made
        return data | {"text/plain": repr(self)}

    def _repr_svg_(self) -> str | None:
        """The picture, in a notebook; pruned unless it has been already."""
        if not render.available():
            return None
        small = self if "pruned" in self.metadata else self.prune()
        return render.render(small.to_dot(), "svg").decode()

    def _repr_html_(self) -> str | None:
        """Where the picture needs Graphviz and it is missing: the graph in a few lines."""
        if render.available():
            return None
        return captions.summary_html(self._content, [self.describe(it) for it in self.paths(5)])

    def __repr__(self) -> str:
        """Size and prompt on one line."""
        return (
            f"AttributionGraph({self.nodes.num_rows} nodes, {self.effect.nnz} edges, "
            f"{self.metadata.get('prompt')!r:.60})"
        )

    @cached_property
    def _ends(self) -> Ends:
        """Where paths begin and end."""
        kinds = (NodeKind.EMBEDDING, NodeKind.ERROR, NodeKind.LOGIT)
        return Ends(*(is_kind(self.nodes, kind) for kind in kinds))

    @cached_property
    def _weight(self) -> Float[np.ndarray, " nodes"]:
        """w: the weight of each target."""
        return number(self.nodes, "probability")

    @cached_property
    def _total(self) -> Float[np.ndarray, " nodes"]:
        """What influence divides by: the absolute input of each node as traced."""
        return number(self.nodes, "input_absolute")

    @cached_property
    def _left(self) -> Float[np.ndarray, " nodes"]:
        """What is left of it in `effect`, after an edge floor or pruning."""
        return input_absolute(self.effect)

    @cached_property
    def _computed(self) -> Float[np.ndarray, " nodes"]:
        """What scores and shares divide by: the same with what a cap left out."""
        return as_computed(self._left, self._total, number(self.nodes, "left_out_absolute"))

    @cached_property
    def _capped(self) -> bool:
        """Whether a cap left anything out of a row."""
        return self._computed is not self._total

    @cached_property
    def _reached(self) -> Float[np.ndarray, " nodes"]:
        """Influence b with shares of the input as traced, among the nodes.

        Of these nodes, whatever was taken from the graph: the column `influence` is the traced
        graph's, and a file or a networkx graph may hold fewer nodes or other weights.
        """
        return influence(shares(self.effect, self._total), self._weight)

    @cached_property
    def _reached_computed(self) -> Float[np.ndarray, " nodes"]:
        """The same with shares of the input as the model computed it: what scores read."""
        if not self._capped:
            return self._reached
        return influence(shares(self.effect, self._computed), self._weight)

    @cached_property
    def _reached_left(self) -> Float[np.ndarray, " nodes"]:
        """The same with shares of what is left, as pruning ranks nodes."""
        if np.array_equal(self._left, self._total):
            return self._reached
        return influence(shares(self.effect, self._left), self._weight)

    @cached_property
    def _uncovered(self) -> float:
        """Share of the weights that ends in features beyond the cap; of the graph as traced.

        Pruned graphs of releases that did not keep it have only what their own nodes tell: less.
        """
        traced = self.metadata.get("pruned", {}).get("uncovered")
        if isinstance(traced, float):
            return traced
        return uncovered(self._total, self._computed, self._reached_computed, self._weight)

    @property
    def _content(self) -> Content:
        """What pictures are made of."""
        return Content(self.nodes, self.edges, self.scores, self.metadata, self.heads)

    @property
    def _described(self) -> dict[str, Any]:
        """Metadata as files hold them: with the scores, null where they are not numbers."""
        return self.metadata | {"scores": _plain(asdict(self.scores))}


def _check_shares(nodes: float, edges: float) -> None:
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 < share <= 1:
            raise GraphError(f"{name} is {share}, expected a share above 0 and at most 1")


def _plain(scores: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, dict) else None if isnan(value) else value
        for name, value in scores.items()
    }


def _as_it_holds(
    effect: sparse.csr_array, nodes: pa.Table, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Metadata without a conservation error that is not that of a graph edited elsewhere."""
    if misdescribed(metadata) or not broken(effect, nodes, metadata):
        return metadata
    return {name: value for name, value in metadata.items() if name != CLAIM}


def _edge_names(ids: Sequence[str], effect: sparse.csr_array) -> set[str]:
    """Edges as tables of attention name them."""
    target, source = effect.tocoo().coords
    return {attention_tables.edge_name(ids[s], ids[t]) for s, t in zip(source, target, strict=True)}


def _emptied(path: pathlib.Path) -> dict[str, bytes]:
    """Empty tables for those of another graph that stand in a folder."""
    names = attention_tables.COLUMNS if path.is_dir() else ()
    return {
        f"{name}.arrow": arrow.table_bytes(attention_tables.empty(name))
        for name in names
        if place_of(path, f"{name}.arrow") is not None
    }


def _freeze(effect: sparse.csr_array) -> None:
    for array in (effect.data, effect.indices, effect.indptr):
        array.flags.writeable = False
