"""What a graph says of attention, as tables beside its nodes and edges.

`heads`: every edge split over the heads of each layer it passes. `attention`: heads explained, a
row each; `attention_marginals` and `attention_pairs`: by which nodes. Scores of heads are bilinear
in the nodes, so none of this enters effects or influence. `steering`: what nodes change through
scores and norms to the first order, which pruning reads where it is asked to (`steering.py`). All
but that name nodes by their ids: those of an explanation may be nodes that the graph does not have.
"""

from collections.abc import Collection, Mapping
from hashlib import sha256

import pyarrow as pa

from graphs import steering
from graphs.exchange import arrow
from graphs.schema import GraphError

STAY, ABOVE, REST = -1, -2, -3
"""In place of a head: what stays at its position beside the heads, what is written above the
layer's attention, and the heads that are not listed."""
LEFT = "rest"
"""In place of a node: all that are not listed."""

COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "heads": {
        "edge": pa.string(),
        "layer": pa.int32(),
        "head": pa.int32(),
        "query": pa.int32(),
        "key": pa.int32(),
        "loading": pa.float64(),
    },
    "attention": {
        "explanation": pa.int32(),
        "layer": pa.int32(),
        "head": pa.int32(),
        "query": pa.int32(),
        "key": pa.int32(),
        "contrast": pa.string(),
        "score": pa.float64(),
        "capped": pa.float64(),
        "pattern": pa.float64(),
        "explained": pa.float64(),
        "log_odds": pa.float64(),
        "sink": pa.float64(),
        "cancellation": pa.float64(),
        "residual": pa.float64(),
    },
    "attention_marginals": {
        "explanation": pa.int32(),
        "side": pa.string(),
        "node": pa.string(),
        "position": pa.int32(),
        "weight": pa.float64(),
    },
    "attention_pairs": {
        "explanation": pa.int32(),
        "node_q": pa.string(),
        "node_k": pa.string(),
        "weight": pa.float64(),
    },
    steering.NAME: steering.COLUMNS,
}
"""Columns of every table. In `heads`, rows without query and key split the edge (heads, STAY,
ABOVE, REST add up to it at every layer); rows with both are the strongest cells of a head."""


def edge_name(source: str, target: str) -> str:
    """The name of an edge in `heads`.

    Returns:
        Both ids with two underscores between them, which no id holds.

    >>> edge_name("E_26_7", "2_1019_8")
    'E_26_7__2_1019_8'
    """
    return f"{source}__{target}"


def edge_ends(name: str) -> tuple[str, str]:
    """Source and target of an edge by its name.

    Returns:
        Two node ids.

    >>> edge_ends("E_26_7__2_1019_8")
    ('E_26_7', '2_1019_8')
    """
    source, _, target = name.partition("__")
    return source, target


def empty(name: str) -> pa.Table:
    """A table without rows.

    Returns:
        The columns of `COLUMNS[name]`.
    """
    return pa.schema(list(COLUMNS[name].items())).empty_table()


def check(tables: Mapping[str, pa.Table]) -> None:
    """Refuse tables that are none of these.

    Raises:
        GraphError: an unknown name, or columns of another name or type.
    """
    for name, table in tables.items():
        if name not in COLUMNS:
            raise GraphError(f"table {name!r} is not known: expected one of {sorted(COLUMNS)}")
        got = dict(zip(table.schema.names, table.schema.types, strict=True))
        if got != COLUMNS[name]:
            raise GraphError(f"table {name!r} has the columns {sorted(got)}: expected "
                             f"{sorted(COLUMNS[name])} with their types")  # fmt: skip


def left(tables: Mapping[str, pa.Table], edges: Collection[str]) -> dict[str, pa.Table]:
    """The tables of a graph of which only some edges are left, named as in `heads`.

    Explanations stay whole: they are of the model, not of the graph.

    Returns:
        Name -> table.
    """
    found = dict(tables)
    if "heads" in found:
        import pyarrow.compute as pc

        kept = pc.is_in(found["heads"]["edge"], pa.array(sorted(edges), pa.string()))
        found["heads"] = found["heads"].filter(kept)
    return found


def to_files(tables: Mapping[str, pa.Table]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The tables as files.

    Returns:
        File name -> content, and file name -> digest, which goes into the metadata: a file of
        another graph that stands in the folder is then no part of this one.
    """
    files = {f"{name}.arrow": arrow.table_bytes(table) for name, table in sorted(tables.items())}
    return files, {name: sha256(content).hexdigest() for name, content in files.items()}


def from_files(files: Mapping[str, bytes], digests: object) -> dict[str, pa.Table]:
    """The tables that `to_files` made.

    Returns:
        Name -> table; files that the digests do not name are left out.

    Raises:
        GraphError: one is missing, torn, or another one than the metadata say.
    """
    found = {}
    for file, digest in (digests if isinstance(digests, dict) else {}).items():
        if file not in files or sha256(files[file]).hexdigest() != digest:
            what = "is missing" if file not in files else "is of another graph"
            raise GraphError(f"{file} {what}: trace or copy the graph again")
        found[file.removesuffix(".arrow")] = arrow.table_of(files[file], file)
    check(found)
    return found
