"""Shards of a dataset on disk: written a file at a time, prompts last, and read.

A prompt counts as done once its row stands in `prompts`: whoever is killed on the way leaves, at
most, nodes and edges of prompts that have no row, which nobody reads and the next run replaces.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import parquet

from graphs.collections.columns import (
    EDGES,
    FAILED,
    KEY,
    NODES,
    PROMPTS,
    STEERING,
    TIME_COLUMNS,
    TIMES,
    shard_file,
)
from graphs.collections.rows import Rows
from graphs.exchange.files import writing
from graphs.schema import GraphError

ROW_GROUP = 1 << 15
"""Rows that are read together where only one prompt is wanted."""


def write(folder: Path, shard: int, rows: Rows, schemas: Mapping[str, pa.Schema]) -> None:
    """Write a shard, or write it anew with more prompts: the same bytes for the same rows.

    Args:
        folder: of the dataset.
        shard: its number.
        rows: of its prompts, in order.
        schemas: columns of every part.

    Raises:
        GraphError: the place cannot be written, or the disk is full.
    """
    parts = {NODES: rows.nodes, EDGES: rows.edges, STEERING: rows.steering, PROMPTS: rows.prompts}
    if not rows.steering.num_rows:
        del parts[STEERING]
    for name, held in parts.items():
        write_part(shard_file(folder, name, shard), held.cast(schemas[name]))


def write_part(path: Path, held: pa.Table) -> None:
    """Write one file.

    Raises:
        GraphError: the place cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with writing(path) as partial:
            parquet.write_table(
                held.combine_chunks(),
                partial,
                compression="zstd",
                row_group_size=ROW_GROUP,
                write_page_checksum=True,
            )
    except OSError as error:
        raise GraphError(f"cannot write {path}: {error.strerror or error}") from error


def read(
    folder: Path, shard: int, schemas: Mapping[str, pa.Schema], prompt: int | None = None
) -> Rows | None:
    """Rows of the prompts of a shard that are done.

    Args:
        folder: of the dataset.
        shard: its number.
        schemas: columns of every part.
        prompt: the one prompt that is wanted; None: all.

    Returns:
        The rows; None where none is done.

    Raises:
        GraphError: a file is missing, torn or none of ours.
    """
    prompts = _read(folder, PROMPTS, shard, schemas, prompt)
    if prompts is None:
        return None
    found = []
    for part in (NODES, EDGES, STEERING):
        held = _read(folder, part, shard, schemas, prompt)
        if held is None and part != STEERING:
            place = shard_file(folder, part, shard)
            raise GraphError(f"{place} is missing: remove {folder / PROMPTS / place.name} and "
                             "trace its prompts again")  # fmt: skip
        held = schemas[part].empty_table() if held is None else held
        found.append(held.filter(pc.is_in(held[KEY[0]], value_set=prompts[KEY[0]])))
    return Rows(prompts, *found)


def forget_failed(folder: Path, shard: int, schemas: Mapping[str, pa.Schema]) -> int:
    """Take the rows of failed prompts out of a shard: they count as not done.

    Returns:
        How many.

    Raises:
        GraphError: a file is torn or none of ours, or cannot be written.
    """
    held = _read(folder, PROMPTS, shard, schemas, None)
    if held is None:
        return 0
    kept = held.filter(pc.not_equal(held["status"], FAILED))
    if kept.num_rows < held.num_rows:
        write_part(shard_file(folder, PROMPTS, shard), kept)
    return int(held.num_rows - kept.num_rows)


def count(folder: Path, shard: int) -> int:
    """How many prompts of a shard are done.

    Raises:
        GraphError: the file is torn or none of ours.
    """
    path = shard_file(folder, PROMPTS, shard)
    try:
        return int(parquet.read_metadata(path).num_rows)
    except FileNotFoundError:
        return 0
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GraphError(_torn(path, error)) from error


def finished(folder: Path) -> list[int]:
    """Shards with prompts that are done.

    Returns:
        Their numbers, in order.
    """
    names = (path.stem for path in (folder / PROMPTS).glob("shard-*.parquet"))
    numbers = (name.removeprefix("shard-") for name in names)
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())


def table(folder: Path, part: str, schema: pa.Schema) -> pads.Dataset:
    """One part of all shards.

    Returns:
        A dataset of pyarrow; without rows where nothing is done yet.
    """
    files = [str(shard_file(folder, part, shard)) for shard in finished(folder)]
    if not files:
        return pads.dataset(schema.empty_table())
    return pads.dataset(files, schema=schema, format="parquet")


def _read(
    folder: Path, part: str, shard: int, schemas: Mapping[str, pa.Schema], prompt: int | None
) -> pa.Table | None:
    path = shard_file(folder, part, shard)
    filters = None if prompt is None else [(KEY[0], "=", prompt)]
    try:
        found = parquet.read_table(
            path, schema=schemas[part], filters=filters, page_checksum_verification=True
        )
        found.validate(full=True)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GraphError(_torn(path, error)) from error
    return found


def _torn(path: Path, error: Exception) -> str:
    return f"{path} is torn or none of ours: {' '.join(str(error).split()):.200}"


def read_times(folder: Path, shard: int) -> dict[int, tuple[float, float]]:
    """How long prompts took.

    Returns:
        Number of the prompt -> seconds, and seconds of processors; nothing where it is not known.
    """
    try:
        held = parquet.read_table(shard_file(folder, TIMES, shard))
        columns = (held[name].to_pylist() for name in TIME_COLUMNS)
        return {prompt: (wall, cpu) for prompt, wall, cpu in zip(*columns, strict=True)}
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}
