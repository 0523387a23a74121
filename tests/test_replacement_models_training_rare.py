"""Features that hardly ever fire are left out of the finished dictionary (`run.drop_below`)."""

import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement_models import ModelError, ReplacementModel, load_transcoder
from replacement_models.training import rare
from replacement_models.training import train as training
from replacement_models.training.arrays import train_on
from replacement_models.training.config import TrainConfig
from replacement_models.training.firing import SparseActive
from replacement_models.training.fold import folded
from replacement_models.training.pool import generator
from replacement_models.training.product import product_of
from replacement_models.training.ranks import ALONE
from replacement_models.training.rare import Counted, counted, kept, narrowed, text_once
from replacement_models.training.ridge import decoder
from replacement_models.training.scales import Scale
from replacement_models.training.source import Source
from replacement_models.training.start import started
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring
from replacement_models.transcoder import Transcoder
from tests.training_runs import same, settings, trained

load_alone = ReplacementModel.without_dictionary
RARE = 1500
"""Firings in 100,000 tokens below which these runs leave features out."""


@lru_cache(maxsize=1)
def loaded(*arguments: Any) -> ReplacementModel:
    """The model, loaded once for all runs."""
    return load_alone(*arguments)


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs share one model."""
    monkeypatch.setattr(ReplacementModel, "without_dictionary", staticmethod(loaded))


def source_of(folder: Path, **sections: Any) -> Source:
    """The text of a run in a folder, and what makes activations of it."""
    config = TrainConfig.of(settings(folder, **sections))
    model = loaded(None, "cpu", "float32")
    wiring = Wiring.of(config.dictionary, 4)
    folder.mkdir(exist_ok=True)
    return training._source(config, model, wiring, folder, lambda *_: None)


def firings(transcoder: Transcoder, source: Source) -> tuple[dict[int, Tensor], int]:
    """Tokens of the text trained on that each feature of a finished dictionary fires on."""
    chunks = [source(number) for number in range(source.rows.chunks)]
    found = {
        layer: sum((transcoder.encode(layer, one.inputs[at])[1] != 0).sum(0) for one in chunks)
        for at, layer in enumerate(transcoder.present)
    }
    return found, sum(map(len, chunks))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("dictionary", "values"),
    [
        ({"activation": "jump_relu"}, "threshold"),
        ({"activation": "relu", "kind": "sae"}, ""),
        ({"activation": "topk", "kind": "sae"}, ""),
        ({"activation": "batch_topk", "kind": "sae"}, "threshold"),
        ({"activation": "gated", "kind": "sae"}, "threshold"),
        ({"kind": "cross_layer", "tied": True, "skip": True}, "threshold"),
    ],
)
def test_what_is_left_is_the_dictionary_less_its_rare_features(
    dictionary: dict[str, Any], values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rare, "EXPECTED", 1000)  # so that all text is counted on
    whole = trained(tmp_path / "whole", dictionary=dictionary)
    some = trained(tmp_path / "some", dictionary=dictionary, run={"drop_below": RARE})
    before, after = load_transcoder(whole.transcoder), load_transcoder(some.transcoder)
    source = source_of(tmp_path / "whole", dictionary=dictionary)
    fired, tokens = firings(before, source)
    assert some.summary["counted_tokens"] == tokens
    assert sum(some.summary["left_out"]) > 2
    for at, layer in enumerate(before.present):
        stays = fired[layer] * 100_000 >= RARE * tokens
        one, other = before.layers[layer], after.layers[layer]
        assert len(stays) - len(other.W_enc) == some.summary["left_out"][at] == int((~stays).sum())
        assert torch.equal(one.W_enc[stays], other.W_enc)
        rows = stays.nonzero()[:, 0]
        assert torch.equal(one.decoder.rows(rows), other.decoder.rows(torch.arange(len(rows))))
        assert torch.equal(one.b_dec, other.b_dec)
        if values:  # thresholds are set for the features that are left
            first, second = (getattr(x.activation, values) for x in (one, other))
            moved = second - (first[stays] if len(first) > 1 else first)
            assert float(moved.abs().max()) < 0.5
    assert some.worth.l0 == pytest.approx((4, 4), rel=2e-3)
    assert some.summary["thresholds_moved"] == pytest.approx(
        whole.summary["thresholds_moved"], abs=0.5
    )
    held = source.of_rows(source.rows.held_out, 2048)
    for at, layer in enumerate(after.present):  # figures are of what is written
        active = after.encode(layer, held.inputs[at])[1] != 0
        assert float(active.sum(1).float().mean()) == pytest.approx(some.worth.l0[at], rel=1e-3)
        assert float((~active.any(0)).float().mean()) == some.worth.dead[at]


def test_nothing_is_left_out_unless_it_is_asked_for(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(training, "counted", None)
    run = trained(tmp_path / "run", run={"tokens": 512})
    assert run.summary["left_out"] == [0, 0]
    assert "counted_tokens" not in run.summary


def test_a_run_killed_while_it_counts_ends_with_the_same_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sections: dict[str, Any] = {
        "dictionary": {"kind": "cross_layer"},
        "run": {"tokens": 2048, "checkpoint_every": 3, "drop_below": 3000},
    }
    peace = trained(tmp_path / "peace", **sections)
    assert sum(peace.summary["left_out"])

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as once:
        once.setattr(training, "kept", killed)
        with pytest.raises(SystemExit):
            trained(tmp_path / "war", **sections)
    assert not (tmp_path / "war" / "transcoder").exists()
    war = trained(tmp_path / "war", **sections)
    assert same(*(load_transcoder(run.transcoder) for run in (peace, war)))
    shutil.rmtree(war.transcoder)
    again = trained(tmp_path / "war", **sections)
    assert same(*(load_transcoder(run.transcoder) for run in (peace, again)))
    assert again.worth == peace.worth
    for name in ("left_out", "counted_tokens", "thresholds_moved"):
        assert again.summary[name] == peace.summary[name]


def test_the_text_is_read_once_and_a_steps_tokens_at_a_time(tmp_path: Path):
    source = source_of(tmp_path, run={"batch": 200}, data={"buffer": 2048})
    batches = list(text_once(source, ALONE))
    assert max(map(len, batches)) == 200
    assert source.rows.chunks > 1
    read = torch.cat([one.inputs[1] for one in batches])
    chunks = [source(number).inputs[1] for number in range(source.rows.chunks)]
    assert torch.equal(read, torch.cat(chunks))


# Without a run


def small(drop_below: float, l0: float = 2.0, **dictionary: Any) -> Trainee:
    """Eight features of two dimensions; feature k fires where what is read is above k."""
    config = TrainConfig.of(
        {"dictionary": {"features": 8, "l0": l0, **dictionary}, "run": {"drop_below": drop_below}}
    )
    unit = Scale(torch.zeros(2), torch.ones(()), torch.ones(()))
    trainee = Trainee(config, Wiring.of(config.dictionary, 1), [unit], [unit])
    with torch.no_grad():
        trainee.W_enc[0][:, 0] = 1
        for rows in (trainee.W_dec[0], trainee.b_enc[0]):
            rows.copy_(torch.arange(rows.numel()).view_as(rows))
        trainee.b_enc[0].neg_()
        trainee.silent[0] = torch.arange(8)
    return trainee


def reads(*values: float) -> Batch:
    """Tokens of which the first number is this."""
    x = torch.tensor([[value, 9.0] for value in values])
    return Batch([x], [x])


def test_tokens_are_counted_until_a_feature_at_the_limit_is_expected_to_fire_sixteen_times():
    for limit, tokens in ((100_000, 16), (5000, 320), (4999, 324), (1, 4000)):
        text = iter([reads(0.5, 3.5, 9.0, -1.0)] * 1000)
        found = counted(small(limit), text)
        assert found.tokens == tokens == 4000 - 4 * len(list(text))
        shares = torch.tensor([3, 2, 2, 2, 1, 1, 1, 1])
        assert torch.equal(found.fired[0], shares * tokens // 4)


def test_features_at_the_limit_stay_and_never_fewer_than_l0_needs():
    fired = torch.tensor([0, 5, 9, 10, 11, 500, 0, 1])

    def chosen(limit: float, l0: float = 2.0) -> list[int]:
        [some] = kept(small(limit, l0), Counted([fired], 10_000))
        return some.tolist()

    assert chosen(100) == [3, 4, 5]
    assert chosen(99) == [3, 4, 5]
    assert chosen(90) == [2, 3, 4, 5]
    assert chosen(0.001) == [1, 2, 3, 4, 5, 7]
    assert chosen(100_000) == [3, 4, 5]
    assert chosen(100_000, 1.5) == [4, 5]
    assert chosen(100_000, 6.5) == list(range(8))


def test_a_narrowed_dictionary_has_the_rows_of_what_is_left():
    for activation in ("jump_relu", "gated"):
        trainee = small(1, activation=activation, kind="cross_layer", tied=True)
        with torch.no_grad():
            for part in (*trainee.threshold, *trainee.gain, *trainee.b_gain, *trainee.share):
                part.copy_(torch.arange(part.numel()).view_as(part))
        some = torch.tensor([1, 4, 6])
        found = narrowed(trainee, [some])
        assert found.features_at(0) == 3
        for (name, own), (_, left) in zip(
            trainee.named_parameters(), found.named_parameters(), strict=True
        ):
            assert torch.equal(left, own if name.startswith("b_dec") else own[some]), name
        assert found.silent.tolist() == [[1, 4, 6]]


def test_how_many_of_each_prefix_are_left_is_said(tmp_path: Path):
    run = trained(
        tmp_path / "run",
        dictionary={"kind": "sae", "prefixes": [16, 64]},
        run={"tokens": 2048, "drop_below": 2000},
    )
    found = load_transcoder(run.transcoder)
    for layer, counts in zip(found.present, run.summary["prefixes"], strict=True):
        left = len(found.layers[layer].W_enc)
        assert 0 < counts[0] <= 16
        assert counts[0] < counts[1] < left < 128


def test_on_activations_in_hand_too():
    x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    config = TrainConfig.of(
        {
            "dictionary": {"kind": "sae", "features": 64, "l0": 4},
            "start": {"tokens": 1024},
            "data": {"buffer": 1024},
            "run": {"tokens": 2000, "batch": 200},
        }
    )
    whole = train_on(config, x).transcoder.layers[0]
    run = replace(config.run, drop_below=6000.0)
    fitted = train_on(replace(config, run=run), x)
    left = fitted.transcoder.layers[0]
    assert 5 <= len(left.W_enc) < 64
    place = (whole.W_enc[:, None] == left.W_enc).all(-1).any(1)
    assert int(place.sum()) == len(left.W_enc)
    assert fitted.worth.l0[0] == pytest.approx(4, rel=1e-2)


# Going on from what is left


STILL: dict[str, Any] = {"run": {"tokens": 256}, "optimiser": {"rate": 1e-9}}
"""A run that leaves its start as it is, but for thresholds."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> training.Run:
    """A finished run whose layers differ in width."""
    cross: dict[str, Any] = {"kind": "cross_layer", "layers": [1, 2, 3], "widths": [48, 64, 128]}
    folder = tmp_path_factory.mktemp("uneven") / "run"
    return trained(folder, dictionary=cross | {"skip": True}, run={"drop_below": 1500})


