"""`head_loadings`: which heads carried the edges of a graph, as a table beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int

from graphs import AttributionGraph
from graphs.attention_tables import ABOVE, COLUMNS, REST, STAY, edge_ends, edge_name
from graphs.schema import plain_metadata
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from replacement_models.sites import top_layer
from tracer.attention.cells import Carried, strongest
from tracer.attention.cells import cells as cells_of
from tracer.attention.explained import Explained, explained
from tracer.attention.loadings import Loadings, Pairs, loadings
from tracer.attention.plain_streams import gradients, streams
from tracer.attention.sources import sources_of
from tracer.attribution.targets import TargetRows
from tracer.errors import TraceError

FLOOR = 1e-3
"""Heads that carry less than this share of an edge are listed together, in the row of the rest."""
LOOKED_INTO, CELLS = 256, 4
"""Loadings whose cells are listed, and how many of each."""
CHECKED = 32
"""Edges whose stay is worked out a second time, from the streams themselves."""
Named = str | tuple[str, str]


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of a graph, ready to be split."""

    names: Sequence[str]
    weight: Float[np.ndarray, " edges"]
    influence: Float[np.ndarray, " edges"]
    columns: Int[np.ndarray, " sources"]
    rows: TargetRows
    pairs: Pairs


@one_call()
@torch.no_grad()
def head_loadings(
    model: ReplacementModel,
    graph: AttributionGraph,
    edges: Sequence[Named] | None = None,
    *,
    cells: bool = True,
) -> AttributionGraph:
    """Split edges exactly over the heads of every attention layer they pass.

    At each layer the loadings of all heads, what stays at its position and what is written above
    add up to the edge. Layers are never added up: each is a full split of its own.

    Args:
        model: the model the graph was traced from.
        graph: pruned or not.
        edges: as (source id, target id), or "source__target"; None is all of the graph as pruned
            by default.
        cells: also list, for the loadings that matter most, between which positions they went.

    Returns:
        The graph with the table `heads` (`AttributionGraph.heads`), in units of the edges; how well
        the splits add up stands in `metadata["heads"]`, relative to the largest edge.

    Raises:
        TraceError: the graph is of another model or has no such edge, or one leads to a direction.

    Source: Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions".
    """
    about = explained(model, graph)
    chosen = chosen_edges(about, edges)
    heads = max(len(block.output) for block in model.host.blocks)
    parts, items, worst = [], [], 0.0
    every = loadings(about.local, chosen.columns, chosen.rows, chosen.pairs, heads)
    for found in every:
        worst = max(worst, float(np.abs(found.weight - chosen.weight[found.edge]).max()))
        table, carried = _tabled(about, chosen, found)
        parts.append(table)
        items.append(carried)
    table = pa.concat_tables(parts) if parts else _table({})
    if cells and parts:
        table = pa.concat_tables([table, _cell_table(about, chosen, np.concatenate(items))])
    size = float(np.abs(chosen.weight).max(initial=0.0)) or 1.0
    said = {
        "edges": len(chosen.names),
        "floor": FLOOR,
        "conservation": worst / size,
        "stay": _stay_checked(about, chosen, heads) / size,
    }
    metadata = plain_metadata(graph.metadata | {"heads": said})
    return replace(graph, metadata=metadata, tables={**graph.tables, "heads": table})


def chosen_edges(about: Explained, edges: Sequence[Named] | None) -> Edges:
    """Edges by name, with what they need to be split.

    Raises:
        TraceError: the graph has no such edge.
    """
    graph = about.graph
    if edges is None and "pruned" not in graph.metadata:
        graph = graph.prune()
    ids = graph.nodes["id"].to_pylist()
    table = graph.edges
    ends = zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)
    number = {edge_name(ids[s], ids[t]): row for row, (s, t) in enumerate(ends)}
    names = list(number) if edges is None else [_named(edge, number) for edge in edges]
    picked = np.array([number[name] for name in names], dtype=np.int64)
    split = [edge_ends(name) for name in names]
    sources, source = np.unique([s for s, _ in split] or [""], return_inverse=True)
    targets, target = np.unique([t for _, t in split] or [""], return_inverse=True)
    if not names:
        raise TraceError("the graph has no edges whose heads could be told")
    return Edges(
        names=names,
        weight=table["weight"].to_numpy()[picked].astype(np.float64),
        influence=table["influence"].to_numpy()[picked].astype(np.float64),
        columns=np.array([about.column[name] for name in sources.tolist()], dtype=np.int64),
        rows=about.rows(targets.tolist()),
        pairs=Pairs(source, target),
    )


def _named(edge: Named, known: dict[str, int]) -> str:
    name = edge if isinstance(edge, str) else edge_name(*edge)
    if name not in known:
        source, target = edge_ends(name)
        raise TraceError(
            f"the graph has no edge from {source!r} to {target!r}; take ids from the column 'id' "
            "of its nodes, and edges from its edges"
        )
    return name


