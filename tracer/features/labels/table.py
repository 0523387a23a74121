"""Labels in a file of the store: one row a feature, `labels.parquet`, readable by any Parquet tool.

Its schema's metadata says what the labels were chosen and scored on, and holds the classes of words
that they name, so that every predicate can be tested again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from graphs.exchange.files import writing
from tracer.errors import TraceError

FILE = "labels.parquet"
NAME, VERSION = "tracer-feature-labels", 1
ABOUT = b"labels"
"""Key of the schema's metadata."""
COLUMNS = pa.schema(
    [
        ("layer", pa.int32()),
        ("feature", pa.int32()),
        ("label", pa.string()),  # what is claimed, in words; null where nothing is
        ("source", pa.string()),  # predicate, or endpoint for free text
        ("predicate", pa.string()),  # JSON; null for free text
        ("shown", pa.bool_()),  # F1 of a half or more, better than both baselines, not contradicted
        ("above", pa.float32()),  # activation above which the feature counts as firing
        ("f1", pa.float32()),  # on text held out; null where the feature does not fire there
        ("precision", pa.float32()),
        ("recall", pa.float32()),
        ("fires", pa.int64()),  # tokens of the text held out
        ("chosen_f1", pa.float32()),  # on the text that it was chosen on
        ("outside_f1", pa.float32()),  # on text from elsewhere
        ("always_f1", pa.float32()),  # of the claim that it always fires
        ("list_f1", pa.float32()),  # of the list of the tokens that it fires on most
        ("fuzzing", pa.float32()),  # free text: share of highlights judged right
        ("contradicted", pa.list_(pa.string())),  # alternatives that the text held out contradicts
        ("mixed", pa.float32()),  # effective number of unrelated kinds of context
        ("polysemantic", pa.bool_()),
        ("example", pa.string()),  # its strongest example, the token meant in brackets
    ]
)
EXAMPLE, TOKEN, USER, PREDICATE, ENDPOINT = "example", "token", "user", "predicate", "endpoint"
"""Where the words that stand for a feature come from."""


@dataclass(frozen=True)
class Labels:
    """The labels of a dictionary's features, by layer and number."""

    rows: Mapping[tuple[int, int], Mapping[str, Any]]
    """By column."""
    about: Mapping[str, Any]
    """Dictionary, texts and classes."""

    @classmethod
    def read(cls, store: Path) -> "Labels":
        """Labels of a store; none where it has no file of them.

        Raises:
            TraceError: the file cannot be read, or is of a later version.
        """
        path = store / FILE
        if not path.is_file():
            return cls({}, {})
        try:
            # Not `read_table`, which imports pyarrow's datasets.
            with parquet.ParquetFile(path) as file:
                table = file.read()
            about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
            table.validate(full=True)
            rows = {(row["layer"], row["feature"]): row for row in table.to_pylist()}
        except (OSError, ValueError, LookupError, RecursionError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise TraceError(f"{path}: cannot be read ({reason}); label the store anew") from error
        if not isinstance(about, dict) or set(table.column_names) != set(COLUMNS.names):
            raise TraceError(f"{path}: has other columns than labels have; label the store anew")
        if (about.get("format"), about.get("version")) != (NAME, VERSION):
            raise TraceError(
                f"{path}: expected {NAME} of version {VERSION}, got {about.get('format')} of "
                f"{about.get('version')}; label the store anew"
            )
        return cls(rows, about)


def write(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], store: Path) -> None:
    """Write all labels, whole or not at all; the same bytes for the same labels."""
    said = json.dumps({"format": NAME, "version": VERSION, **about}, ensure_ascii=False)
    schema = COLUMNS.with_metadata({ABOUT: said.encode()})
    with writing(store / FILE) as partial:
        parquet.write_table(pa.Table.from_pylist([*rows], schema), partial, compression="zstd")
