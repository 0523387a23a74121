"""What the viewer shows, as bytes: a JSON header and typed columns, packed with gzip.

    4 bytes      length of the header, little-endian
    header       JSON: ids, texts, labels, metadata, scores, panels, and where each column stands
    columns      one after the other

Sources are steps from the one before in their row; floats stand byte plane by byte plane. Both
pack better so. `modules/data.mjs` reads it.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphs import steering
from graphs.edges import effect_matrix
from graphs.schema import NodeKind, number

KINDS = [NodeKind.EMBEDDING, NodeKind.ERROR, NodeKind.FEATURE, NodeKind.LOGIT]
"""In the order of `KINDS` in modules/data.mjs."""
TYPES = {"u1": "u8", "i4": "i32", "u4": "u32", "f4": "f32", "f8": "f64"}
STABILITY = "stability"
"""A column of nodes and edges that a graph may have: shares from 0 to 1."""
PANEL_ROWS, PANEL_EDGES = 60_000, 2_000
"""Rows of a table beside the graph that the viewer takes with it, the first ones; edges of which it
takes the heads, the most influential."""


@dataclass(frozen=True)
class Beside:
    """What stands beside the two tables of a graph on disk."""

    name: str = ""
    """Of the graph, where several are shown."""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """Of attention, by the name of their file: heads, attention, attention_marginals, ...; the
    graph's own where there are none."""
    groups: Sequence[Mapping[str, Any]] = ()
    """As groups.json has them: name, members (node ids), place; the graph's own where none."""
    view: Mapping[str, Any] = field(default_factory=dict)
    """What a viewer saved: pins, thresholds, places; see modules/state.mjs."""


@dataclass(frozen=True)
class Extras:
    """What is shown beside nodes and edges."""

    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`L/F` -> what is known of a feature, plain values as tracer/features/panel.py gives them."""
    opening: Mapping[str, float] = field(default_factory=dict)
    """Thresholds `nodes` and `edges` at which it opens; `steered`: whether what steers attention is
    kept too."""
    held: Mapping[str, Any] = field(default_factory=dict)
    """What was left behind on export; see thresholds.py."""
    beside: Beside = field(default_factory=Beside)


def pack(nodes: pa.Table, edges: pa.Table, metadata: Mapping[str, Any], extras: Extras) -> bytes:
    """A graph and what is shown beside it.

    Args:
        nodes: the node table, checked.
        edges: the edge table.
        metadata: of the graph, with its scores.
        extras: what else is shown.

    Returns:
        gzip, the same bytes for the same graph.
    """
    columns = (
        _columns(nodes, edges)
        | _steering(extras.beside.tables, nodes.num_rows)
        | _stability(nodes, edges)
    )
    described, parts, offset = [], [], 0
    for name, (array, coding) in columns.items():
        raw = _planes(array) if coding == "planes" else array.tobytes()
        kind = TYPES[array.dtype.str[1:]]
        described.append(
            {"name": name, "type": kind, "coding": coding, "offset": offset, "length": len(array)}
        )
        parts.append(raw)
        offset += len(raw)
    header = {
        "format": 1,
        "columns": described,
        "nodes": {name: nodes[name].to_pylist() for name in ("id", "text", "label")},
        "metadata": dict(metadata),
        "name": extras.beside.name,
        "features": dict(extras.features),
        "tables": _tables(extras.beside.tables, nodes, edges),
        "groups": list(extras.beside.groups),
        "view": dict(extras.beside.view),
        "opening": dict(extras.opening),
        "held": dict(extras.held),
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return gzip.compress(len(text).to_bytes(4, "little") + text + b"".join(parts), 9, mtime=0)


def _columns(nodes: pa.Table, edges: pa.Table) -> dict[str, tuple[np.ndarray, str]]:
    """Name -> array and how it is written."""
    effect = effect_matrix(edges, nodes.num_rows)
    kinds = {str(kind): at for at, kind in enumerate(KINDS)}
    kind = np.array([kinds[name] for name in nodes["kind"].to_pylist()], np.uint8)
    found: dict[str, tuple[np.ndarray, str]] = {"kind": (kind, "plain")}
    for name in ("layer", "position", "feature", "token"):
        values = nodes[name].fill_null(-1).to_numpy()
        found[name] = (np.clip(values, -(2**31), 2**31 - 1).astype("<i4"), "planes")
    for name, column in {
        "activation": "activation",
        "pre": "pre_activation",
        "constant": "constant",
        "leftOut": "left_out",
        "leftOutAbsolute": "left_out_absolute",
        "weightOf": "probability",
        "influence": "influence",
        "total": "input_absolute",
    }.items():
        found[name] = (number(nodes, column).astype("<f8"), "planes")
    steps = np.diff(effect.indices.astype("<i4"), prepend=np.int32(0))
    first = effect.indptr[:-1][np.diff(effect.indptr) > 0]
    steps[first] = effect.indices[first]
    found["start"] = (effect.indptr.astype("<i4"), "planes")
    found["source"] = (steps.astype("<i4"), "planes")
    found["weight"] = (effect.data.astype(effect.dtype.newbyteorder("<")), "planes")
    return found


def _steering(tables: Mapping[str, pa.Table], count: int) -> dict[str, tuple[np.ndarray, str]]:
    """What steers attention, where that is known, as the edges are written."""
    if steering.NAME not in tables:
        return {}
    steers = steering.matrix(tables[steering.NAME], count)
    return {
        "steerStart": (steers.indptr.astype("<i4"), "planes"),
        "steerSource": (steers.indices.astype("<i4"), "planes"),
        "steerSize": (steers.data.astype("<f8"), "planes"),
    }


def _stability(nodes: pa.Table, edges: pa.Table) -> dict[str, tuple[np.ndarray, str]]:
    """In what share of variants nodes and edges were found, where their tables say; NaN unknown."""
    found = {}
    if STABILITY in nodes.column_names:
        found["stable"] = (_shares(nodes), "planes")
    if STABILITY in edges.column_names:
        order = np.lexsort([edges[name].to_numpy() for name in ("source", "target")])
        found["stableEdge"] = (_shares(edges)[order], "planes")
    return found


def _shares(table: pa.Table) -> np.ndarray:
    return table[STABILITY].cast(pa.float32()).fill_null(np.nan).to_numpy().astype("<f4")


def _planes(array: np.ndarray) -> bytes:
    return array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()


def _tables(
    tables: Mapping[str, pa.Table], nodes: pa.Table, edges: pa.Table
) -> dict[str, dict[str, list[Any]]]:
    """Tables of attention as columns; of heads, those of the most influential edges."""
    found = {name: table for name, table in tables.items() if name != steering.NAME}
    if "heads" in found:
        order = np.argsort(-edges["influence"].to_numpy(), kind="stable")[:PANEL_EDGES]
        ids = nodes["id"].to_pylist()
        source, target = (edges[name].to_numpy()[order] for name in ("source", "target"))
        names = [f"{ids[s]}__{ids[t]}" for s, t in zip(source, target, strict=True)]
        found["heads"] = found["heads"].filter(pc.is_in(found["heads"]["edge"], pa.array(names)))
    return {name: _plain(table) for name, table in found.items()}


def _plain(table: pa.Table) -> dict[str, list[Any]]:
    """The first rows of a table as columns of JSON values."""
    shown = table.slice(0, PANEL_ROWS)
    columns = {name: shown[name].to_pylist() for name in shown.column_names}
    for values in columns.values():
        for at, value in enumerate(values):
            if isinstance(value, float) and not np.isfinite(value):
                values[at] = None
    return columns