def _passed(about: Explained, chosen: Edges, edge: np.ndarray) -> np.ndarray:
    """(edges, layers) whether something of an edge comes to a layer's attention and goes on."""
    first = sources_of(about.local, chosen.columns).first[chosen.pairs.source[edge]]
    top = top_layer(chosen.rows.site[chosen.pairs.target[edge]])
    layer = np.arange(len(about.local.layers))
    return (layer > first[:, None]) & (layer <= top[:, None])


def _tabled(
    about: Explained, chosen: Edges, found: Loadings
) -> tuple[pa.Table, Float[np.ndarray, "items 4"]]:
    """Rows of the table, and the loadings that matter most: value, edge, layer, head."""
    passes = _passed(about, chosen, found.edge)
    size = np.abs(found.weight)
    listed = passes[..., None] & (np.abs(found.heads) >= FLOOR * size[:, None, None])
    listed &= found.heads != 0
    rest = np.where(listed, 0, found.heads).sum(2, dtype=np.float64)
    above = found.weight[:, None] - found.below
    kinds = {STAY: found.stay, ABOVE: above, REST: rest}
    edge, layer, head = listed.nonzero()
    columns = [(edge, layer, head, found.heads[listed].astype(np.float64))]
    for kind, value in kinds.items():
        e, la = (passes & ((value != 0) if kind != STAY else True)).nonzero()
        columns.append((e, la, np.full(len(e), kind), value[e, la]))
    parts = [np.concatenate(part) for part in zip(*columns, strict=True)]
    order = np.lexsort((-np.abs(parts[3]), parts[2] < 0, parts[1], parts[0]))
    at, layer_of, head_of, value = (part[order] for part in parts)
    names = np.array(chosen.names, dtype=object)[found.edge[at]]
    table = _table(
        {"edge": names, "layer": layer_of, "head": head_of, "loading": value},
    )
    share = np.abs(found.heads[listed]) / np.maximum(size[edge], 1e-300)
    weight = share * chosen.influence[found.edge[edge]]
    top = np.argsort(-weight, kind="stable")[:LOOKED_INTO]
    return table, np.stack([weight[top], found.edge[edge[top]], layer[top], head[top]], axis=1)


def _table(columns: dict[str, Any]) -> pa.Table:
    count = len(columns["edge"]) if columns else 0
    wanted = COLUMNS["heads"]
    return pa.table(
        {
            name: pa.array(columns[name], kind) if name in columns else pa.nulls(count, kind)
            for name, kind in wanted.items()
        }
    )


def _cell_table(about: Explained, chosen: Edges, items: Float[np.ndarray, "items 4"]) -> pa.Table:
    """The strongest cells of the loadings that matter most."""
    top = np.argsort(-items[:, 0], kind="stable")[:LOOKED_INTO]
    edge, layer, head = items[top, 1:].astype(np.int64).T
    wanted = Carried(
        chosen.columns[chosen.pairs.source[edge]], chosen.pairs.target[edge], layer, head
    )
    found = {
        item: strongest(matrix, CELLS)
        for item, matrix in cells_of(about.local, chosen.rows, wanted)
    }
    rows = [(item, *cell) for item in range(len(wanted)) for cell in found[item]]
    if not rows:
        return _table({})
    which = np.array([row[0] for row in rows], dtype=np.int64)
    return _table(
        {
            "edge": np.array(chosen.names, dtype=object)[edge[which]],
            "layer": layer[which],
            "head": head[which],
            "query": [row[1] for row in rows],
            "key": [row[2] for row in rows],
            "loading": [row[3] for row in rows],
        }
    )


def _stay_checked(about: Explained, chosen: Edges, heads: int) -> float:
    """By how much the stay of the largest edges differs from what streams and gradients give."""
    largest = np.argsort(-np.abs(chosen.weight), kind="stable")[:CHECKED]
    columns, source = np.unique(chosen.pairs.source[largest], return_inverse=True)
    numbers, target = np.unique(chosen.pairs.target[largest], return_inverse=True)
    rows, pairs = chosen.rows[numbers], Pairs(source, target)
    some = chosen.columns[columns]
    entering = list(streams(about.local, sources_of(about.local, some)))
    own = {layer: stays for layer, _, _, stays in gradients(about.local, rows)}
    top, worst = top_layer(rows.site), 0.0
    for found in loadings(about.local, some, rows, pairs, heads):
        at = pairs.target[found.edge], pairs.source[found.edge]
        for layer, stays in own.items():
            products = stays.flatten(1) @ entering[layer].flatten(1).T
            wrong = np.abs(products.double().cpu().numpy()[at] - found.stay[:, layer])
            worst = max(worst, float(wrong[layer <= top[at[0]]].max(initial=0.0)))
    return worst


def head_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows that split edges, without cells."""
    return (row for row in table.to_pylist() if row["query"] is None)
