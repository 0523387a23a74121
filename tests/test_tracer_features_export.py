"""Exports: Neuronpedia's schema, and circuit-tracer's files read as its front end reads them."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.exchange.attribution_json import _feature, _numbering
from tests.test_tracer_features_build import CONTEXT, MODELS, SETTINGS, contents, texts
from tracer import FeatureStore, TraceError
from tracer.features.bins import Histogram
from tracer.features.feature_json import BARS, paired

SCHEMA = json.loads(
    (Path(__file__).parent / "data" / "feature-details-schema.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module", params=["some_layers", "neurons"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("store")
    return FeatureStore.build(MODELS[request.param](), texts(), folder / "s", **SETTINGS)


def check(value: Any, schema: dict[str, Any]) -> None:
    """Hold a value against the part of JSON Schema that Neuronpedia's uses; nothing else is in."""
    known = {"$schema", "title", "type", "properties", "items", "required"}
    assert {*schema} <= known
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float)}
    assert isinstance(value, kinds[schema["type"]]), (value, schema)
    assert not isinstance(value, bool)
    for name in schema.get("required", []):
        assert name in value
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            check(value[name], inner)
    for one in value if schema["type"] == "array" else []:
        check(one, schema["items"])


def unpaired(number: int) -> tuple[int, int]:
    """`util.cantorUnpair` of circuit-tracer's front end."""
    w = int(((8 * number + 1) ** 0.5 - 1) // 2)
    y = number - (w * w + w) // 2
    return w - y, y


def ranged(folder: Path, number: int) -> dict[str, Any]:
    """`loadFeatureFromBinary`: the bytes of one range, of a file that may end before it does."""
    layer, feature = unpaired(number)
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))
    offsets, filename = index[layer]["offsets"], index[layer]["filename"]
    assert filename
    start, end = offsets[feature], offsets[feature + 1]
    with (folder / filename).open("rb") as file:  # Range: bytes=start-end, both included
        file.seek(start)
        got = file.read(end - start + 1)
    length = got[0] | got[1] << 8 | got[2] << 16 | got[3] << 24
    return json.loads(zlib.decompress(got[4 : 4 + length]))


def check_feature(store: FeatureStore, value: dict[str, Any]) -> None:
    """What a file says is what the store says."""
    known = store[unpaired(value["index"])]
    assert (value["x_layer"], value["x_feature"]) == (known.layer, known.feature)
    assert value["top_logits"] == known.promoted
    assert value["bottom_logits"] == known.suppressed
    assert value["activation_frequency"] == known.density
    assert value["act_max"] == known.maximum
    shown = [one for group in value["examples_quantiles"] for one in group["examples"]]
    assert len(shown) == len(known.examples)
    for one in shown:
        assert len(one["tokens"]) == len(one["tokens_acts_list"]) <= CONTEXT
        assert not {"0", "1", "2"} & {*one["tokens"]}  # special tokens end a document
    tops = [one for one in known.examples if one.kind == "top"]
    if tops:
        first = value["examples_quantiles"][0]["examples"][0]
        at = first["train_token_ind"]
        assert first["tokens"][at] == tops[0].texts[tops[0].position]
        assert first["tokens_acts_list"][at] == pytest.approx(known.maximum, rel=2**-8)
    if known.active:
        assert len(value["histogram"]) == BARS
        assert sum(value["histogram"]) == pytest.approx(known.active)
        quantiles = np.array(value["quantile_values"])
        assert len(quantiles) == 100
        assert (np.diff(quantiles) >= 0).all()
        assert value["act_min"] <= quantiles[0]
        assert quantiles[-1] <= value["act_max"]
        tenths = np.array(known.quantiles[:9])
        assert np.abs(quantiles[9:90:10] - tenths).max() <= np.abs(tenths).max() / 4 + 1e-6
    else:
        assert value["histogram"] == value["quantile_values"] == []


