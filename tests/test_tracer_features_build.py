"""A feature store against a plain pass in float64, its laws, and builds that were interrupted."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replacement_models import ReadPoint, ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import host_of
from replacement_models.text.packing import FILL, Packed, pack
from tests.random_models import VOCABULARY, language_model, replacement_model
from tracer import ModelError, TraceError
from tracer.features.settings import Settings
from tracer.features.statistics import (
    QUANTILES,
    Moments,
    bin_of,
    counts_of_many,
    edges,
)
from tracer.features.store import Feature, FeatureStore
from tracer.features.strongest import (
    NONE,
    UNWANTED,
    by_lot,
    by_strength,
    mixed,
    peaks_of,
    windows_of,
)
from tracer.features.tables import EXAMPLES, layer_file

ROOT = Path(__file__).parents[1]
CONTEXT, WINDOW = 16, 8
SETTINGS = {
    "context": CONTEXT,
    "window": WINDOW,
    "batch": 3,
    "examples": 4,
    "shard": 2,
    "tokens": 3,
    "neighbours": 3,
}
SPECIAL = {0, 1, 2}


def texts(count: int = 40, seed: int = 0) -> list[list[int]]:
    """Random documents, special tokens among their tokens."""
    drawn = np.random.default_rng(seed)
    return [drawn.integers(0, VOCABULARY, size).tolist() for size in drawn.integers(1, 20, count)]


def neural() -> ReplacementModel:
    model = language_model("llama")
    return ReplacementModel.from_huggingface(model, None, neurons(host_of(model)), name="neural")


MODELS = {
    "cross_layer": lambda: replacement_model(),
    "jump_relu": lambda: replacement_model(activation="jump_relu", kind="per_layer"),
    "topk": lambda: replacement_model(activation="topk", kind="per_layer"),
    "residual": lambda: replacement_model("llama", read=ReadPoint.RESIDUAL),
    "some_layers": lambda: replacement_model(at=(0, 2), elsewhere="error"),
    "neurons": neural,
}


@dataclass(frozen=True)
class Plain:
    """Activations of one row after the other, by the recording that traces use."""

    model: ReplacementModel
    packed: Packed

    def layer(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Activations (tokens, features), zero where a token does not count, and which count."""
        found, counts = [], []
        for row in self.packed.tokens.tolist():
            tokens = [token for token in row if token != FILL]
            x = self.model.record(tokens).inputs[layer]
            active = self.model.transcoder.encode(layer, x)[1].numpy()
            fit = np.array([at > 0 and token not in SPECIAL for at, token in enumerate(tokens)])
            rest = np.zeros((CONTEXT - len(tokens), active.shape[1]))
            found.append(np.concatenate([active * fit[:, None], rest]))
            counts.append(np.concatenate([fit, np.zeros(len(rest), dtype=bool)]))
        return np.concatenate(found), np.concatenate(counts)


@dataclass(frozen=True)
class Case:
    model: ReplacementModel
    plain: Plain
    store: FeatureStore


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model, folder = MODELS[request.param](), tmp_path_factory.mktemp("store")
    packed = pack(model, texts(), Settings(context=CONTEXT, window=WINDOW), folder / "rows.arrow")
    store = FeatureStore.build(model, texts(), folder / "store", **SETTINGS)
    return Case(model, Plain(model, packed), store)


def test_every_feature_of_every_dictionary_has_a_row(case: Case):
    assert case.store.layers == case.model.transcoder.present
    for layer in case.store.layers:
        weights = case.model.transcoder.layers[layer].W_enc
        assert case.store.features(layer)["feature"].to_pylist() == [*range(len(weights))]
    with pytest.raises(TraceError, match="has no features"):
        case.store.features(len(case.model.host.blocks))
    with pytest.raises(TraceError, match="feature 9999 is not in layer 0"):
        case.store[0, 9999]


