"""Files of prompts: text, a prompt a line; JSONL; CSV; Parquet.

A line that cannot be read is a prompt with a reason; a file that is not what its name says is
refused whole. Nothing is guessed: JSONL, CSV and Parquet have a key or column `prompt` (or
`tokens`, ids), may have `target` and `minus` or `targets`, and all else is the caller's own.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import parquet

from tracer.datasets.prompts import LONGEST, Prompt, checked, one_line, prompt_of, refused
from tracer.errors import TraceError

BATCH = 1 << 12
"""Rows of Parquet read at once."""
UNREAD = "\0"
"""Begins what stands for a line of CSV that cannot be read."""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a file.

    Args:
        path: .jsonl (.ndjson), .csv (.tsv), .parquet; anything else is text, a prompt a line.

    Returns:
        One prompt a line, or row, that is not blank; those that cannot be read say why.

    Raises:
        TraceError: the file cannot be read, is not what its name says, or holds no prompt.
    """
    file = Path(path)
    reader = READERS.get(file.suffix.lower(), _text)
    try:
        found = list(reader(file))
    except OSError as error:
        raise TraceError(f"{file}: cannot be read ({error.strerror or error})") from error
    return checked(found, str(file))


def _text(file: Path) -> Iterator[Prompt]:
    for number, line in _lines(file):
        if isinstance(line, Prompt):
            yield line
        elif line.strip():
            yield _at(prompt_of(line), number)


def _json_lines(file: Path) -> Iterator[Prompt]:
    for number, line in _lines(file):
        if isinstance(line, Prompt):
            yield line
        elif line.strip():
            yield _at(_parsed(line), number)


def _parsed(line: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return refused(f"is no JSON ({error}); expected one JSON object a line")
    return prompt_of(value)


def _csv(file: Path) -> Iterator[Prompt]:
    """Rows as mappings; what is empty is not there."""
    rows = csv.reader(_csv_lines(file), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    try:
        names = next(rows)
    except (StopIteration, csv.Error) as error:
        raise TraceError(f"{file}: has no line with names of columns") from error
    if "prompt" not in names or len(set(names)) < len(names):
        raise TraceError(
            f"{file}: has the columns {one_line(', '.join(names)):.80}, expected names that differ,"
            " one of them prompt"
        )
    while True:
        begin = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _at(refused(f"is no CSV ({error})"), begin)
            continue
        if cells:
            yield _at(_row(names, cells), begin)


def _row(names: list[str], cells: list[str]) -> Prompt:
    if cells[0].startswith(UNREAD):
        return refused(",".join(cells).removeprefix(UNREAD))
    if len(cells) != len(names):
        return refused(f"has {len(cells)} cells, expected {len(names)}")
    value = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    return prompt_of({"prompt": "", **value})


def _csv_lines(file: Path) -> Iterator[str]:
    """Lines with their ends; in the place of one that cannot be read, the reason."""
    for number, line in _lines(file):
        if isinstance(line, Prompt):
            yield f"{UNREAD}{str(line.wrong).removeprefix(f'line {number}: ')}\n"
        else:
            yield f"{line}\n"


def _lines(file: Path) -> Iterator[tuple[int, str | Prompt]]:
    """Lines with their numbers from 1, without their ends; what cannot be read, with its reason."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST):
            number += 1
            if len(line) == LONGEST and not line.endswith(b"\n"):
                _skip_line(stream)
                yield number, _at(refused(f"has more than {LONGEST} bytes"), number)
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, _at(refused(f"is not UTF-8 ({error.reason})"), number)
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")


def _skip_line(stream: IO[bytes]) -> None:
    while (rest := stream.readline(LONGEST)) and not rest.endswith(b"\n"):
        pass


def _parquet(file: Path) -> Iterator[Prompt]:
    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if not {"prompt", "tokens"} & {*names} or len(set(names)) < len(names):
                raise TraceError(
                    f"{file}: has the columns {one_line(', '.join(names)):.80}, expected names "
                    "that differ, one of them prompt or tokens"
                )
            number = 0
            for batch in opened.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    given = {name: value for name, value in row.items() if value is not None}
                    yield _at(prompt_of(given), number, "row")
    except TraceError:
        raise
    except (pa.ArrowException, ValueError) as error:
        raise TraceError(f"{file}: cannot be read as Parquet ({one_line(error)})") from error


def _at(prompt: Prompt, number: int, what: str = "line") -> Prompt:
    """With the place of what is wrong."""
    if prompt.wrong is None:
        return prompt
    return replace(prompt, wrong=f"{what} {number}: {prompt.wrong}")


READERS: dict[str, Callable[[Path], Iterator[Prompt]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""By suffix; any other file is text."""
