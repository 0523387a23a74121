"""What a node is: its kind, its columns, and the checks every graph passes."""

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float
from scipy import sparse

from graphs import node_sites
from graphs.described import LAYERS, misdescribed

FORMAT_VERSION = 2
"""Of the files and of the metadata. Raise it when a column changes its meaning. Version 1 had no
column `site`: it is still read."""
READ_VERSIONS = (1, FORMAT_VERSION)


class GraphError(ValueError):
    """The graph, or a file that claims to hold one, breaks an invariant."""


class NodeKind(StrEnum):
    """What a node stands for. The values are written to disk: never rename."""

    EMBEDDING = "embedding"
    ERROR = "error"
    FEATURE = "feature"
    LOGIT = "logit"


GIVEN: dict[str, pa.DataType] = {
    "id": pa.string(),
    "kind": pa.string(),
    "layer": pa.int32(),
    "site": pa.string(),
    "position": pa.int32(),
    "feature": pa.int64(),
    "token": pa.int64(),
    "text": pa.string(),
    "label": pa.string(),
    "activation": pa.float64(),
    "pre_activation": pa.float64(),
    "constant": pa.float64(),
    "left_out": pa.float64(),
    "left_out_absolute": pa.float64(),
    "probability": pa.float64(),
}
"""Columns whoever traces must supply. Numbers without a meaning for a node are null."""

DERIVED: dict[str, pa.DataType] = {
    "influence": pa.float64(),
    "cumulative_influence": pa.float64(),
    "input_absolute": pa.float64(),
}
"""Columns the graph computes, always of the unpruned graph: influence b, the share of all
influence held by this node and those above it, and sum_s |A[t, s]| over the nodes and what an edge
floor dropped, which influence divides by. Scores and shares divide by all the model computed: this
and what a cap left out, which `left_out_absolute` holds (`graphs.scores.as_computed`)."""

COLUMNS = GIVEN | DERIVED
REQUIRED = ("id", "kind", "layer", "site", "position", *DERIVED)
"""Columns without nulls."""

POSITIONS = 1 << 17
"""Positions of a prompt at most, where the metadata do not list its tokens: pictures have a column
for each."""

LONGEST_ID = 200
"""Characters of an id at most: formats of pictures have a limit."""
_ID = re.compile(r"(?!.*__)[A-Za-z0-9]([A-Za-z0-9_.+-]*[A-Za-z0-9])?")
"""Safe in every format, and so that `a__b` names the edge from a to b without doubt."""