def test_statistics_are_those_of_a_plain_pass(case: Case):
    for layer in case.store.layers:
        active, counts = case.plain.layer(layer)
        assert case.store.about["tokens_counted"] == counts.sum()
        rows = case.store.features(layer).to_pylist()
        for row, values in zip(rows, active.T, strict=True):
            fired = values[values != 0]
            assert row["active"] == len(fired)
            assert row["density"] == pytest.approx(len(fired) / counts.sum())
            assert row["maximum"] == pytest.approx(max(values.max(), 0), rel=1e-6)
            if row["minimum"] is None:
                assert values.min() >= 0
            else:
                assert row["minimum"] == pytest.approx(min(values.min(), 0), rel=1e-6)
            if len(fired):
                assert row["mean"] == pytest.approx(fired.mean(), rel=1e-9)
            else:
                assert row["mean"] is None


def test_quantiles_are_right_to_a_bins_width(case: Case):
    for layer in case.store.layers:
        active, _ = case.plain.layer(layer)
        for row, values in zip(case.store.features(layer).to_pylist(), active.T, strict=True):
            fired = values[values != 0]
            assert len(row["quantiles"]) == (len(QUANTILES) if len(fired) else 0)
            for share, got in zip(QUANTILES, row["quantiles"], strict=len(fired) > 0):
                exact = np.quantile(fired, share, method="inverted_cdf")
                assert abs(got - exact) <= abs(exact) / 4 + 1e-6
            bins = np.bincount(bin_of(torch.tensor(fired[fired > 0])).numpy(), minlength=1)
            assert row["histogram"][: len(bins)] == bins.tolist()


def test_the_strongest_examples_are_exactly_the_strongest_windows(case: Case):
    for layer in case.store.layers:
        active, _ = case.plain.layer(layer)
        by_window = active.reshape(-1, WINDOW, active.shape[1])
        for feature in range(0, active.shape[1], 5):
            known = case.store[layer, feature]
            check_strongest(known, by_window[:, :, feature], "top")
            if known.minimum is not None:
                check_strongest(known, by_window[:, :, feature], "bottom")


def check_strongest(known: Feature, windows: np.ndarray, kind: str) -> None:
    peaks = windows.max(1) if kind == "top" else -windows.min(1)
    expected = sorted(peaks[peaks > 0], reverse=True)[:4]
    found = [one for one in known.examples if one.kind == kind]
    assert [one.rank for one in found] == [*range(len(expected))]
    for one, peak in zip(found, expected, strict=True):
        assert abs(one.activation) == pytest.approx(peak, rel=1e-6)
        assert one.activations[one.position] == pytest.approx(one.activation, rel=2**-8)
        matching = np.abs(windows[:, : len(one.activations)] - one.activations).max(1)
        assert matching.min() <= 2**-8 * np.abs(windows).max()


def test_an_example_of_a_decile_lies_in_it(case: Case):
    for layer in case.store.layers:
        active, _ = case.plain.layer(layer)
        for feature in range(0, active.shape[1], 5):
            known, values = case.store[layer, feature], active[:, feature]
            fired = np.sort(values[values != 0])
            shown = [one for one in known.examples if one.kind == "decile"]
            assert bool(shown) == bool(len(fired))
            bounds = [-np.inf, *known.row["quantiles"][:9], np.inf]
            for one in shown:
                assert bounds[one.rank] <= one.activation <= bounds[one.rank + 1]
                nearest = fired[np.abs(fired - one.activation).argmin()]
                assert one.activation == pytest.approx(nearest, rel=2**-8)
                assert one.activation == one.activations[one.position]
            assert max(np.bincount([one.rank for one in shown], minlength=1)) <= 2


def test_special_tokens_fillings_and_first_positions_never_count(case: Case):
    for layer in case.store.layers:
        for feature in range(0, case.store.features(layer).num_rows, 7):
            for one in case.store[layer, feature].examples:
                silent = [
                    value
                    for text, value in zip(one.texts, one.activations, strict=True)
                    if int(text) in SPECIAL
                ]
                assert not any(silent)
            assert not SPECIAL & {int(text) for text in case.store[layer, feature].fires_on}