def test_every_feature_is_a_file_that_fits_neuronpedias_schema(store: FeatureStore, tmp_path: Path):
    told: list[tuple[int, int]] = []
    store.export(tmp_path / "json", progress=lambda done, total: told.append((done, total)))
    expected = {
        f"{paired(layer, feature)}.json"
        for layer in store.layers
        for feature in range(store.features(layer).num_rows)
    }
    found = [*(tmp_path / "json").iterdir()]
    assert {path.name for path in found} == expected
    assert told[-1] == (len(expected), len(expected))
    for path in found:
        value = json.loads(path.read_text(encoding="utf-8"))
        assert f"{value['index']}.json" == path.name
        check(value, SCHEMA)
        check_feature(store, value)


def test_self_hosted_files_are_named_as_graphs_for_it_number_features(
    store: FeatureStore, tmp_path: Path
):
    store.export(tmp_path / "json", "self-hosted")
    found = {
        path.name: json.loads(path.read_text("utf-8")) for path in (tmp_path / "json").iterdir()
    }
    rows = [
        {"kind": "feature", "layer": layer, "feature": feature}
        for layer in store.layers
        for feature in range(store.features(layer).num_rows)
    ]
    numbers = [_feature(row, _numbering("self-hosted", rows)) for row in rows]
    assert set(found) == {f"{number}.json" for number in numbers}
    for row, number in zip(rows, numbers, strict=True):
        value = found[f"{number}.json"]
        check(value, SCHEMA)
        assert value["index"] == number
        assert (value["x_layer"], value["x_feature"]) == (row["layer"], row["feature"])


def test_circuit_tracers_front_end_finds_every_feature_by_its_range(
    store: FeatureStore, tmp_path: Path
):
    store.export(tmp_path / "features", "circuit-tracer")
    index = json.loads(gzip.decompress((tmp_path / "features" / "index.json.gz").read_bytes()))
    for layer, entry in enumerate(index):
        if layer not in store.layers:
            assert entry == {"filename": "", "offsets": []}
            continue
        count = store.features(layer).num_rows
        assert len(entry["offsets"]) == count + 1
        assert (tmp_path / "features" / entry["filename"]).stat().st_size == entry["offsets"][-1]
        for feature in range(count):
            value = ranged(tmp_path / "features", paired(layer, feature))
            check(value, SCHEMA)
            check_feature(store, value)


def test_an_export_has_the_same_bytes_every_time(store: FeatureStore, tmp_path: Path):
    for name in ("a", "b"):
        store.export(tmp_path / name, "circuit-tracer")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_some_features_alone_are_exported(store: FeatureStore, tmp_path: Path):
    places = [(0, 3), (2, 1)]
    store.export(tmp_path / "some", features=places)
    names = {path.name for path in (tmp_path / "some").iterdir()}
    assert names == {f"{paired(*place)}.json" for place in places}


@pytest.mark.parametrize(
    ("to", "features", "said"),
    [
        ("elsewhere", None, "expected one of neuronpedia, circuit-tracer"),
        ("circuit-tracer", [(0, 1)], "reads whole layers"),
        ("neuronpedia", [(0, 999)], "feature 999 is not in layer 0"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    store: FeatureStore, to: str, features: Any, said: str, tmp_path: Path
):
    with pytest.raises(TraceError, match=said):
        store.export(tmp_path / "x", to, features)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(TraceError, match="exists; choose another name"):
        store.export(tmp_path)


def test_pairs_are_cantors():
    assert [paired(*place) for place in [(0, 0), (1, 0), (0, 1), (2, 0)]] == [0, 1, 2, 3]
    assert all(unpaired(paired(a, b)) == (a, b) for a in range(40) for b in (0, 7, 16_383))


def test_a_histogram_is_spread_evenly_within_its_bins():
    bins = {"lowest_power": 0, "octaves": 2, "parts": 1}  # 1, 2, 4
    counts = Histogram.of([4, 8], bins)
    assert counts.even(1, 4, 3).tolist() == [4, 4, 4]
    assert counts.quantiles(np.array([0.5, 1])).tolist() == [2.5, 4]
    signed = Histogram.of([4, 0, 2, 0], bins)
    assert signed.held().bounds.tolist() == [-2, -1, 1, 2]
    assert signed.held().counts.tolist() == [2, 0, 4]