def node_table(columns: Mapping[str, Any], expected: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns as a typed table, `expected` ones first and in their order.

    Args:
        columns: name -> sequence or array with one entry a node; None where there is no value. A
            site that is missing is the usual one of the node's kind and layer.
        expected: names and types that must be there. Others keep the type they have.

    Returns:
        One row a node.

    Raises:
        GraphError: a column is missing, has another length, or does not fit its type.
    """
    columns = node_sites.filled(columns)
    if missing := [name for name in expected if name not in columns]:
        raise GraphError(f"nodes lack the columns {missing}: give every one of {list(expected)}")
    names = [*expected, *(name for name in columns if name not in expected)]
    arrays = {name: _array(name, columns[name], expected.get(name)) for name in names}
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = {name: len(array) for name, array in arrays.items()}
        raise GraphError(f"node columns differ in length, expected one entry a node: {lengths}")
    return pa.table(arrays)


def _array(
    name: str, values: Sequence[Any] | np.ndarray | pa.ChunkedArray, kind: pa.DataType | None
) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    try:
        array = pa.array(values, type=kind, from_pandas=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise GraphError(
            f"node column {name!r}: expected {kind or 'one type'}: {reason}"
        ) from error
    _check_plain(name, array.type)
    return array


def _check_plain(name: str, kind: pa.DataType) -> None:
    plain = pa.types
    tests = (plain.is_boolean, plain.is_integer, plain.is_floating, plain.is_string)
    if not any(test(kind) for test in tests):
        raise GraphError(f"node column {name!r} has type {kind}: expected bool, int, "
                         "float or string, which every export can hold")  # fmt: skip


def number(nodes: pa.Table, name: str) -> Float[np.ndarray, " nodes"]:
    """One numeric column.

    Returns:
        (nodes,) float64 in the column's units, 0 where it is null.
    """
    return nodes[name].fill_null(0).to_numpy().astype(np.float64, copy=False)


def is_kind(nodes: pa.Table, *kinds: NodeKind) -> Bool[np.ndarray, " nodes"]:
    """Which nodes are of one of `kinds`.

    Returns:
        (nodes,) a mask over the rows.

    >>> nodes = pa.table({"kind": ["embedding", "feature", "error", "logit"]})
    >>> is_kind(nodes, NodeKind.EMBEDDING, NodeKind.ERROR).tolist()
    [True, False, True, False]
    """
    names = np.array(nodes["kind"].to_pylist(), dtype=object)
    return np.isin(names, [str(kind) for kind in kinds])


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `metadata` as JSON would give it back, with the format version.

    Returns:
        Dicts with text as keys, lists, text, numbers, booleans and None.

    Raises:
        GraphError: a value is not JSON (NaN included), or the version is another one.

    >>> plain_metadata({"tokens": ("a", "b"), "layers": 4})["tokens"]
    ['a', 'b']
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise GraphError(f"metadata must be JSON: {error}") from error
    version = plain.get("format_version", FORMAT_VERSION)
    if version not in READ_VERSIONS:
        raise GraphError(f"graph has format version {version!r}, expected {FORMAT_VERSION}: "
                         "read it with the release of tracer that wrote it")  # fmt: skip
    return plain | {"format_version": FORMAT_VERSION}


def check_nodes(nodes: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Refuse a node table that breaks an invariant.

    Raises:
        GraphError: metadata of another shape than `graphs.described.SCHEMA` has, a column is
            missing or of another type, or holds what no export can, a null or a number that is not
            finite where there may be none, an unknown kind, an id that stands twice or holds
            other than letters and digits with single `_ . + -` between them, a layer outside
            the model or a position outside the prompt, a site that is none, does not go with
            kind and layer or comes too late, a negative weight, or a weight on something that is
            no logit.
    """
    if said := misdescribed(metadata):
        raise GraphError(said)
    _check_columns(nodes)
    _check_numbers(nodes)
    _check_ids(nodes["id"].to_pylist())
    kinds = set(nodes["kind"].to_pylist()) - set(NodeKind)
    if kinds:
        raise GraphError(f"unknown node kind {sorted(kinds)[0]!r}: expected one of "
                         f"{[str(kind) for kind in NodeKind]}")  # fmt: skip
    _check_places(nodes, metadata)
    _check_sites(nodes)
    weight = number(nodes, "probability")
    wrong = (weight < 0) | ((weight != 0) & ~is_kind(nodes, NodeKind.LOGIT))
    if wrong.any():
        row = int(wrong.argmax())
        raise GraphError(f"{_where(nodes, row)} has probability {weight[row]}: expected a "
                         "non-negative weight, and only on logits")  # fmt: skip


def _check_columns(nodes: pa.Table) -> None:
    for name, kind in COLUMNS.items():
        if nodes.column_names.count(name) != 1:
            raise GraphError(f"nodes need one column {name!r}, got {nodes.column_names}")
        if nodes[name].type != kind:
            raise GraphError(f"node column {name!r} is {nodes[name].type}, expected {kind}")
    for field in nodes.schema:
        _check_plain(field.name, field.type)
    for name in REQUIRED:
        if nodes[name].null_count:
            raise GraphError(f"node column {name!r} has nulls: every node must have a value")


def _check_numbers(nodes: pa.Table) -> None:
    for name in nodes.column_names:
        if not pa.types.is_floating(nodes[name].type):
            continue
        values = number(nodes, name)
        if not np.isfinite(values).all():
            row = int((~np.isfinite(values)).argmax())
            raise GraphError(f"{_where(nodes, row)} has {name} {values[row]}: expected a finite "
                             "number, or None where there is no value")  # fmt: skip


def _check_ids(ids: list[str]) -> None:
    seen: set[str] = set()
    for row, name in enumerate(ids):
        if len(name) > LONGEST_ID or not _ID.fullmatch(name):
            raise GraphError(
                f"node {row} has id {name!r:.80}: expected at most {LONGEST_ID} letters and digits,"
                " with single _ . + - between them"
            )
        if name in seen:
            raise GraphError(f"node id {name!r} stands twice, at rows {ids.index(name)} and {row}")
        seen.add(name)


def _check_places(nodes: pa.Table, metadata: Mapping[str, Any]) -> None:
    tokens, layers = metadata.get("tokens"), metadata.get("layers", LAYERS)
    inner = is_kind(nodes, NodeKind.FEATURE, NodeKind.ERROR)
    for name, end, some in (
        ("position", POSITIONS if tokens is None else len(tokens), np.ones_like(inner)),
        ("layer", layers, inner),
    ):
        value = nodes[name].to_numpy()
        outside = some & ((value < 0) | (value >= end))
        if outside.any():
            row = int(outside.argmax())
            raise GraphError(
                f"{_where(nodes, row)} stands at {name} {value[row]}, expected 0 to {end - 1}"
            )


def _check_sites(nodes: pa.Table) -> None:
    names = ("kind", "layer", "site")
    if wrong := node_sites.misplaced(*(nodes[name].to_pylist() for name in names)):
        raise GraphError(wrong)


def _where(nodes: pa.Table, row: int) -> str:
    return f"node {row} ({nodes['id'][row].as_py()})"


def check_effect(effect: sparse.csr_array, nodes: pa.Table) -> None:
    """Refuse effects that are no graph in computation order.

    Raises:
        GraphError: another shape, type or index order, an entry that is not finite, an edge
            that runs backward, an input to a token or error, or an edge that leaves a logit.
    """
    count = nodes.num_rows
    if effect.shape != (count, count):
        raise GraphError(f"effect has shape {effect.shape}, expected {(count, count)}: one row "
                         "and one column a node")  # fmt: skip
    if effect.dtype not in (np.float32, np.float64):
        raise GraphError(f"effect is {effect.dtype}, expected float32 or float64")
    root = is_kind(nodes, NodeKind.EMBEDDING, NodeKind.ERROR)
    logit = is_kind(nodes, NodeKind.LOGIT)
    if _in_order(effect, root, logit):
        return
    target = np.repeat(np.arange(count), np.diff(effect.indptr))
    source = effect.indices
    for wrong, rule in (
        (~np.isfinite(effect.data), "is not finite"),
        (source >= target, "runs backward: list nodes in computation order"),
        (root[target], "enters a token or an error, which have no inputs"),
        (logit[source], "leaves a logit, which has no outputs"),
    ):
        if wrong.any():
            edge = int(wrong.argmax())
            raise GraphError(f"edge {source[edge]} -> {target[edge]} "
                             f"(weight {effect.data[edge]}) {rule}")  # fmt: skip


def check_inputs(left: Float[np.ndarray, " nodes"], nodes: pa.Table) -> None:
    """Refuse rows that hold more than they were traced with.

    Args:
        left: (nodes,) sum of |effect| over each row.
        nodes: the node table.

    Raises:
        GraphError: a row's sum is above its `input_absolute`.
    """
    total = number(nodes, "input_absolute")
    excess = left / (1 + 1e-9) > total
    if excess.any():
        row = int(excess.argmax())
        raise GraphError(
            f"{_where(nodes, row)} has inputs of {left[row]:g}, more than its input_absolute "
            f"{total[row]:g}: nodes and edges are of two graphs"
        )


def _in_order(effect: sparse.csr_array, root: np.ndarray, logit: np.ndarray) -> bool:
    """Whether nothing is wrong, where logits come last: without a table of all edges."""
    row = np.flatnonzero(np.diff(effect.indptr))
    if not len(row):
        return True
    latest = np.maximum.reduceat(effect.indices, effect.indptr[row])
    first = logit.argmax() if logit.any() else len(logit)
    forward = bool((latest < np.minimum(row, first)).all())
    return forward and not root[row].any() and bool(np.isfinite(effect.data).all())