def test_virtual_weights_are_decoder_times_encoder(case: Case):
    transcoder, blocks = case.model.transcoder, case.model.host.blocks
    for layer in case.store.layers[1:]:
        norm = blocks[layer].mlp_norm
        for feature in (0, 3):
            read = transcoder.encoder_rows(layer, torch.tensor([feature]))[0]
            if transcoder.read_at(layer) is ReadPoint.NORMED:
                read = norm.centre(read * norm.weight)
            expected = {}
            for below in (at for at in case.store.layers if at < layer):
                rows = transcoder.decoder_rows(below, torch.arange(transcoder.features))
                slots = [t for t in transcoder.targets(below) if t < layer]
                weights = rows[:, : len(slots)].sum(1) @ read
                expected |= {(below, at): w for at, w in enumerate(weights.tolist())}
            strongest = sorted(expected, key=lambda place: -abs(expected[place]))[:3]
            found = case.store[layer, feature].inputs
            assert [(one["layer"], one["feature"]) for one in found] == strongest
            for one in found:
                weight = expected[one["layer"], one["feature"]]
                assert one["weight"] == pytest.approx(weight, rel=1e-5)


def test_outputs_are_inputs_seen_from_the_other_side(case: Case):
    first, *later = case.store.layers
    outputs = case.store[first, 2].outputs
    assert outputs
    assert {one["layer"] for one in outputs} <= {*later}
    for one in outputs:
        seen = case.store[one["layer"], one["feature"]].inputs
        least = min(abs(other["weight"]) for other in seen)
        mine = [o["weight"] for o in seen if (o["layer"], o["feature"]) == (first, 2)]
        assert mine == [one["weight"]] or abs(one["weight"]) <= least


def test_features_that_fire_together_are_counted_on_the_sampled_tokens(case: Case):
    active = {layer: case.plain.layer(layer)[0] != 0 for layer in case.store.layers}
    if max(found.sum(1).max() for found in active.values()) > 42:
        pytest.skip("only the strongest of a token's neurons are kept")
    for layer in case.store.layers:
        own = active[layer][:, 1]
        for one in case.store[layer, 1].together:  # every token is sampled here
            both = own & active[one["layer"]][:, one["feature"]]
            assert one["weight"] == pytest.approx(both.sum() / own.sum(), rel=1e-6)


def test_similar_features_have_the_closest_decoders(case: Case):
    from tracer.features.promoted import written_by

    decoders = {
        layer: written_by(case.model, layer, torch.arange(case.store.features(layer).num_rows))
        for layer in case.store.layers
    }
    unit = {layer: torch.nn.functional.normalize(rows, dim=1) for layer, rows in decoders.items()}
    layer = case.store.layers[-1]
    cosines = {
        (other, at): float(value)
        for other, rows in unit.items()
        for at, value in enumerate(rows @ unit[layer][4])
        if (other, at) != (layer, 4)
    }
    expected = sorted(cosines, key=lambda place: -abs(cosines[place]))[:3]
    assert [(one["layer"], one["feature"]) for one in case.store[layer, 4].similar] == expected


def test_promoted_tokens_stand_out_among_all_features(case: Case):
    from tracer.features.promoted import written_by

    norm, rows = case.model.host.final_norm, case.model.host.unembedding
    everything = torch.cat(
        [
            written_by(case.model, layer, torch.arange(case.store.features(layer).num_rows))
            for layer in case.store.layers
        ]
    )
    logits = (norm.centre(everything) * norm.weight) @ (rows - rows.mean(0)).T
    scores = (logits - logits.mean(0)) / logits.std(0, correction=0)
    known = case.store[case.store.layers[0], 5]
    assert [int(text) for text in known.promoted] == scores[5].topk(3).indices.tolist()
    assert known.promoted_score == pytest.approx(scores[5].topk(3).values.tolist(), rel=1e-4)
    assert [int(text) for text in known.suppressed] == (-scores[5]).topk(3).indices.tolist()


def test_bins_are_where_their_edges_say():
    bounds = edges()
    sizes = torch.tensor(bounds[:-1], dtype=torch.float32)
    assert bin_of(sizes).tolist() == [*range(len(sizes))]
    below = torch.nextafter(sizes[1:], torch.zeros(()))
    assert bin_of(below).tolist() == [*range(len(sizes) - 1)]
    assert bin_of(torch.tensor([1e-30, 1e30])).tolist() == [0, len(sizes) - 1]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.test_tracer_features_build import SETTINGS, MODELS, texts
