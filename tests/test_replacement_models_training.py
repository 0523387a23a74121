"""Training runs: every kind reaches its L0, files load, runs go on, mistakes are one line."""

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from replacement_models import ModelError, ReplacementModel, load_transcoder
from replacement_models.formats import convert
from replacement_models.replaced import Where, logits_of, replaced
from replacement_models.sites import Stage
from replacement_models.training import memory
from replacement_models.training import train as training
from replacement_models.training.clusters import clusters, seeds
from replacement_models.training.config import TrainConfig
from replacement_models.training.config_file import (
    SECTIONS,
    descriptions,
    read_config,
    template,
    with_changes,
)
from replacement_models.training.divergence import divergence, shared_divergence
from replacement_models.training.fold import folded
from replacement_models.training.journal import FILE, Journal, entries
from replacement_models.training.loop import Loop, schedule
from replacement_models.training.memory import check_memory, planned
from replacement_models.training.ranks import ALONE
from replacement_models.training.scales import Scale
from replacement_models.training.settings import Section
from replacement_models.training.train import DICTIONARY, train
from replacement_models.training.trainee import Trainee
from replacement_models.training.wiring import Wiring
from tests.training_runs import same, settings, trained

ROOT = Path(__file__).parents[1]
TINY = ROOT / "replacement_models" / "tiny"
KINDS: dict[str, dict[str, Any]] = {
    "per_layer": {"kind": "per_layer", "layers": [1]},
    "cross_layer": {"kind": "cross_layer", "layers": [1, 2]},
    "sae": {"kind": "sae", "layers": [1]},
}
ACTIVATIONS = ("jump_relu", "relu", "topk", "batch_topk", "gated")


@lru_cache(maxsize=1)
def loaded(*arguments: Any) -> ReplacementModel:
    """The model, loaded once for all runs."""
    return load_alone(*arguments)


