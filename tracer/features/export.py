"""A feature store as the files that Neuronpedia and circuit-tracer read.

Neuronpedia: one `{index}.json` a feature, index Cantor's number of layer and feature.

circuit-tracer: `index.json.gz`, a list with an entry a layer, `{"filename", "offsets"}`, and a
file a layer. Feature f of it stands in the bytes from offsets[f] to offsets[f + 1]: the length
of what follows as four bytes, the lowest first, and zlib's compression of its JSON. Its front end
asks for that range only (frontend/assets/feature_examples/init-feature-examples.js upstream).
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.exchange.files import writing
from tracer.errors import TraceError
from tracer.features.feature_json import feature_json

if TYPE_CHECKING:
    from tracer.features.store import Feature, FeatureStore, Place

FORMATS = ("neuronpedia", "circuit-tracer")
INDEX = "index.json.gz"
Progress = Callable[[int, int], None]
"""Called with features written and in all."""


def export(
    store: "FeatureStore",
    path: Path,
    to: str,
    features: "Sequence[Place] | None",
    progress: Progress | None,
) -> None:
    """Write a folder, whole or not at all; see `FeatureStore.export`."""
    if to not in FORMATS:
        raise TraceError(f"export to {to!r} is not known, expected one of {', '.join(FORMATS)}")
    if features is not None and to != FORMATS[0]:
        raise TraceError(f"{to} reads whole layers; leave features out, or export to {FORMATS[0]}")
    if path.exists():
        raise TraceError(f"{path}: exists; choose another name, or remove it first")
    total = store.count if features is None else len(features)
    chosen = None if features is None else [store[place] for place in features]
    with writing(path) as partial:
        partial.mkdir()
        written = _json_files if to == FORMATS[0] else _binary_files
        for done, _ in enumerate(written(store, partial, chosen), start=1):
            if progress is not None:
                progress(done, total)


def _json_files(
    store: "FeatureStore", folder: Path, chosen: "Sequence[Feature] | None"
) -> Iterator[None]:
    layers = (store.every(layer) for layer in store.layers)
    found = (one for layer in layers for one in layer) if chosen is None else iter(chosen)
    for feature in found:
        value = feature_json(feature, store.about)
        (folder / f"{value['index']}.json").write_bytes(_bytes(value))
        yield


def _binary_files(store: "FeatureStore", folder: Path, _: Any) -> Iterator[None]:
    index: list[dict[str, Any]] = []
    for layer in range(max(store.layers) + 1):
        index.append({"filename": "", "offsets": []})
        if layer not in store.layers:
            continue
        index[-1] = {"filename": f"layer_{layer}.bin", "offsets": [0]}
        with (folder / index[-1]["filename"]).open("wb") as file:
            for feature in store.every(layer):
                file.write(_record(feature_json(feature, store.about)))
                index[-1]["offsets"].append(file.tell())
                yield
    packed = gzip.compress(_bytes(index), mtime=0)
    (folder / INDEX).write_bytes(packed)


def _record(value: dict[str, Any]) -> bytes:
    packed = zlib.compress(_bytes(value))
    return struct.pack("<I", len(packed)) + packed


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