from tracer.features.running import Running
from tracer.features.store import FeatureStore

torch.set_num_threads(1)  # a child may be forked while no other thread runs
save = Running.save
for commits in map(int, sys.argv[2:]):
    left = commits

    def killed(self, path):
        global left
        save(self, path)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        continue
    Running.save = killed
    FeatureStore.build(MODELS["topk"](), texts(), Path(f"{sys.argv[1]}-{commits}"), **SETTINGS)
"""


def first_row(model: ReplacementModel, path: Path) -> int:
    """Build, and say at which row the pass began."""
    begun: list[int] = []

    def note(done: int, total: int | None, what: str) -> None:
        if total:
            begun.append(done)

    FeatureStore.build(model, texts(), path, **SETTINGS, progress=note)
    return begun[0]


def test_a_build_killed_after_any_commit_ends_with_the_same_bytes(tmp_path: Path):
    model = MODELS["topk"]()
    whole = FeatureStore.build(model, texts(), tmp_path / "whole", **SETTINGS)
    commits = -(-whole.about["rows"] // 6)
    assert commits >= 4
    every = [*range(1, commits + 1)]
    arguments = [str(tmp_path / "killed"), *map(str, every)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for killed_after in every:
        path = tmp_path / f"killed-{killed_after}"
        assert not path.exists()
        with pytest.raises(TraceError, match="is not finished"):
            FeatureStore.load(path)
        assert first_row(model, path) == min(6 * killed_after, whole.about["rows"])
        assert contents(path) == contents(tmp_path / "whole")
        assert not path.with_name(f"{path.name}.building").exists()


def test_how_often_is_committed_changes_nothing(tmp_path: Path):
    model = MODELS["neurons"]()
    for shard in (1, 50):
        FeatureStore.build(model, texts(), tmp_path / str(shard), **{**SETTINGS, "shard": shard})
    one, other = contents(tmp_path / "1"), contents(tmp_path / "50")
    assert one.pop("store.json") != other.pop("store.json")
    assert one == other


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that was interrupted at its second batch."""

    def interrupt(done: int, total: int | None, what: str) -> None:
        if total and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(
            MODELS["topk"](), texts(), tmp_path / "s", **SETTINGS, progress=interrupt
        )
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("model", "corpus", "changed", "said"),
    [
        ("topk", texts(seed=1), {}, "begun with corpus"),
        ("topk", texts(), {"examples": 5}, "begun with examples 4, now it is 5"),
        ("jump_relu", texts(), {}, "begun with dictionary_hash"),
    ],
)
def test_a_build_goes_on_only_with_what_it_was_begun_with(
    begun: Path, model: str, corpus: list[list[int]], changed: dict[str, Any], said: str
):
    with pytest.raises(TraceError, match=said):
        FeatureStore.build(MODELS[model](), corpus, begun, **{**SETTINGS, **changed})
    FeatureStore.build(MODELS["topk"](), texts(), begun, **SETTINGS)
    assert FeatureStore.load(begun).about["tokens_counted"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context": 17}, "context is 17, but the model reads at most 16"),
        ({"window": 3}, "window is 3, expected a divisor of the context of 16"),
        ({"examples": 0}, "examples is 0, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_and_leave_nothing(
    settings: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(TraceError, match=said):
        FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **{**SETTINGS, **settings})
    with pytest.raises(ModelError, match="holds no token"):
        FeatureStore.build(MODELS["topk"](), [], tmp_path / "s", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_is_never_replaced(tmp_path: Path):
    with pytest.raises(TraceError, match="exists; choose another name"):
        FeatureStore.build(MODELS["topk"](), texts(), tmp_path, **SETTINGS)


def test_a_store_belongs_to_one_dictionary(tmp_path: Path):
    store = FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **SETTINGS)
    store.check(MODELS["topk"]())
    with pytest.raises(TraceError, match="belongs to the dictionary"):
        store.check(MODELS["jump_relu"]())


def test_neurons_are_one_dictionary_in_every_precision():
    from tracer.features.dictionary_hash import dictionary_hash

    def of(dtype: torch.dtype) -> str:
        model = language_model("llama", torch.float32).to(dtype)
        return dictionary_hash(
            ReplacementModel.from_huggingface(model, None, neurons(host_of(model)))
        )

    assert of(torch.float32) == of(torch.float64) == of(torch.bfloat16)


def test_neither_neighbours_nor_partners_are_looked_for_where_none_are_wanted(tmp_path: Path):
    settings = {**SETTINGS, "neighbours": 0, "sampled_tokens": 0}
    store = FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **settings)
    row = store[1, 1].row
    assert [row[name] for name in ("inputs", "outputs", "similar", "together")] == [[]] * 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no feature store"),
        ("{", "cannot be read"),
        ('{"format": "other"}', "is no feature store"),
        ('{"format": "tracer-feature-store", "version": 9}', "of version 9, expected 1"),
    ],
)
def test_what_is_no_store_is_refused(content: str | None, said: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "store.json").write_text(content)
    with pytest.raises(TraceError, match=said):
        FeatureStore.load(tmp_path)


