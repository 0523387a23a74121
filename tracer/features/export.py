"""A feature store as the files that Neuronpedia and circuit-tracer read.

Neuronpedia: one `{index}.json` a feature, index Cantor's number of layer and feature; self-hosted,
layer and five digits, as graphs for it number features.

circuit-tracer: `index.json.gz`, a list with an entry a layer, `{"filename", "offsets"}`, and a
file a layer. Feature f of it stands in the bytes from offsets[f] to offsets[f + 1]: the length
of what follows as four bytes, the lowest first, and zlib's compression of its JSON. Its front end
asks for that range only (frontend/assets/feature_examples/init-feature-examples.js upstream).
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from graphs.exchange.attribution_json import PADDED
from graphs.exchange.files import writing
from tracer.errors import TraceError
from tracer.features.feature import Feature
from tracer.features.feature_json import feature_json

FORMATS = ("neuronpedia", "circuit-tracer", "self-hosted")
INDEX = "index.json.gz"
Progress = Callable[[int, int], None]
"""Called with features written and in all."""


@dataclass(frozen=True)
class Exported:
    """What of a store is written."""

    about: Mapping[str, Any]
    layers: Sequence[int]
    every: Callable[[int], Iterator[Feature]]
    """All features of a layer in order."""
    chosen: Sequence[Feature] | None
    """These alone; None: all."""

    def features(self) -> Iterator[Feature]:
        """All that are written, by layer."""
        if self.chosen is not None:
            return iter(self.chosen)
        return chain.from_iterable(map(self.every, self.layers))

    @property
    def count(self) -> int:
        """How many they are."""
        every: int = sum(self.about["features"].values())
        return every if self.chosen is None else len(self.chosen)


def export(wanted: Exported, path: Path, to: str, progress: Progress | None) -> None:
    """Write a folder, whole or not at all; see `FeatureStore.export`."""
    if to not in FORMATS:
        raise TraceError(f"export to {to!r} is not known, expected one of {', '.join(FORMATS)}")
    if wanted.chosen is not None and to == FORMATS[1]:
        raise TraceError(f"{to} reads whole layers; leave features out, or export to {FORMATS[0]}")
    if path.exists():
        raise TraceError(f"{path}: exists; choose another name, or remove it first")
    most = max(wanted.about["features"].values())
    if to == FORMATS[2] and most > PADDED:
        raise TraceError(
            f"{to} numbers {PADDED} features a layer at most, {path} would hold {most}"
        )
    written = {FORMATS[0]: _json_files, FORMATS[1]: _binary_files, FORMATS[2]: _padded_files}[to]
    with writing(path) as partial:
        partial.mkdir()
        for done, _ in enumerate(written(wanted, partial), start=1):
            if progress is not None:
                progress(done, wanted.count)


def _json_files(wanted: Exported, folder: Path) -> Iterator[None]:
    for feature in wanted.features():
        value = feature_json(feature, wanted.about)
        (folder / f"{value['index']}.json").write_bytes(_bytes(value))
        yield


def _padded_files(wanted: Exported, folder: Path) -> Iterator[None]:
    for feature in wanted.features():
        number = feature.layer * PADDED + feature.feature
        value = feature_json(feature, wanted.about) | {"index": number}
        (folder / f"{number}.json").write_bytes(_bytes(value))
        yield


def _binary_files(wanted: Exported, folder: Path) -> Iterator[None]:
    index: list[dict[str, Any]] = []
    for layer in range(max(wanted.layers) + 1):
        index.append({"filename": "", "offsets": []})
        if layer not in wanted.layers:
            continue
        index[-1] = {"filename": f"layer_{layer}.bin", "offsets": [0]}
        with (folder / index[-1]["filename"]).open("wb") as file:
            for feature in wanted.every(layer):
                file.write(_record(feature_json(feature, wanted.about)))
                index[-1]["offsets"].append(file.tell())
                yield
    (folder / INDEX).write_bytes(gzip.compress(_bytes(index), mtime=0))


def _record(value: dict[str, Any]) -> bytes:
    packed = zlib.compress(_bytes(value))
    return struct.pack("<I", len(packed)) + packed


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
