"""Graphs on disk: a folder, or a zip of it, with `nodes.arrow` and `edges.arrow`.

Both are Arrow IPC files and carry the graph's metadata as JSON in their schema, so each tells
what it belongs to; beside it stands a digest of both files, by which turned bits are found. Beside
the tables may stand what people made of the graph: its groups, and what a viewer saved; and tables
about attention. The same graph gives the same bytes: no time stamps, fixed order.
"""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from graphs.collections import columns
from graphs.exchange.arrow_size import unpacked_bytes
from graphs.exchange.files import is_passing, place_of, write_together, writing
from graphs.schema import GraphError

NODES, EDGES = "nodes.arrow", "edges.arrow"
GROUPS, VIEW = "groups.json", "view.json"
ATTENTION = (
    *("heads.arrow", "attention.arrow", "attention_marginals.arrow", "attention_pairs.arrow"),
    "steering.arrow",
)
BESIDE = (GROUPS, VIEW, *ATTENTION)
"""What a graph may have beside its tables, also in a zip."""
KEY = b"tracer.graph"
"""Under which the schema holds the metadata."""
DIGEST = b"tracer.digest"
"""Under which it holds the digest of both files, absent before version 0.2."""

EPOCH = (1980, 1, 1, 0, 0, 0)
LARGEST = 1 << 26
"""Bytes a zip member or a compressed table may unpack to whatever its packed size; above it, at
most `RATIO` times."""
RATIO = 100
TORN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zipfile.LargeZipFile)
"""What reading a torn folder or .zip raises; the third of names that are no text, and of places
before the file's beginning."""
TRIES = 5
"""How often a folder is read where its files are of two graphs, as while another replaces them."""