def test_any_parquet_tool_reads_a_store_by_layer(case: Case):
    from pyarrow import dataset

    table = dataset.dataset(case.store.path / EXAMPLES, partitioning="hive").to_table()
    assert {*table["layer"].to_pylist()} == {*case.store.layers}
    assert layer_file(case.store.path, EXAMPLES, case.store.layers[0]).is_file()
    about = json.loads((case.store.path / "store.json").read_text())
    assert about["settings"]["window"] == WINDOW


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_activations_are_counted_as_few_are(signed: bool, dtype: torch.dtype):
    active = torch.randn(700, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    active[:, 1:] *= torch.rand(700, 399, generator=torch.Generator().manual_seed(1)) < 0.05
    active[::9] *= 1e-30
    if not signed:
        active = active.abs()
    few = Moments.empty(400, signed, active.device)
    few.add(active, 7)
    assert torch.equal(few.histogram, counts_of_many(active, few.histogram.shape[1]))
    assert torch.equal(few.histogram.sum(1), (active != 0).sum(0))
    assert torch.equal(few.total, active.double().sum(0))
    crowded = Moments.empty(1, signed, active.device)
    crowded.add(active[:, :1], 7)
    assert torch.equal(crowded.histogram, few.histogram[:1])
    near = {torch.bfloat16: 0.5, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert crowded.total.sub(few.total[:1]).abs() < near


def plain_mixed(x: int) -> int:
    """MurmurHash3's finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_examples_are_drawn_by_the_same_lots_on_every_machine():
    known = {0: 0, 1: 0x514E28B7, 0xFFFFFFFF: 0x81F16F39}  # MurmurHash3 of nothing, by its seed
    assert [plain_mixed(one) for one in known] == list(known.values())
    assert mixed(torch.tensor(list(known))).tolist() == list(known.values())
    windows, fires = (0, 5, 70_000), ((1.0, 0.0), (0.5, -2.0), (3.0, 1.0))
    found = by_lot(torch.tensor(fires), torch.tensor(windows), layer=3)
    for feature, window in itertools.product(range(2), range(3)):
        seed = (windows[window] * 0x9E3779B1 + feature) * 0x85EBCA77 + 3 * 0xC2B2AE3D
        lot = plain_mixed(seed & 0xFFFFFFFF) >> 1
        key = lot << 32 | (0xFFFFFFFF - windows[window])
        assert found[feature, window] == (key if fires[window][feature] else UNWANTED)


def test_keys_hold_the_peak_and_the_window_and_earlier_windows_rank_higher():
    windows = torch.tensor([4, 9, 11])
    keys = by_strength(torch.tensor([[1.5], [1.5], [-2.0]]), windows)
    assert peaks_of(keys).tolist() == [[1.5, 1.5, 0.0]]
    assert windows_of(keys[:, :2]).tolist() == [[4, 9]]
    assert keys[0, 0] > keys[0, 1] > NONE > keys[0, 2]
    assert windows_of(torch.tensor([NONE])).tolist() == [NONE]
