"""Documents of a corpus, one after the other: nothing of it is held whole.

A corpus is a file, a folder of files in the order of their names, a data set of the hub (`hf:...`,
where the package `datasets` is installed), or any iterable of texts and lists of token ids.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from replacement_models.errors import ModelError

Document = str | Sequence[int]
"""Text, or token ids taken as they stand."""
Corpus = str | Path | Iterable[Document]
LONGEST = 1 << 20
"""Characters of a plain text file that are one document; a longer one is several."""
HUB = "hf:"
FIELD = "text"
"""What holds the text in JSONL and Parquet, unless the caller says otherwise."""


def documents(corpus: Corpus, field: str = FIELD, lines: bool = False) -> Iterator[Document]:
    """Every document of a corpus, always in the same order.

    Args:
        corpus: a file (.jsonl, .parquet, anything else is plain text: one document, several where
            it is long), a folder of .txt, .md, .jsonl and .parquet files at any depth,
            `hf:owner/name[:config][@split]`, or documents themselves.
        field: column of Parquet, key of JSONL, that holds the text, or a list of token ids.
        lines: every line of plain text is a document of its own.

    Returns:
        Texts, or lists of token ids; empty ones are left out.

    Raises:
        ModelError: nothing is there, it is no UTF-8, or it is not what its name says.
    """
    if isinstance(corpus, str) and corpus.startswith(HUB):
        found = _hub(corpus.removeprefix(HUB), field)
    elif isinstance(corpus, str | Path):
        found = _files(Path(corpus), field, lines)
    else:
        found = iter(corpus)
    return (document for document in found if len(document))


def _files(path: Path, field: str, lines: bool) -> Iterator[Document]:
    if not path.exists():
        raise ModelError(
            f"{path}: there is no such corpus; give a file or folder of text, JSONL or Parquet, or "
            f"{HUB}owner/name for a data set of the hub"
        )
    for file in _inside(path) if path.is_dir() else [path]:
        read = READERS.get(file.suffix.lower())
        yield from _plain(file, lines) if read is None else read(file, field)


def _inside(folder: Path) -> list[Path]:
    """Files of a folder that can be read, by name; hidden ones are left out."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (*PLAIN, *READERS)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ModelError(
            f"{folder}: holds no corpus; expected files in {', '.join((*PLAIN, *READERS))}"
        )
    return found


def _plain(file: Path, lines: bool) -> Iterator[str]:
    """One document, cut at ends of lines where it is long; or one a line."""
    if lines:
        yield from (text for _, line in _lines(file) if (text := line.strip()))
        return
    held, size = [], 0
    for _, line in _lines(file):
        held.append(line)
        size += len(line)
        if size >= LONGEST:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, ends of lines kept."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise ModelError(
                    f"{file}: line {number} is not UTF-8 ({error.reason} at byte {error.start}); "
                    "expected text in UTF-8: convert the file, or leave it out"
                ) from error


def _json_lines(file: Path, field: str) -> Iterator[Document]:
    for number, line in _lines(file):
        if line.strip():
            yield _document(
                _parsed(line, f"{file}: line {number}"), field, f"{file}: line {number}"
            )


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{where} is no JSON ({error}); expected one JSON object a line"
        ) from error


def _document(value: Any, field: str, where: str) -> Document:
    """The text or ids of one line or row."""
    found = value.get(field) if isinstance(value, dict) else value
    if isinstance(found, str):
        return found
    if isinstance(found, list) and all(type(one) is int for one in found):
        return found
    known = f"; it has {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
    raise ModelError(
        f"{where}: expected text or a list of token ids in {field!r}, got {found!r:.60}{known}"
    )


def _parquet(file: Path, field: str) -> Iterator[Document]:
    try:
        with parquet.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                known = ", ".join(map(repr, table.schema_arrow.names[:8]))
                raise ModelError(f"{file}: has no column {field!r}; it has {known}")
            for batch in table.iter_batches(columns=[field], batch_size=1024):
                values = (value for value in batch.column(0).to_pylist() if value is not None)
                yield from (_document(value, field, str(file)) for value in values)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file}: cannot be read as Parquet ({reason})") from error


def _hub(address: str, field: str) -> Iterator[Document]:
    """A data set of the hub, streamed: it is downloaded as it is read."""
    try:
        from datasets import load_dataset  # type: ignore[import-not-found]
    except ImportError as error:
        raise ModelError(
            f"{HUB}{address}: data sets of the hub need the package datasets: pip install datasets"
        ) from error
    name, _, split = address.partition("@")
    owner, _, config = name.partition(":")
    try:
        rows = load_dataset(owner, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows):
            yield _document(row, field, f"{HUB}{address}: row {number}")
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{HUB}{address}: cannot be read ({reason})") from error


PLAIN = (".txt", ".md")
READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""By suffix; any other file that is named is read as plain text."""
