"""The tables of a feature store: what stands in which column, and how it is written.

    features/layer=3/features.parquet    one row a feature
    examples/layer=3/examples.parquet    one row an example
    windows.parquet                      one row a piece of text that an example shows
    store.json                           what it was made of

Any Parquet tool reads them, and takes the layer from the folder's name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from pyarrow import parquet

if TYPE_CHECKING:
    from tracer.features.choose import Examples

FEATURES, EXAMPLES, WINDOWS, ABOUT = "features", "examples", "windows.parquet", "store.json"
NAME, VERSION = "tracer-feature-store", 1
WORDS = pa.dictionary(pa.int32(), pa.string())
PLACES = pa.list_(
    pa.struct([("layer", pa.int32()), ("feature", pa.int32()), ("weight", pa.float32())])
)
"""Other features, the closest first."""
FEATURE_COLUMNS = pa.schema(
    [
        ("feature", pa.int32()),
        ("label", pa.string()),  # a name beside the dictionary, null where it has none
        ("active", pa.int64()),  # counted tokens at which it is not zero
        ("density", pa.float64()),  # their share of all counted tokens
        ("mean", pa.float64()),  # activation where it is active; null if it never is
        ("maximum", pa.float32()),
        ("minimum", pa.float32()),  # null where activations cannot be negative
        ("quantiles", pa.list_(pa.float32())),  # at the shares named in store.json
        ("histogram", pa.list_(pa.int64())),  # tokens by bins, whose edges store.json names
        ("fires_on", pa.list_(pa.string())),  # tokens that hold most of its activation
        ("fires_on_share", pa.list_(pa.float32())),  # of the sum over windows drawn at random
        ("promoted", pa.list_(pa.string())),
        ("promoted_score", pa.list_(pa.float32())),  # unembedded.py
        ("suppressed", pa.list_(pa.string())),
        ("suppressed_score", pa.list_(pa.float32())),
        ("promoted_later", pa.list_(pa.string())),  # through the Jacobian lens; null without one
        ("promoted_later_score", pa.list_(pa.float32())),
        ("suppressed_later", pa.list_(pa.string())),
        ("suppressed_later_score", pa.list_(pa.float32())),
        ("x", pa.float32()),  # geometry.py
        ("y", pa.float32()),
        ("inputs", PLACES),  # weight: virtual weight
        ("outputs", PLACES),
        ("similar", PLACES),  # weight: cosine of decoders
        ("together", PLACES),  # weight: share of its sampled tokens at which the other fires too
    ]
)
EXAMPLE_COLUMNS = pa.schema(
    [
        ("feature", pa.int32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),  # top, bottom or decile
        ("rank", pa.int16()),
        ("window", pa.int64()),
        ("position", pa.int32()),
        ("activation", pa.float32()),
        ("activations", pa.list_(pa.float32())),
    ]
)
WINDOW_COLUMNS = pa.schema(
    [
        ("window", pa.int64()),
        ("row", pa.int64()),
        ("start", pa.int32()),  # in the row
        ("tokens", pa.list_(pa.int32())),
        ("texts", pa.list_(pa.string())),
    ]
)
ROW_GROUP = 1 << 12
"""Examples, or windows, that are read together where only some are wanted."""


def lists(values: Any, lengths: Int[np.ndarray, " rows"], kind: pa.DataType) -> pa.ListArray:
    """A column of lists, from all their values one after the other and the length of each."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind.value_type), kind)


def even(values: Float[np.ndarray, "rows width"], kind: pa.DataType) -> pa.ListArray:
    """A column of lists of one length."""
    return lists(values.ravel(), np.full(len(values), values.shape[1]), kind)


def places(
    layer: Int[np.ndarray, " all"],
    feature: Int[np.ndarray, " all"],
    weight: Float[np.ndarray, " all"],
    lengths: Int[np.ndarray, " rows"],
) -> pa.ListArray:
    """A column of other features."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    item = PLACES.value_type
    columns = (
        pa.array(column, field.type)
        for column, field in zip((layer, feature, weight), item, strict=True)
    )
    values = pa.StructArray.from_arrays(list(columns), fields=list(item))
    return pa.ListArray.from_arrays(pa.array(offsets), values, PLACES)


def example_table(found: "Examples") -> pa.Table:
    """One row an example."""
    names = [name for name in EXAMPLE_COLUMNS.names if name != "activations"]
    columns = {
        name: pa.array(getattr(found, name), pa.string() if name == "kind" else None)
        for name in names
    }
    columns["kind"] = columns["kind"].dictionary_encode()
    kind = EXAMPLE_COLUMNS.field("activations").type
    columns["activations"] = even(found.activations, kind)
    return pa.table(columns).select(EXAMPLE_COLUMNS.names).cast(EXAMPLE_COLUMNS)


def window_table(
    numbers: Int[np.ndarray, " windows"],
    tokens: Int[np.ndarray, "windows window"],
    context: int,
    text_of: Sequence[str],
) -> pa.Table:
    """One row a window.

    Args:
        numbers: of the windows.
        tokens: their ids, negative where there is none.
        context: tokens a row.
        text_of: text of every id.
    """
    start, there = numbers * tokens.shape[1], tokens >= 0
    ids = tokens[there]
    texts = np.asarray(text_of, dtype=object)[ids]
    lengths = there.sum(1)
    columns = [
        pa.array(numbers),
        pa.array(start // context),
        pa.array(start % context, pa.int32()),
        lists(ids, lengths, WINDOW_COLUMNS.field("tokens").type),
        lists(texts, lengths, WINDOW_COLUMNS.field("texts").type),
    ]
    return pa.Table.from_arrays(columns, schema=WINDOW_COLUMNS)


def write(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet, the same bytes for the same table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)


def layer_file(store: Path, part: str, layer: int) -> Path:
    """Where the features or the examples of a layer stand."""
    return store / part / f"layer={layer}" / f"{part}.parquet"