load_alone = ReplacementModel.without_dictionary


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs share one model."""
    monkeypatch.setattr(ReplacementModel, "without_dictionary", staticmethod(loaded))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of one kind share what the model makes of the text."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reaches_its_l0_and_explains(
    kind: str, activation: str, cache: Path, tmp_path: Path
):
    run = trained(
        tmp_path / "run",
        dictionary=KINDS[kind] | {"activation": activation},
        data={"cache": str(cache / kind)},
    )
    for l0, error in zip(run.worth.l0, run.worth.error_weighted, strict=True):
        assert abs(l0 / 4 - 1) <= 0.1
        assert error < 0.75
    loaded = load_transcoder(run.transcoder)
    assert loaded.kind == kind
    assert loaded.present == tuple(KINDS[kind]["layers"])


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("span", {"dictionary": {"kind": "cross_layer", "span": 1, "layers": [0, 1, 2]}}),
        ("tied", {"dictionary": {"kind": "cross_layer", "tied": True, "layers": [0, 1, 2]}}),
        ("skip", {"dictionary": {"skip": True}}),
        ("nested", {"dictionary": {"prefixes": [16, 64]}}),
        ("residual", {"dictionary": {"read": "residual"}}),
        ("dense", {"run": {"sparse_below": 0.0}}),
        ("data", {"start": {"features": "data"}}),
        ("clusters", {"start": {"features": "clusters"}}),
        (
            "random",
            {
                "start": {"features": "random", "decoder": False},
                "optimiser": {"rate": 1e-2},
                "run": {"tokens": 20_480},
            },
        ),
        ("l1", {"loss": {"penalty": "l1"}}),
        ("often", {"loss": {"penalty": "tanh_quad"}}),
        ("penalty", {"loss": {"nudge": 0.0, "gain": 2.0}}),
        ("stream", {"dictionary": {"kind": "sae", "site": "resid_pre"}}),
        ("attention", {"dictionary": {"kind": "sae", "site": "attn_out"}}),
        ("between", {"dictionary": {"kind": "sae", "site": "resid_mid"}}),
    ],
)
def test_every_choice_trains(name: str, sections: dict[str, Any], tmp_path: Path):
    run = trained(tmp_path / name, **sections)
    assert all(abs(l0 / 4 - 1) <= 0.1 for l0 in run.worth.l0)
    assert max(run.worth.error_weighted) < 0.9
    loaded = load_transcoder(run.transcoder)
    site = sections.get("dictionary", {}).get("site")
    assert loaded.layers[1].stage is (None if site is None else Stage[site.upper()])


def test_a_nested_dictionary_reconstructs_with_its_first_features_too(tmp_path: Path):
    def first_alone(run: training.Run) -> float:
        layer = load_transcoder(run.transcoder).layers[1]
        rows = layer.decoder.rows(torch.arange(len(layer.W_enc)))
        return float(rows[:16].norm(dim=(1, 2)).mean() / rows.norm(dim=(1, 2)).mean())

    nested = trained(tmp_path / "nested", dictionary={"prefixes": [16]})
    plain = trained(tmp_path / "plain")
    assert first_alone(nested) > first_alone(plain)


def test_every_layer_may_have_its_own_l0(tmp_path: Path):
    run = trained(tmp_path / "run", dictionary={"l0": [2, 6]})
    assert run.worth.l0 == pytest.approx((2, 6), rel=0.1)


def test_few_held_out_tokens_set_no_thresholds_alone(tmp_path: Path):
    """L0 is right over all of the text; figures are of the few tokens asked for."""
    run = trained(tmp_path / "run", data={"max_tokens": 40_000, "held_out_tokens": 64})
    assert run.worth.held_tokens == 64
    model, wiring = loaded(None, "cpu", "float32"), Wiring.of(run.config.dictionary, 4)
    source = training._source(run.config, model, wiring, run.folder, lambda *_: None)
    batch, dictionary = source.of_rows(source.rows.order), load_transcoder(run.transcoder)
    for at, layer in enumerate((1, 2)):
        fired = dictionary.encode(layer, batch.inputs[at])[1].count_nonzero(1).float().mean()
        assert float(fired) == pytest.approx(4, rel=0.03)
    assert run.worth.l0 != pytest.approx((4, 4), rel=1e-3)


def test_thresholds_stay_as_they_were_trained_where_that_is_asked(tmp_path: Path):
    """Moved or not, the same features at the same weights; L0 is then what training left."""
    short: dict[str, Any] = {"run": {"tokens": 2048}, "loss": {"gain": 0.0, "nudge": 0.0}}
    moved = trained(tmp_path / "moved", **short)
    short["run"] |= {"set_thresholds": False, "drop_below": 200.0}
    stayed = trained(tmp_path / "stayed", **short)
    assert stayed.summary["thresholds_moved"] == [0, 0]
    by = moved.summary["thresholds_moved"]
    assert all(abs(one) > 1e-3 for one in by)
    assert moved.worth.l0 == pytest.approx((4, 4), rel=0.05)
    assert stayed.worth.l0 != pytest.approx((4, 4), rel=0.05)
    wide, narrow = (load_transcoder(run.transcoder) for run in (moved, stayed))
    for at, layer in enumerate((1, 2)):
        rows, thresholds = wide.layers[layer].W_enc, wide.layers[layer].activation.threshold
        some = narrow.layers[layer].W_enc
        match = (some[:, None] == rows).all(2).int().argmax(1)
        assert torch.equal(rows[match], some)
        apart = thresholds[match] - narrow.layers[layer].activation.threshold
        assert apart.sign().unique().tolist() == [math.copysign(1, by[at])]


@pytest.mark.parametrize("start", ["neurons", "clusters", "data", "random"])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_every_layer_may_have_its_own_width(kind: str, start: str, tmp_path: Path):
    run = trained(
        tmp_path / "run",
        dictionary={"kind": kind, "widths": [96, 128], "features": 160},
        start={"features": start},
        loss={"dead_after": 1000, "revive_every": 8},
        run={"tokens": 10_240},
    )
    loaded = load_transcoder(run.transcoder)
    assert [len(layer.W_enc) for layer in loaded.layers] == [0, 96, 128, 0]
    assert all(abs(l0 / 4 - 1) <= 0.1 for l0 in run.worth.l0)
    narrow = planned(run.config, Wiring.of(run.config.dictionary, 4), 128).parameters
    wide = TrainConfig.of(settings(tmp_path, dictionary={"kind": kind, "features": 160}))
    assert narrow < planned(wide, Wiring.of(wide.dictionary, 4), 128).parameters


def test_a_run_goes_on_from_a_finished_dictionary(tmp_path: Path):
    """Other scales and more features: what is taken over still computes what it did."""
    cross: dict[str, Any] = {"kind": "cross_layer", "layers": [1, 2, 3]}
    first = trained(tmp_path / "first", dictionary=cross)
    config = TrainConfig.of(
        settings(
            tmp_path / "second",
            dictionary=cross | {"widths": [160, 128, 128], "features": 160},
            start={"dictionary": str(first.transcoder), "dictionary_layers": [1, 2]},
            run={"tokens": 256},
            optimiser={"rate": 1e-9},
            loss={"nudge": 0.0},
        )
    )
    before, after = load_transcoder(first.transcoder), load_transcoder(train(config).transcoder)
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    for layer in (1, 2):
        hidden = [found.encode(layer, x)[0][:, :128] for found in (before, after)]
        assert torch.allclose(*hidden, atol=1e-4)
        rows = [found.decoder_rows(layer, torch.arange(128)) for found in (before, after)]
        assert torch.allclose(*rows, atol=1e-5)
        assert torch.allclose(before.layers[layer].b_dec, after.layers[layer].b_dec, atol=1e-4)
    assert not torch.equal(before.layers[3].W_enc, after.layers[3].W_enc)


def test_new_features_start_on_what_those_of_a_dictionary_leave(tmp_path: Path):
    cross: dict[str, Any] = {"kind": "cross_layer", "layers": [2, 3]}
    long = {"tokens": 20_480}
    first = trained(tmp_path / "first", dictionary=cross, run=long)
    start = {"dictionary": str(first.transcoder), "dictionary_layers": [2]}
    still: dict[str, Any] = {"run": {"tokens": 256}, "optimiser": {"rate": 1e-9}}
    again = trained(tmp_path / "again", dictionary=cross, start=start, **still)
    anew = trained(tmp_path / "anew", dictionary=cross, **still)
    assert again.worth.error[0] < anew.worth.error[0]
    assert again.worth.error[1] < 0.8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dictionary": {"kind": "sae"}}, "start.dictionary: expected a sae of jump_relu"),
        ({"dictionary": {"activation": "topk"}}, "jump_relu features for one of topk"),
        ({"dictionary": {"features": 64}}, "start.dictionary: expected at most 64 features"),
        ({"start": {"dictionary_layers": [0]}}, "start.dictionary_layers: expected some of (1, 2)"),
        ({"start": {"dictionary": "none"}}, "none"),
    ],
)
def test_a_dictionary_that_cannot_be_gone_on_from_is_refused(
    changes: dict[str, Any], said: str, first: training.Run, tmp_path: Path
):
    start = {"dictionary": str(first.transcoder)} | changes.get("start", {})
    with pytest.raises(ModelError) as refused:
        trained(tmp_path / "run", dictionary=changes.get("dictionary", {}), start=start)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> training.Run:
    """A finished run of two per-layer dictionaries."""
    return trained(tmp_path_factory.mktemp("first") / "run", run={"tokens": 256})


def test_the_end_to_end_stage_lowers_the_divergence(tmp_path: Path):
    run = trained(
        tmp_path / "run",
        dictionary={"layers": None, "features": 256},
        divergence={"share": 0.4, "rows": 4},
        run={"tokens": 20_000},
    )
    before, after = run.summary["before_divergence"], run.summary["replaced"]
    assert after["divergence"] < 0.8 * before["divergence"]
    assert all(abs(l0 / 4 - 1) <= 0.1 for l0 in run.worth.l0)
    assert any("divergence" in line for line in entries(run.folder / FILE))


def test_an_end_to_end_stage_without_weight_changes_nothing_where_thresholds_stay(tmp_path: Path):
    """Measuring before it moved thresholds for good: errors of a layer rose fourfold at a step."""
    short: dict[str, Any] = {
        "dictionary": {"layers": None},
        "loss": {"gain": 0.0, "nudge": 0.0},
        "run": {"set_thresholds": False},
    }
    plain = trained(tmp_path / "plain", **short)
    staged = trained(tmp_path / "staged", **short, divergence={"share": 0.5, "weight": 0.0})
    assert "before_divergence" in staged.summary
    assert same(load_transcoder(staged.transcoder), load_transcoder(plain.transcoder))


def test_measurements_on_the_way_are_written_down_and_change_nothing(tmp_path: Path):
    run = trained(tmp_path / "run", dictionary={"layers": None}, run={"measure_every": 15})
    silent = trained(tmp_path / "silent", dictionary={"layers": None})
    assert same(load_transcoder(run.transcoder), load_transcoder(silent.transcoder))
    found = [line for line in entries(run.folder / FILE) if "measured" in line]
    assert [line["step"] for line in found] == [0, 15, 30]
    times = [line["cpu_seconds"] for line in found]
    assert times == sorted(times)
    assert times[0] == 0
    first, last = found[0]["measured"], found[-1]["measured"]
    assert last["error_weighted"] < first["error_weighted"]
    assert last["divergence"] < first["divergence"]
    assert run.summary["start_cpu_seconds"] > 0


def test_the_rate_goes_up_stays_and_goes_down_to_nothing():
    rates = [schedule(step, 100, warmup=0.1, decay=0.2) for step in range(100)]
    assert rates[:11] == pytest.approx([*(at / 10 for at in range(1, 11)), 1])
    assert rates[11:80] == [1] * 69
    assert rates[80:] == pytest.approx([1 - at / 20 for at in range(20)])
    assert [schedule(step, 3, warmup=0.0, decay=0.0) for step in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(("most", "length"), [(None, 5.0), (1.0, 1.0), (9.0, 5.0)])
def test_a_step_follows_gradients_no_longer_than_clipped_and_keeps_thresholds_up(
    most: float | None, length: float
):
    weight, threshold = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    weight.grad, threshold.grad = torch.tensor([3.0, 4.0]), torch.zeros(1)
    trainee = SimpleNamespace(
        threshold=[threshold], ranks=ALONE, parameters=lambda: iter([weight, threshold])
    )
    optimiser = {"clip": most, "rate": 0.1, "warmup": 0.0, "decay": 0.5}
    config = TrainConfig.of({"optimiser": optimiser, "run": {"tokens": 8000, "batch": 8}})
    descent = torch.optim.SGD([weight, threshold], lr=9.0)
    loop: Any = SimpleNamespace(config=config, trainee=trainee, done=750, optimiser=descent)
    Loop._descend(loop)
    expected = -0.1 * 0.5 * length * torch.tensor([0.6, 0.8])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)
    assert weight.grad is None
    assert threshold.item() == pytest.approx(0.02)


def test_clusters_that_point_the_same_way_start_as_one_feature():
    data = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 2.0], [0.1, 5.0]]).repeat(5, 1)
    member = clusters(data, 8, torch.Generator().manual_seed(0))
    assert sorted(set(member.tolist())) == [0, 1]
    assert member[0] == member[1] != member[2] == member[3]
    silent = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])  # one centre has a direction
    member = clusters(silent, 3, torch.Generator().manual_seed(0))
    assert member[0] == member[1] != member[2]


def test_what_is_rare_gets_clusters_of_its_own():
    draw = torch.Generator().manual_seed(3)
    centres = 10 * torch.nn.functional.normalize(torch.randn(24, 16, generator=draw), dim=1)
    wanted = torch.cat((torch.arange(24).repeat_interleave(4), torch.arange(2).repeat(2000)))
    data = centres[wanted] + 0.1 * torch.randn(len(wanted), 16, generator=draw)
    member = clusters(data, 40, torch.Generator().manual_seed(0))
    assert member.unique().tolist() == list(range(24))
    assert all(len(member[wanted == one].unique()) == 1 for one in range(24))
    heavy = (wanted < 12).float()
    drawn = seeds(data, 12, torch.Generator().manual_seed(0), heavy)
    assert sorted(wanted[drawn].unique().tolist())[-1] < 12


def test_sharpened_distributions_are_compared_too():
    model = loaded(None, "cpu", "float32")
    config = TrainConfig.of({"dictionary": {"features": 8, "l0": 2}})
    scale = Scale(torch.zeros(128), torch.ones(()), torch.ones(()))
    trainee = Trainee(config, Wiring.of(config.dictionary, 4), [scale] * 4, [scale] * 4)
    tokens, where = torch.tensor([[0, 5, 6, 7]]), Where(skip_positions=1, keep_tokens=())
    plain, none = divergence(model, trainee, tokens, where)
    again, sharp = divergence(model, trainee, tokens, where, sharp=True)
    assert plain == again > 0 == none
    alone = shared_divergence(model, trainee, tokens, where, 0.0)
    assert alone == pytest.approx(float(plain.detach()))
    own = logits_of(model, tokens)[0, 1:]
    standing = replace(model, transcoder=folded(trainee, 4, "x"))
    with replaced(standing, where):
        other = logits_of(standing, tokens)[0, 1:]
    for factor, found in ((1, plain), (4, sharp)):
        truth, guess = (factor * own).softmax(-1), (factor * other).log_softmax(-1)
        expected = (truth * (truth.log() - guess)).nansum(-1).mean()
        assert torch.isclose(found, expected, rtol=1e-4)


def test_what_is_written_is_what_was_measured_and_stands_in_for_mlps(tmp_path: Path):
    run = trained(tmp_path / "run", dictionary={"layers": None})
    model = ReplacementModel.load(TINY / "model", run.transcoder)
    recording = model.record("The opposite of hot is")
    counts = torch.bincount(recording.features.layer, minlength=4)
    assert bool((counts > 0).all())
    again = ReplacementModel.load(
        TINY / "model", convert(run.transcoder, tmp_path / "ct", "circuit-tracer")
    )
    for a, b in zip(model.transcoder.layers, again.transcoder.layers, strict=True):
        assert torch.equal(a.W_enc, b.W_enc)


def test_circuit_tracers_layout_is_written_where_asked(tmp_path: Path):
    run = trained(
        tmp_path / "run",
        dictionary={"layers": None, "features": 64, "kind": "cross_layer"},
        run={"format": "circuit-tracer", "tokens": 4096},
    )
    assert yaml.safe_load((run.transcoder / "config.yaml").read_text())["model_kind"]
    model = ReplacementModel.load(TINY / "model", run.transcoder)
    assert model.transcoder.kind == "cross_layer"


def test_a_run_is_repeated_exactly_and_a_cache_changes_nothing(tmp_path: Path):
    short = {"run": {"tokens": 8192}}
    first = load_transcoder(trained(tmp_path / "a", **short).transcoder)
    second = load_transcoder(trained(tmp_path / "b", **short).transcoder)
    assert same(first, second)
    for name in ("c", "d"):  # written, then read
        run = trained(tmp_path / name, data={"cache": str(tmp_path / "cache")}, **short)
        assert same(first, load_transcoder(run.transcoder))


def test_a_run_says_what_it_does_before_it_takes_long(tmp_path: Path):
    config = TrainConfig.of(settings(tmp_path / "run", run={"tokens": 512}))
    said: list[tuple[str, int, int]] = []
    for again in (False, True):
        train(config, lambda *what: said.append(what))
        began, steps = [("Running the model", 0, 0)], said[-3:-1]
        first = [
            ("Loading the model", 0, 0),
            ("Reading the corpus", 388, 0),
            *began,
            *(("Fitting first features", at, 2) for at in range(2)),
            *(("Fitting first decoders", at, 2) for at in range(2)),
        ]
        if again:
            assert said == [first[0], *began, ("Measuring", 2, 2)]
        else:
            assert said == [*first, *steps, ("Measuring", 2, 2)]
            assert [(done, total) for _, done, total in steps] == [(1, 2), (2, 2)]
        said.clear()


def test_a_finished_run_is_read_again(tmp_path: Path):
    first = trained(tmp_path / "run", run={"tokens": 4096})
    before = (first.folder / FILE).read_text()
    again = trained(tmp_path / "run", run={"tokens": 4096})
    assert again.worth == first.worth
    assert (again.folder / FILE).read_text() == before


def test_killed_runs_end_with_the_same_weights(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.killed_training", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["killed"] >= 8


# Configurations


def test_every_field_is_described_and_the_template_holds_the_defaults():
    for section in SECTIONS:
        said = descriptions(section)
        assert set(said) >= {
            name
            for name, hint in section.__annotations__.items()
            if not (isinstance(hint, type) and issubclass(hint, Section))
        }, section
    assert read_config(yaml.safe_load(template())) == TrainConfig()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dictionary": {"l0": "many"}}, "dictionary.l0: expected a number or a list of them abov"),
        ({"dictionary": {"l0": 5000}}, "dictionary.l0: expected less than the 4096 features"),
        ({"dictionary": {"l0": float("nan")}}, "dictionary.l0: expected a number"),
        (
            {"dictionary": {"kind": "crosscoder"}},
            "expected one of per_layer, cross_layer, sae",
        ),
        ({"dictionary": {"span": 2}}, "dictionary.span: expected none, since kind is per_layer"),
        ({"dictionary": {"kind": "sae", "skip": True}}, "dictionary.skip: expected false"),
        ({"dictionary": {"widths": [64, 5000]}}, "dictionary.widths: expected at most features"),
        ({"dictionary": {"prefixes": [64, 32]}}, "dictionary.prefixes: expected rising numbers"),
        ({"dictionary": {"activation": "topk", "l0": 2.5}}, "expected whole numbers for topk"),
        ({"dictionary": 3}, "dictionary: expected fields by name, got 3"),
        ({"dict": {}}, "dict: no such field, expected one of output, model, dictionary"),
        ({"run": {"batch": True}}, "run.batch: expected a whole number from 8, got True"),
        ({"run": {"batch": 40_000}}, "run.batch: expected at most half of data.buffer (32768)"),
        ({"run": {"seed": -1}}, "run.seed: expected a whole number from 0, got -1"),
        ({"optimiser": {"rate": float("inf")}}, "optimiser.rate: expected a number above 0"),
        ({"optimiser": {"betas": [0.9]}}, "optimiser.betas: expected two numbers"),
        ({"divergence": {"share": 2}}, "divergence.share: expected a number from 0 up to 1"),
        (
            {"dictionary": {"activation": "batch_topk"}, "run": {"set_thresholds": False}},
            "run.set_thresholds: expected true with batch_topk",
        ),
        (
            {"divergence": {"share": 0.1}, "dictionary": {"kind": "sae"}},
            "divergence.share: expected 0, since an sae stands in for no MLP",
        ),
        ({"model": "there"}, "data.corpus: expected a file, a folder or hf:owner/name"),
        ([1], "config: expected fields by name, got [1]"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(
    given: Any, said: str, tmp_path: Path
):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    with pytest.raises(ModelError) as refused:
        read_config(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: b: c", "!!python/object:os.system {}"])
def test_what_is_no_yaml_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"run\.yaml: cannot be read as YAML"):
        read_config(path)
    with pytest.raises(ModelError, match="cannot be read as YAML"):
        read_config(tmp_path / "none.yaml")


def test_fields_can_be_changed_by_name():
    found = with_changes(TrainConfig(), {"dictionary.l0": "[3, 4]", "run.tokens": "5"})
    assert found.dictionary.l0 == (3.0, 4.0)
    assert found.run.tokens == 5
    for name in ("dictionary", "dictionary.none", "none.l0", "output.x"):
        with pytest.raises(ModelError, match=f"{name}: no such field"):
            with_changes(TrainConfig(), {name: "1"})


LIMITS: list[tuple[str, list[Any], list[Any]]] = [
    (
        "dictionary.features dictionary.widths dictionary.span dictionary.prefixes "
        "start.detector_steps loss.aux_k loss.dead_after divergence.rows data.max_tokens "
        "data.rows run.tokens run.threads run.log_every run.checkpoint_every ranks.shards",
        [0],
        [1],
    ),
    (
        "dictionary.layers start.dictionary_layers loss.revive_every data.skip_positions "
        "data.prompts run.seed run.measure_every",
        [-1],
        [0],
    ),
    (
        "dictionary.l0 start.threshold loss.frequent loss.tanh_scale loss.penalty_start "
        "loss.bandwidth loss.outliers optimiser.rate optimiser.clip ranks.wait",
        [0],
        [0.001],
    ),
    (
        "loss.gain loss.nudge loss.pre_activation loss.aux divergence.weight divergence.sharp",
        [-0.001],
        [0, 7],
    ),
    (
        "optimiser.warmup optimiser.decay divergence.share run.sparse_below",
        [-0.001, 1.001],
        [0, 1],
    ),
    ("start.clustered", [0, 1.001], [0.001, 1]),
    ("run.drop_below", [-0.001, 100_001], [0, 100_000]),
    ("data.held_out", [0, 0.501], [0.001, 0.5]),
    ("optimiser.betas", [[-0.001, 0.9], [0.9, 1]], [[0, 0.99999]]),
    ("start.tokens data.buffer data.held_out_tokens", [63], [64]),
    ("data.context", [1], [2]),
    ("run.batch", [7], [8]),
    (
        "dictionary.kind dictionary.read dictionary.write dictionary.site dictionary.activation "
        "start.features loss.penalty data.cache_type run.dtype run.precision",
        ["else"],
        [],
    ),
]
"""Fields; values that they do not take; the nearest that they take."""


def test_every_field_takes_what_is_within_its_limits_and_nothing_else():
    given = TrainConfig.of({"dictionary": {"kind": "cross_layer"}})

    def refusal(name: str, value: Any) -> str:
        try:
            with_changes(given, {name: str(value)})
        except ModelError as error:
            return str(error)
        return ""

    for names, beyond, within in LIMITS:
        for name in names.split():
            assert all(refusal(name, one).startswith(f"{name}: expected") for one in beyond), name
            assert not any(refusal(name, one).startswith(name) for one in within), name
    limited = {one.name for kind in SECTIONS for one in fields(kind) if one.metadata}
    assert limited <= {name.split(".")[1] for names, *_ in LIMITS for name in names.split()}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"dictionary": {"layers": [4]}}, "dictionary.layers: expected layers from 0 to 3, got 4"),
        ({"dictionary": {"layers": [1, 1]}}, "dictionary.layers: expected some layers, each once"),
        ({"dictionary": {"l0": [1, 2, 3]}}, "dictionary.l0: expected one number, or one for each"),
        ({"dictionary": {"widths": [9]}}, "dictionary.widths: expected one number for each of 2"),
        ({"dictionary": {"widths": [9, 4]}}, "dictionary.l0: expected less than the 4 features"),
        ({"loss": {"penalty_start": [1, 2, 3]}}, "loss.penalty_start: expected one number, or 2"),
        ({"run": {"format": "pickle"}}, "run.format: expected one of circuit-tracer"),
        ({"run": {"device": "nowhere"}}, "device 'nowhere' cannot be used here"),
        ({"run": {"tensorboard": True}}, "run.tensorboard: the package is not installed"),
        ({"data": {"max_tokens": 20}}, "leave none to train on"),
        ({"data": {"corpus": "none.txt"}}, "there is no such corpus"),
        (
            {"dictionary": {"kind": "sae"}, "start": {"features": "neurons"}},
            "start.features: expected data, clusters or random",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    sections: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(ModelError) as refused:
        trained(tmp_path / "run", **sections)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("dictionary", "format", "said"),
    [
        ({"activation": "topk"}, "circuit-tracer", "it cannot hold relu_topk"),
        ({"layers": [1, 2], "activation": "relu"}, "circuit-tracer", "layers of 0, 5"),
        ({"widths": [64, 64, 32, 64]}, "circuit-tracer", "as many features in every layer"),
        ({"kind": "cross_layer"}, "saelens", "SAELens cannot hold kind cross_layer"),
        ({"layers": [1]}, "gemma-scope-2", "no place for a layer without a dictionary"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused_before_it_is_trained(
    dictionary: dict[str, Any], format: str, said: str, tmp_path: Path
):
    with pytest.raises(ModelError) as refused:
        trained(tmp_path / "run", dictionary={"layers": None} | dictionary, run={"format": format})
    assert str(refused.value).startswith("run.format: ")
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_is_refused_with_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = TrainConfig.of(settings(tmp_path / "run"))
    wiring = Wiring.of(config.dictionary, 4)
    need = planned(config, wiring, 128).total
    place = "replacement_models.training.memory.free_on"
    monkeypatch.setattr(place, lambda device: round(need / 0.9) + 1)
    check_memory(config, wiring, 128)
    monkeypatch.setattr(place, lambda device: round(0.8 * need))
    with pytest.raises(ModelError, match=r"memory: this run needs .* are free .* would fit") as no:
        train(config)
    assert "\n" not in str(no.value)
    assert not (tmp_path / "run").exists()


def test_what_setting_thresholds_takes_is_planned(tmp_path: Path):
    """Of every layer the largest margins of 16,384 tokens, where those of a step are fewer."""
    few = {"dictionary": {"features": 64}, "run": {"batch": 8}, "data": {"held_out_tokens": 64}}
    l0s: tuple[int, ...] = (1, 60)
    configs = [
        TrainConfig.of(settings(tmp_path, **few | {"dictionary": {"features": 64, "l0": l0}}))
        for l0 in l0s
    ]
    one, sixty = (planned(each, Wiring.of(each.dictionary, 4), 128) for each in configs)
    assert sixty.batch - one.batch >= 59 * 2 * 16_384 * 4


@pytest.mark.parametrize("fits", range(1, 24, 3))
def test_the_largest_dictionary_that_fits_is_named(fits: int, tmp_path: Path):
    config = TrainConfig.of(settings(tmp_path / "run", dictionary={"features": 64 * 23}))
    wiring = Wiring.of(config.dictionary, 4)
    just = replace(config, dictionary=replace(config.dictionary, features=64 * fits))
    most = planned(just, wiring, 128).total
    assert memory._features(config, wiring, 128, most, memory.ALONE) == 64 * fits
    assert memory._features(config, wiring, 128, most - 1, memory.ALONE) == 64 * (fits - 1)


# What stands in the way


def test_a_folder_of_something_else_or_of_another_run_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists and is no run"):
        trained(tmp_path)
    trained(tmp_path / "run", run={"tokens": 2048})
    with pytest.raises(ModelError, match=r"was begun with run\.seed 0, now it is 7"):
        trained(tmp_path / "run", run={"tokens": 2048, "seed": 7})
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        trained(tmp_path / "run", run={"tokens": 2048})


def begun(folder: Path) -> Path:
    """A run, its finished files taken away, and its last checkpoint."""
    run = trained(folder, run={"tokens": 4096, "checkpoint_every": 8})
    for file in run.transcoder.iterdir():
        file.unlink()
    (folder / DICTIONARY).rmdir()
    return sorted((folder / "checkpoints").iterdir())[-1]


def test_a_torn_checkpoint_is_named(tmp_path: Path):
    last = begun(tmp_path / "run")
    [shard] = last.glob("*.safetensors")
    whole, again = shard.read_bytes(), {"run": {"tokens": 4096, "checkpoint_every": 8}}
    for torn in (whole[:-100], b"\x80\x04cos\nsystem\n", whole[:9]):
        shard.write_bytes(torn)
        with pytest.raises(ModelError, match="step_000000016") as refused:
            trained(tmp_path / "run", **again)
        assert "\n" not in str(refused.value)
    shard.write_bytes(whole)
    state = (last / "state.json").read_text()
    for bad in ("{", "[]", '{"step": 1}', '{"step": "x", "seconds": 0}'):
        (last / "state.json").write_text(bad)
        with pytest.raises(ModelError, match=r"state\.json"):
            trained(tmp_path / "run", **again)
    (last / "state.json").write_text(state)
    trained(tmp_path / "run", **again)


def test_a_cache_of_something_else_or_torn_is_named(tmp_path: Path):
    there = {"cache": str(tmp_path / "cache")}
    short = {"tokens": 2048}
    trained(tmp_path / "a", data=there, run=short)
    with pytest.raises(ModelError, match=r"data\.cache: .* is of layers"):
        trained(tmp_path / "b", data=there, run=short, dictionary={"layers": [0]})
    shard = next((tmp_path / "cache").glob("chunk_*"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"chunk_\d+\.safetensors: cannot be read"):
        trained(tmp_path / "c", data=there, run=short)
    (tmp_path / "cache" / "manifest.json").write_text("[")
    with pytest.raises(ModelError, match=r"manifest\.json: cannot be read"):
        trained(tmp_path / "d", data=there, run=short)
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "x").write_text("")
    with pytest.raises(ModelError, match="is no cache"):
        trained(tmp_path / "e", data={"cache": str(tmp_path / "no")}, run=short)


def test_spans_are_padded_with_zeros(tmp_path: Path):
    run = trained(
        tmp_path / "run",
        dictionary={"kind": "cross_layer", "span": 2, "layers": None, "features": 64},
        run={"tokens": 2048},
    )
    rows = load_transcoder(run.transcoder).decoder_rows(0, torch.arange(64))
    assert rows.shape[1] == 4
    assert bool(rows[:, :2].any())
    assert not bool(rows[:, 2:].any())


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path: Path):
    lines = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Journal(tmp_path, TrainConfig.of({"dictionary": {"features": 8, "l0": 2}}), 2)
    assert list(entries(tmp_path / FILE)) == lines[:2]
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_numbers_go_to_tensorboard_and_wandb_by_their_names_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[Any] = []

    class Board:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            said.append((name, value, step))

        def close(self) -> None:
            said.append("board closed")

    class Project:
        def log(self, numbers: dict[str, float], step: int) -> None:
            said.append((numbers, step))

        def finish(self) -> None:
            said.append("project closed")

    board = SimpleNamespace(SummaryWriter=Board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: Project()))
    journal = Journal(
        tmp_path, TrainConfig.of({"run": {"tensorboard": True, "wandb": "project"}}), 0
    )
    journal.write({"step": 3, "loss": 0.5, "layers": {"l0": [1.0]}})
    journal.close()
    numbers = {"step": 3, "loss": 0.5}
    each = [(name, value, 3) for name, value in numbers.items()]
    assert said == [*each, (numbers, 3), "board closed", "project closed"]
