"""A graph as rows of a dataset's tables, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphs import steering
from graphs.collections.columns import (
    FAILED,
    KEY,
    NODE_COLUMNS,
    PROMPT_COLUMNS,
    STEERING_COLUMNS,
    TRACED,
    edge_columns,
)
from graphs.edges import effect_matrix
from graphs.graph import AttributionGraph
from graphs.schema import GraphError, plain_metadata


@dataclass(frozen=True)
class Asked:
    """A prompt as it was given."""

    number: int
    """Its place in the order given, from 0."""
    text: str | None
    targets: str | None = None
    """JSON; None: the likeliest tokens."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Column -> value, of the caller's own columns."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What one prompt, or several one after the other, are in the tables."""

    prompts: pa.Table
    nodes: pa.Table
    edges: pa.Table
    steering: pa.Table


def traced_rows(asked: Asked, whole: AttributionGraph, kept: AttributionGraph) -> Rows:
    """Rows of a prompt that was traced.

    Args:
        asked: the prompt.
        whole: its graph as traced.
        kept: what is left of it to be written; may be the same.

    Returns:
        Tables with the columns of `columns.py`, then the caller's own, typed by their values.
    """
    row = _asked(asked, TRACED, None) | _found(whole, kept)
    known = kept.tables.get(steering.NAME, _empty(steering.COLUMNS))
    return Rows(
        _prompt_table(row, asked),
        _numbered(kept.nodes.select(list(NODE_COLUMNS)[1:]), asked.number),
        _numbered(_edges(kept), asked.number),
        _numbered(known, asked.number),
    )


def failed_rows(asked: Asked, reason: str, weight: pa.DataType) -> Rows:
    """Rows of a prompt that could not be traced.

    Args:
        asked: the prompt.
        reason: one line.
        weight: type of the dataset's weights.

    Returns:
        One row in `prompts`, none elsewhere.
    """
    return Rows(
        _prompt_table(_asked(asked, FAILED, reason), asked),
        _empty(NODE_COLUMNS),
        _empty(edge_columns(weight)),
        _empty(STEERING_COLUMNS),
    )


def joined(rows: Sequence[Rows]) -> Rows:
    """Rows of prompts that follow each other."""
    parts = ("prompts", "nodes", "edges", "steering")
    tables = ([getattr(one, name) for one in rows] for name in parts)
    return Rows(*(pa.concat_tables(some, promote_options="default") for some in tables))


def in_order(rows: Rows) -> Rows:
    """The same rows, sorted by the number of their prompt."""
    return Rows(*(_sorted(table) for table in vars(rows).values()))


def _sorted(table: pa.Table) -> pa.Table:
    prompt = table[KEY[0]].to_numpy()
    if (np.diff(prompt) >= 0).all():
        return table
    return table.take(np.argsort(prompt, kind="stable"))


def graph_of(rows: Rows) -> AttributionGraph:
    """The graph of one traced prompt.

    Args:
        rows: of that prompt alone.

    Returns:
        The graph that was written, equal in every table and in its metadata.

    Raises:
        GraphError: the rows are no graph.
    """
    nodes = rows.nodes.drop_columns([KEY[0]]).combine_chunks()
    try:
        metadata = json.loads(rows.prompts["metadata"][0].as_py())
    except (IndexError, TypeError, ValueError, RecursionError) as error:
        raise GraphError(f"its metadata is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise GraphError("its metadata is no JSON object")
    ids = nodes["id"].combine_chunks()
    ends = {
        name: pc.index_in(rows.edges[name], value_set=ids).cast(pa.int32())
        for name in ("source", "target")
    }
    effect = effect_matrix(
        pa.table({**ends, "weight": rows.edges["weight"]}).combine_chunks(), nodes.num_rows
    )
    known = rows.steering.drop_columns([KEY[0]]).combine_chunks()
    return AttributionGraph(
        nodes=nodes,
        effect=effect,
        metadata=plain_metadata(metadata),
        tables={steering.NAME: known} if _kept_attention(metadata) else {},
    )


def _kept_attention(metadata: Mapping[str, Any]) -> bool:
    told = metadata.get("settings")
    return isinstance(told, dict) and told.get("keep_attention") is True


def _asked(asked: Asked, status: str, reason: str | None) -> dict[str, Any]:
    return {
        "prompt": asked.number,
        "text": asked.text,
        "status": status,
        "reason": reason,
        "targets": asked.targets,
    }


def _found(whole: AttributionGraph, kept: AttributionGraph) -> dict[str, Any]:
    """What a prompt's row says of its graph."""
    metadata, scores, traced = kept.metadata, kept.scores, whole.scores
    law = metadata.get("conservation", {})
    numbers = {
        **{name: value for name, value in asdict(scores).items() if isinstance(value, float)},
        "reference_replacement": scores.among_nodes.replacement,
        "reference_completeness": scores.among_nodes.completeness,
        "traced_replacement": traced.replacement,
        "traced_completeness": traced.completeness,
    }
    return {
        "tokens": metadata.get("tokens"),
        "token_ids": metadata.get("token_ids"),
        **_answer(kept),
        "active_features": metadata.get("active_features"),
        "traced_nodes": whole.nodes.num_rows,
        "traced_edges": whole.effect.nnz,
        "kept_nodes": kept.nodes.num_rows,
        "kept_edges": kept.effect.nnz,
        **{name: None if isnan(value) else value for name, value in numbers.items()},
        "conservation": law.get("worst"),
        "conservation_relative": law.get("relative"),
        "metadata": json.dumps(metadata, ensure_ascii=False),
    }


def _answer(graph: AttributionGraph) -> dict[str, Any]:
    weight = graph.nodes["probability"].fill_null(-1).to_numpy()
    best = int(np.argmax(weight))
    return {
        "answer": graph.nodes["label"][best].as_py(),
        "probability": graph.nodes["probability"][best].as_py(),
    }


def _prompt_table(row: Mapping[str, Any], asked: Asked) -> pa.Table:
    known = {name: pa.array([row.get(name)], kind) for name, kind in PROMPT_COLUMNS.items()}
    return pa.table(known | {name: pa.array([value]) for name, value in asked.own.items()})


def _edges(graph: AttributionGraph) -> pa.Table:
    """Edges between ids."""
    edges, ids = graph.edges, graph.nodes["id"].combine_chunks()
    ends = {name: ids.take(edges[name].combine_chunks()) for name in ("source", "target")}
    rest = {name: edges[name] for name in ("weight", "influence", "share")}
    return pa.table(ends | rest)


def _numbered(table: pa.Table, number: int) -> pa.Table:
    column = pa.array(np.full(table.num_rows, number), KEY[1])
    return table.add_column(0, KEY[0], column)


def _empty(columns: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.schema(list(columns.items())).empty_table()
