"""Which node and which edge appears in which graph of a dataset, and how much it carries there.

Nodes of different prompts are the same where kind, place in the layers and number agree; tokens by
their text. With `align="end"` they must also stand at the same distance from the end of the prompt.
Of the answers the likeliest is one node, "the answer", whatever it is, and the others are another:
what leads to an answer is compared, not the answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from scipy import sparse

from graphs import node_sites
from graphs.collections import shards
from graphs.collections.columns import TRACED
from graphs.collections.dataset import GraphDataset, schemas
from graphs.collections.rows import Rows
from graphs.schema import GraphError, NodeKind

ALIGNED = ("anywhere", "end")
ANSWER, OTHERS = "the answer", "other answers"


@dataclass(frozen=True, eq=False)
class Incidence:
    """Graphs of a dataset as matrices of influence."""

    prompts: pa.Table
    """One row a graph: prompt (its number), text and the column it is grouped by, if any."""
    nodes: pa.Table
    """One row a node: kind, site, layer, name, column (from the end, null for anywhere), place
    (where it usually stands, from the end: 0 is the last token), label (of a feature, or null)."""
    edges: Int[np.ndarray, "edges 2"]
    """Rows of `nodes` at both ends."""
    carried: sparse.csr_array
    """(prompts, nodes): influence and weight as parts of the answer, summed over positions. What is
    stored is in the graph, if it is 0."""
    moved: sparse.csr_array
    """(prompts, edges): influence, likewise."""
    signed: sparse.csr_array
    """(prompts, edges): the same with the sign of the effect."""


class Key(NamedTuple):
    """What a node is the same by."""

    kind: str
    site: str
    name: str
    column: int | None


def incidence(
    dataset: GraphDataset, align: str = "anywhere", group_by: str | None = None
) -> Incidence:
    """Read the graphs of a dataset, a shard after the other.

    Args:
        dataset: whose traced prompts.
        align: "anywhere", or "end": by distance from the last token.
        group_by: a column of its prompts to keep.

    Returns:
        The matrices, with nodes and edges sorted by what they are: the same for the same graphs.

    Raises:
        GraphError: no graph, no such column, another way of aligning, or a torn file.
    """
    if align not in ALIGNED:
        raise GraphError(f"align is {align!r}, expected one of {', '.join(ALIGNED)}")
    known = schemas(dataset.about)
    names = known["prompts"].names
    if group_by is not None and group_by not in names:
        raise GraphError(
            f"{dataset.path} has no column {group_by!r:.80}: expected one of {', '.join(names)}"
        )
    columns = list(dict.fromkeys(("prompt", "text", *([group_by] if group_by else []))))
    collected, prompts = _Collected(), [known["prompts"].empty_table().select(columns)]
    for rows in _shards(dataset, known):
        traced = rows.prompts.filter(pc.equal(rows.prompts["status"], TRACED))
        prompts.append(traced.select(columns))
        collected.add(rows, traced["prompt"].to_numpy(), align)
    if not collected.count:
        raise GraphError(f"{dataset.path} holds no graph yet: none of its prompts was traced")
    return collected.finished(pa.concat_tables(prompts))


def _shards(dataset: GraphDataset, known: dict[str, pa.Schema]) -> Iterator[Rows]:
    for shard in shards.finished(dataset.path):
        rows = shards.read(dataset.path, shard, known)
        if rows is not None:
            yield rows


class _Collected:
    """Nodes and edges numbered as they come, and what each carries."""

    def __init__(self) -> None:
        self.count = 0
        self.nodes: dict[Key, int] = {}
        self.edges: dict[int, int] = {}
        self.labels: dict[int, str] = {}
        self.node_parts: list[np.ndarray] = [np.zeros((4, 0))]
        self.edge_parts: list[np.ndarray] = [np.zeros((4, 0))]

    def add(self, rows: Rows, traced: np.ndarray, align: str) -> None:
        """Take the tables of a shard, whose traced prompts are named in order."""
        nodes = rows.nodes
        row = self.count + np.searchsorted(traced, nodes["prompt"].to_numpy())
        self.count += len(traced)
        if not nodes.num_rows:
            return
        keys, places = _keys(nodes, align)
        number = np.array([self.nodes.setdefault(key, len(self.nodes)) for key in keys])
        weight = nodes["probability"].fill_null(0).to_numpy()
        whole = np.bincount(row, weight)
        whole[whole == 0] = 1
        share = (nodes["influence"].to_numpy() + weight) / whole[row]
        self.node_parts.append(np.stack([row, number, share, places]))
        for at, key, label in zip(number.tolist(), keys, nodes["label"].to_pylist(), strict=True):
            if label and key.kind == NodeKind.FEATURE:
                self.labels.setdefault(at, label)
        self._add_edges(rows, row, number, whole)

    def _add_edges(
        self, rows: Rows, row: np.ndarray, number: np.ndarray, whole: np.ndarray
    ) -> None:
        edges, ids = rows.edges, _within(rows.nodes, "id")
        ends = [pc.index_in(_within(edges, end), value_set=ids) for end in ("source", "target")]
        if any(end.null_count for end in ends):
            raise GraphError("an edge of the dataset ends in no node of its prompt; trace it again")
        source, target = (end.to_numpy(zero_copy_only=False).astype(np.int64) for end in ends)
        pair = (number[source].astype(np.int64) << 32) | number[target]
        distinct, where = np.unique(pair, return_inverse=True)
        own = np.array([self.edges.setdefault(one, len(self.edges)) for one in distinct.tolist()])
        share = edges["influence"].to_numpy() / whole[row[source]]
        sign = np.sign(edges["weight"].to_numpy())
        if len(own):
            self.edge_parts.append(np.stack([row[source], own[where], share, sign * share]))

    def finished(self, prompts: pa.Table) -> Incidence:
        """Everything taken, nodes and edges sorted by what they are."""
        order = sorted(self.nodes, key=_sorts_by)
        rank = np.empty(len(order), int)
        rank[[self.nodes[key] for key in order]] = np.arange(len(order))
        row, number, share, places = np.concatenate(self.node_parts, axis=1)
        column = rank[number.astype(int)]
        pairs = np.array(list(self.edges), np.int64).reshape(-1)
        ends = np.stack([rank[pairs >> 32], rank[pairs & 0xFFFFFFFF]], 1)
        in_order = np.lexsort((ends[:, 0], ends[:, 1]))
        place = np.empty(len(pairs), int)
        place[in_order] = np.arange(len(pairs))
        edge_row, edge, moved, signed = np.concatenate(self.edge_parts, axis=1)
        at = (edge_row.astype(int), place[edge.astype(int)])
        shape = (prompts.num_rows, len(pairs))
        labels = {int(rank[old]): label for old, label in self.labels.items()}
        return Incidence(
            prompts,
            _node_table(order, _usual(column, places.astype(int), len(order)), labels),
            ends[in_order],
            sparse.csr_array(
                (share, (row.astype(int), column)), shape=(prompts.num_rows, len(order))
            ),
            sparse.csr_array((moved, at), shape=shape),
            sparse.csr_array((signed, at), shape=shape),
        )


def _within(table: pa.Table, name: str) -> pa.Array:
    """Names that are one prompt's own."""
    joined = pc.binary_join_element_wise(pc.cast(table["prompt"], pa.string()), table[name], "/")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _keys(nodes: pa.Table, align: str) -> tuple[list[Key], np.ndarray]:
    """What each node is the same by, and its distance from the end of its prompt."""
    kinds = nodes["kind"].to_pylist()
    prompt, position = (nodes[name].to_numpy() for name in ("prompt", "position"))
    prompt = prompt - prompt.min()
    last = np.zeros(int(prompt.max()) + 1, int)
    np.maximum.at(last, prompt, position)
    places = last[prompt] - position
    logit = np.array([kind == NodeKind.LOGIT for kind in kinds])
    best = _answers(prompt, logit, nodes["probability"].fill_null(-1).to_numpy())
    columns = [None] * len(kinds) if align == "anywhere" else places.tolist()
    rows = nodes.select(["kind", "site", "feature", "text", "token"]).to_pylist()
    found = zip(rows, best.tolist(), columns, strict=True)
    return [_key(*one) for one in found], places