def begun(folder: Path, dictionary: dict[str, Any], start: dict[str, Any]) -> Trainee:
    """What a run starts with."""
    sections = {"dictionary": dictionary, "start": start}
    source = source_of(folder, **sections)
    config = source.harvester.config
    host = source.harvester.model.host
    wiring = Wiring.of(config.dictionary, 4)
    return started(config, wiring, host, source(0).rows(slice(0, 2048)), generator(0))


def wrote(found: Transcoder, batch: Batch, layers: tuple[int, ...]) -> list[Tensor]:
    """What a dictionary writes to its layers."""
    inputs = [batch.inputs[0]] * 4
    for at, layer in enumerate(layers):
        inputs[layer] = batch.inputs[at]
    active = [found.encode(layer, x)[1] for layer, x in enumerate(inputs)]
    return [found.decode(active, inputs)[layer] for layer in layers]


@pytest.mark.parametrize("features", ["neurons", "clusters", "data", "random"])
def test_features_that_a_given_layer_lacks_start_on_what_it_leaves(
    features: str, uneven: training.Run, tmp_path: Path
):
    given = load_transcoder(uneven.transcoder)
    layers, shape = given.present, {"kind": "cross_layer", "layers": [1, 2, 3], "skip": True}
    widths = [len(given.layers[layer].W_enc) for layer in layers]
    assert sorted({*widths}) != [widths[0]]
    start = {"dictionary": str(uneven.transcoder), "features": features}
    trainee = begun(tmp_path / "wide", shape | {"features": 160}, start)
    alone = begun(tmp_path / "alone", shape | {"features": 160, "widths": widths}, start)
    source = source_of(tmp_path / "wide", dictionary=shape)
    batch, ratios = source(0).rows(slice(0, 2048)), []
    found, without = (folded(one, 4, "") for one in (trainee, alone))
    for y, one, other, before in zip(
        batch.outputs,
        *(wrote(each, batch, layers) for each in (found, without, given)),
        strict=True,
    ):
        assert torch.allclose(other, before, atol=1e-3)
        ratios.append(float((y - one).square().sum() / (y - before).square().sum()))
    assert sum(ratios) / len(ratios) < 0.98, ratios
    for at, (layer, width) in enumerate(zip(layers, widths, strict=True)):
        first, second = given.layers[layer], found.layers[layer]
        rows = torch.arange(width)
        assert len(second.W_enc) == 160
        assert torch.allclose(first.W_enc, second.W_enc[:width], atol=1e-5)
        assert torch.allclose(
            first.decoder.rows(rows), second.decoder.rows(rows)[:, : len(layers) - at], atol=1e-5
        )
        new = found.encode(layer, batch.inputs[at])[1][:, width:] != 0
        assert float(new.any(0).float().mean()) > 0.5


