"""Tables for other programs, chosen by the suffix of the file.

The attribution-graph JSON of the field's other tools will join: one function from the tables to
bytes, and a line in `WRITERS` (or in the command that picks it).
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from graphs.exchange.files import writing
from graphs.exchange.networks import to_networkx
from graphs.schema import GraphError
from graphs.viewer.page import document

Metadata = dict[str, Any]
FORMULA = "^([\\s\\pZ\\pC]*[=+\\-@|%\uff1d\uff0b\uff0d\uff20]|[\\t\\r\\n])"
"""How texts begin that spreadsheets run, in the characters of the wide forms too."""


def edge_list_json(nodes: pa.Table, edges: pa.Table, metadata: Metadata) -> bytes:
    """`{metadata, nodes: [{id, ...}], edges: [{source, target, ...}]}`, edges between ids."""
    rows = _named(nodes, edges).to_pylist()
    value = {"metadata": metadata, "nodes": nodes.to_pylist(), "edges": rows}
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1).encode()


def graphml(nodes: pa.Table, edges: pa.Table, metadata: Metadata) -> bytes:
    """GraphML with typed attributes. What is null is left out; nested metadata are JSON text."""
    graph = to_networkx(nodes, edges, {key: _scalar(value) for key, value in metadata.items()})
    for attributes in (*(data for _, data in graph.nodes.data()), graph.graph):
        attributes |= {key: _xml(value) for key, value in attributes.items()}
    stream = io.BytesIO()
    nx.write_graphml_xml(graph, stream)
    return stream.getvalue()


def edge_csv(nodes: pa.Table, edges: pa.Table, _: Metadata) -> bytes:
    r"""One line an edge: ids, numbers, then text and label of both ends.

    A text that a spreadsheet would take for a formula has an apostrophe in front.

    >>> nodes = pa.table({"id": ["d", "t"], "text": [" Dallas", None], "label": [None, "Texas"]})
    >>> edges = pa.table({"source": [0], "target": [1], "weight": [2.5]})
    >>> print(edge_csv(nodes, edges, {}).decode(), end="")
    "source","target","weight","source_text","source_label","target_text","target_label"
    "d","t",2.5," Dallas",,,"Texas"
    """
    stream = io.BytesIO()
    table = _with_texts(nodes, edges)
    for at, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type):
            safe = pc.replace_substring_regex(table[name], FORMULA, r"'\1")
            table = table.set_column(at, name, safe)
    pa.csv.write_csv(table, stream)
    return stream.getvalue()


def edge_parquet(nodes: pa.Table, edges: pa.Table, metadata: Metadata) -> bytes:
    """The same columns as Parquet, with the metadata as JSON under `tracer.graph`."""
    table = _with_texts(nodes, edges)
    held = {"tracer.graph": json.dumps(metadata, ensure_ascii=False)}
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(held), stream)
    return stream.getvalue()


WRITERS: dict[str, Callable[[pa.Table, pa.Table, Metadata], bytes]] = {
    ".json": edge_list_json,
    ".graphml": graphml,
    ".csv": edge_csv,
    ".parquet": edge_parquet,
    ".html": document,
}


def export(path: Path, nodes: pa.Table, edges: pa.Table, metadata: Metadata) -> None:
    """Write the graph in the format that the suffix of `path` names.

    Raises:
        GraphError: an unknown suffix, or the file cannot be written.
    """
    if path.suffix not in WRITERS:
        raise GraphError(f"cannot export {path}: expected a suffix of {', '.join(WRITERS)}")
    with writing(path) as partial:
        partial.write_bytes(WRITERS[path.suffix](nodes, edges, metadata))


def _named(nodes: pa.Table, edges: pa.Table) -> pa.Table:
    ends = {end: nodes["id"].take(edges[end]) for end in ("source", "target")}
    return pa.table(ends | {name: edges[name] for name in edges.column_names[2:]})


def _with_texts(nodes: pa.Table, edges: pa.Table) -> pa.Table:
    table = _named(nodes, edges)
    for end in ("source", "target"):
        for name in ("text", "label"):
            table = table.append_column(f"{end}_{name}", nodes[name].take(edges[end]))
    return table


def _scalar(value: object) -> object:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _xml(value: object) -> object:
    """Text without the characters that XML cannot hold."""
    if not isinstance(value, str):
        return value
    return "".join(char if _fits_xml(char) else "\N{REPLACEMENT CHARACTER}" for char in value)


def _fits_xml(char: str) -> bool:
    code = ord(char)
    return code in (9, 10, 13) or 0x20 <= code < 0xD800 or 0xE000 <= code not in (0xFFFE, 0xFFFF)