def _key(row: dict[str, Any], best: bool, column: int | None) -> Key:
    kind, text = str(row["kind"]), row["text"]
    if kind == NodeKind.LOGIT:
        return Key(kind, node_sites.LOGITS, ANSWER if best else OTHERS, None)
    if kind == NodeKind.EMBEDDING:
        name = "" if column is not None else f"[{row['token']}]" if text is None else text
    else:
        name = "" if row["feature"] is None else str(row["feature"])
    return Key(kind, row["site"], name, column)


def _answers(prompt: np.ndarray, logit: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Which node is the likeliest answer of its prompt; the first of equal ones."""
    best = np.zeros(len(prompt), bool)
    rows = np.flatnonzero(logit)
    order = rows[np.lexsort((rows, -weight[rows], prompt[rows]))]
    best[order[_firsts(prompt[order])]] = True
    return best


def _firsts(values: np.ndarray) -> np.ndarray:
    """Which entries of a sorted array differ from the one before."""
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return first


def _sorts_by(key: Key) -> tuple[Any, ...]:
    number = int(key.name) if key.kind == NodeKind.FEATURE else -1
    return (*node_sites.rank(key.site), key.kind, number, key.name, -(key.column or 0))


def _usual(column: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Where each node stands most often; of equal ones nearest to the end."""
    pairs, often = np.unique(np.stack([column, places]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -often, pairs[0]))
    first = _firsts(pairs[0][order])
    found = np.zeros(count, int)
    found[pairs[0][order[first]]] = pairs[1][order[first]]
    return found


def _node_table(keys: list[Key], usual: np.ndarray, labels: dict[int, str]) -> pa.Table:
    layers = [node_sites.rank(key.site)[0] if "." in key.site else None for key in keys]
    return pa.table(
        {
            "kind": pa.array([key.kind for key in keys], pa.string()),
            "site": pa.array([key.site for key in keys], pa.string()),
            "layer": pa.array(layers, pa.int32()),
            "name": pa.array([key.name for key in keys], pa.string()),
            "column": pa.array([key.column for key in keys], pa.int32()),
            "place": pa.array(usual, pa.int32()),
            "label": pa.array([labels.get(at) for at in range(len(keys))], pa.string()),
        }
    )