@torch.no_grad()
def test_new_features_are_fitted_to_what_is_left_beside_no_others(tmp_path: Path):
    """Fitted with those that are taken over and stay, new rows would leave a part to them."""
    shape: dict[str, Any] = {"kind": "per_layer", "layers": [2]}
    with torch.enable_grad():
        first = trained(tmp_path / "first", dictionary=shape, run={"tokens": 4096})
    width = len(load_transcoder(first.transcoder).layers[2].W_enc)
    start = {"dictionary": str(first.transcoder), "features": "data"}
    trainee = begun(tmp_path / "wide", shape | {"features": width + 32}, start)
    batch = source_of(tmp_path / "wide", dictionary=shape)(0).rows(slice(0, 2048))
    x, y = trainee.reads[0].normalised(batch.inputs[0]), batch.outputs[0]
    active = trainee.active(0, x, product_of("float32"), sparse=True)
    assert isinstance(active, SparseActive)
    own = active.values * active.first(width, 0)
    assert own.any()
    left = trainee.writes[0].normalised(y) - trainee.base(0, x)
    left = left - trainee.writes_of(0, active, own)[:, 0]
    weight = trainee.writes[0].weight(y, trainee.config.loss.outliers)
    rows = decoder([(active.pairs, active.values - own)], left, weight)
    torch.testing.assert_close(trainee.W_dec[0][width:], rows[width:], rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_from_what_is_left_at_its_own_widths(uneven: training.Run, tmp_path: Path):
    given = load_transcoder(uneven.transcoder)
    widths = [len(given.layers[layer].W_enc) for layer in given.present]
    again = trained(
        tmp_path / "again",
        dictionary={"kind": "cross_layer", "layers": [1, 2, 3], "skip": True, "widths": widths},
        start={"dictionary": str(uneven.transcoder)},
        **STILL,
    )
    found = load_transcoder(again.transcoder)
    assert [len(found.layers[layer].W_enc) for layer in given.present] == widths
    # The same but for thresholds, which are set on other text.
    assert again.worth.error == pytest.approx(uneven.worth.error, rel=0.05)


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [
        ({"skip": False}, "dictionary.skip: expected true, since the dictionary in "),
        ({"tied": True}, "dictionary.tied: expected false with start.dictionary, whose features"),
    ],
)
def test_a_start_from_what_does_not_go_with_it_is_refused(
    dictionary: dict[str, Any], said: str, uneven: training.Run, tmp_path: Path
):
    cross: dict[str, Any] = {"kind": "cross_layer", "layers": [1, 2, 3], "skip": True}
    start = {"dictionary": str(uneven.transcoder)}
    with pytest.raises(ModelError) as refused:
        trained(tmp_path / "run", dictionary=cross | dictionary, start=start)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


# What cannot be


@pytest.mark.parametrize("format", ["circuit-tracer", "openmoss"])
def test_a_format_of_equal_widths_is_refused_before_it_is_trained(format: str, tmp_path: Path):
    sections: dict[str, Any] = {
        "dictionary": {"layers": None},
        "run": {"format": format, "drop_below": 0.5},
    }
    with pytest.raises(ModelError) as refused:
        trained(tmp_path / "run", **sections)
    assert str(refused.value) == (
        f"run.drop_below: expected 0, since {format} has no place for layers that differ in "
        "width, got 0.5"
    )
    assert not (tmp_path / "run").exists()


def test_a_format_of_layers_by_themselves_takes_what_is_left(tmp_path: Path):
    sae: dict[str, Any] = {"kind": "sae", "layers": [1, 2]}
    run = trained(
        tmp_path / "run",
        dictionary=sae,
        run={"tokens": 2048, "drop_below": RARE, "format": "saelens"},
    )
    layers = [load_transcoder(run.transcoder).layers[at] for at in (1, 2)]
    assert [128 - len(layer.W_enc) for layer in layers] == run.summary["left_out"]