def write(
    path: Path,
    nodes: pa.Table,
    edges: pa.Table,
    metadata: dict[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a graph: a zip when `path` ends in .zip, a folder otherwise.

    A graph that stands there is replaced; anything else is left alone and refused.

    Args:
        path: where.
        nodes: one row a node.
        edges: one row an edge.
        metadata: into the schema of both.
        beside: name of `BESIDE` -> content, replaced together with the tables.

    Raises:
        GraphError: the place is taken by something else or cannot be written.
    """
    check_replaceable(path)
    files = _sealed(nodes, edges, json.dumps(metadata).encode())
    files |= {name: pa.py_buffer(content) for name, content in (beside or {}).items()}
    if path.suffix == ".zip":
        with writing(path) as partial:
            _zip(partial, files)
    else:
        write_together(path, files)


def check_replaceable(path: Path) -> None:
    """Refuse a place where something stands that is neither a graph nor an empty folder.

    Raises:
        GraphError: what stands there.
    """
    if why := _in_the_way(path):
        raise GraphError(
            f"cannot write {path}: it exists and is no graph ({why}): choose another path or "
            "remove it first"
        )


def _in_the_way(path: Path) -> str | None:
    if path.is_dir():
        if path.suffix == ".zip":
            return "a folder stands there"
        if all(place_of(path, name) for name in (NODES, EDGES)):
            return None
        found = [entry for entry in path.iterdir() if not is_passing(entry.name)]
        return "the folder holds no graph" if found else None
    if not path.exists():
        return None
    if path.suffix != ".zip":
        return "a file stands there"
    return None if _is_graph(path) else "the file holds no graph"


def _is_graph(path: Path) -> bool:
    """Whether a file is a zip of what `write` puts into one, whatever it holds."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _are_of_a_graph(archive.namelist())
    except TORN:
        return False


def _are_of_a_graph(names: list[str]) -> bool:
    found = set(names)
    return len(found) == len(names) and {NODES, EDGES} <= found <= {NODES, EDGES, *BESIDE}


def _sealed(nodes: pa.Table, edges: pa.Table, metadata: bytes) -> dict[str, pa.Buffer]:
    """Both files, with a digest of both in each."""
    place = _placeholder(metadata)
    held = {KEY: metadata, DIGEST: place}
    files = {
        name: _written(table.replace_schema_metadata(held)).to_pybytes()
        for name, table in ((NODES, nodes), (EDGES, edges))
    }
    digest = _digest(files.values(), place, place)
    return {name: pa.py_buffer(content.replace(place, digest)) for name, content in files.items()}


def _placeholder(metadata: bytes) -> bytes:
    """What stands in for the digest while it is worked out: as long, and nowhere else in a file."""
    return sha256(metadata).hexdigest().encode()


def _digest(contents: Iterable[bytes], held: bytes, place: bytes) -> bytes:
    """SHA-256 of some files, each with `place` where it holds `held`."""
    found = sha256()
    for content in contents:
        rest, begin = memoryview(content), 0
        while (at := content.find(held, begin)) >= 0:
            found.update(rest[begin:at])
            found.update(place)
            begin = at + len(held)
        found.update(rest[begin:])
    return found.hexdigest().encode()


def _written(table: pa.Table) -> pa.Buffer:
    held, sink = table.combine_chunks(), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, held.schema) as writer:
        writer.write_table(held)
    return sink.getvalue()


def table_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow file, without metadata.

    Returns:
        The file's content.
    """
    return _written(table.replace_schema_metadata(None)).to_pybytes()


def table_of(content: bytes, where: str) -> pa.Table:
    """The table that an Arrow file holds.

    Returns:
        The table, without metadata.

    Raises:
        GraphError: it is torn or no Arrow file; the message says `where`.
    """
    return _checked(content, where).replace_schema_metadata(None)


def _zip(path: Path, files: dict[str, pa.Buffer]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, date_time=EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as stream:
                stream.write(content)


class Held(NamedTuple):
    """What stands on disk, not yet checked."""

    nodes: pa.Table
    edges: pa.Table
    metadata: dict[str, Any]
    beside: dict[str, bytes]
    """Name of `BESIDE` -> content, of those that are there."""
    whole: bool
    """Whether the digest is that of the files, or there is none."""


def read(path: Path) -> Held:
    """Read what `write` wrote; the caller checks what it says.

    Returns:
        Nodes, edges, metadata, and what stands beside them.

    Raises:
        GraphError: nothing there, no graph, a torn or foreign file, or halves of two graphs.
    """
    for _ in range(TRIES):
        try:
            contents = _from_zip(path) if path.is_file() else _from_folder(path)
        except GraphError:
            raise
        except TORN as error:
            raise GraphError(f"cannot read {path}: {_line(error)}") from error
        nodes, said = _table(contents[NODES], f"{path}/{NODES}")
        edges, other = _table(contents[EDGES], f"{path}/{EDGES}")
        if said == other:
            beside = {name: contents[name] for name in BESIDE if name in contents}
            metadata = _metadata(said[KEY], f"{path}/{NODES}")
            return Held(nodes, edges, metadata, beside, _is_whole(contents, said))
    raise GraphError(f"{path}: {NODES} and {EDGES} are of two graphs: trace or copy it again")


def _from_folder(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        raise GraphError(f"{path} does not exist: expected a graph's folder or .zip")
    found = {name: _content(path, name) for name in (NODES, EDGES, *BESIDE)}
    if missing := [name for name in (NODES, EDGES) if found[name] is None]:
        if (path / columns.ABOUT).is_file():
            raise GraphError(
                f"{path} is a dataset of graphs: take one out, as in tracer prune {path} "
                "--prompt 0 --nodes 1 --edges 1 -o one.graph"
            )
        raise GraphError(
            f"{path} is no graph: expected {NODES} and {EDGES}, {missing[0]} is missing"
        )
    return {name: content for name, content in found.items() if content is not None}


def content_of(path: Path, name: str) -> bytes | None:
    """One file of a graph's folder or .zip, as `BESIDE` names them.

    Returns:
        What it holds, None where it is not there.

    Raises:
        GraphError: it is there, but cannot be read.
    """
    try:
        return _from_zip(path).get(name) if path.is_file() else _content(path, name)
    except GraphError:
        raise
    except TORN as error:
        raise GraphError(f"cannot read {path}: {_line(error)}") from error


def _content(folder: Path, name: str) -> bytes | None:
    """What a file holds, also where another process moves it meanwhile; None where it is not."""
    for _ in range(TRIES):
        place = place_of(folder, name)
        if place is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            return place.read_bytes()
    return None


def _from_zip(path: Path) -> dict[str, bytes]:
    if not zipfile.is_zipfile(path):
        raise GraphError(f"{path} is no graph: expected a folder or .zip of {NODES} and {EDGES}")
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if not _are_of_a_graph(archive.namelist()):
            raise GraphError(
                f"{path} is no graph: expected exactly {NODES} and {EDGES} in it, beside them at "
                f"most {', '.join(BESIDE)}, got "
                f"{len(members)} members ({', '.join(sorted(members)[:3])!r:.100})"
            )
        for member in members.values():
            if member.file_size > max(LARGEST, RATIO * member.compress_size):
                raise GraphError(
                    f"{path}: {member.filename} unpacks to {member.file_size} bytes, more than "
                    f"{RATIO} times its size: no graph of ours does"
                )
        try:
            return {name: archive.read(name) for name in members}
        except (RuntimeError, NotImplementedError, zlib.error) as error:
            raise GraphError(f"cannot read {path}: {_line(error)}") from error


def _is_whole(contents: Mapping[str, bytes], said: Mapping[bytes, bytes]) -> bool:
    if DIGEST not in said:
        return True
    files = (contents[name] for name in (NODES, EDGES))
    return _digest(files, said[DIGEST], _placeholder(said[KEY])) == said[DIGEST]


def _checked(content: bytes, where: str) -> pa.Table:
    try:
        size = unpacked_bytes(content)
        if size > max(LARGEST, RATIO * len(content)):
            raise GraphError(
                f"{where} unpacks to {size} bytes, more than {RATIO} times its size: no graph of "
                "ours does"
            )
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GraphError(
            f"{where} is torn or no Arrow file: {_line(error)}: trace or copy it again"
        ) from error
    return table


def _table(content: bytes, where: str) -> tuple[pa.Table, dict[bytes, bytes]]:
    """A table, and what its schema says: the metadata as JSON, and the digest if there is one."""
    table = _checked(content, where)
    held = table.schema.metadata or {}
    if KEY not in held:
        raise GraphError(
            f"{where} is an Arrow file, but not of a graph: it has no {KEY.decode()!r}"
        )
    said = {key: held[key] for key in (KEY, DIGEST) if key in held}
    return table.replace_schema_metadata(None), said


def _metadata(held: bytes, where: str) -> dict[str, Any]:
    try:
        metadata = json.loads(held)
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{where}: its metadata is no JSON: {_line(error)}") from error
    if not isinstance(metadata, dict):
        raise GraphError(f"{where}: its metadata is no JSON object")
    return metadata


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
