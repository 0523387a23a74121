"""Features matched over two dictionaries, and streams compared, on small random models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graphs import words
from replacement_models import DenseDecoder, ReplacementModel
from tests.random_models import FEATURES, LAYERS, language_model, replacement_model, transcoder
from tests.test_cli import SMALL, defaults, python_defaults, refused, succeed
from tracer import TraceError
from tracer.evaluation.matching import Matching, Moments, match

PROMPTS = [[(3 * n + k * k) % 27 + 2 for k in range(9)] for n in range(14)]
SKIP = 1


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement_model("gpt2")


def shuffled(seed: int) -> tuple[ReplacementModel, list[torch.Tensor]]:
    """The same model whose dictionary numbers its features in another order."""
    found = transcoder()
    order = [
        torch.randperm(FEATURES, generator=torch.Generator().manual_seed(seed + layer))
        for layer in range(LAYERS)
    ]
    layers = []
    for own, at in zip(found.layers, order, strict=True):
        assert isinstance(own.decoder, DenseDecoder)
        layers.append(
            replace(
                own,
                W_enc=own.W_enc[at],
                b_enc=own.b_enc[at],
                decoder=DenseDecoder(own.decoder.weight[at]),
            )
        )
    other = type(found)(layers, read=found.read, write=found.write)
    host = language_model("gpt2", torch.float64)
    return ReplacementModel.from_huggingface(host, None, other, name="shuffled"), order


def activations(model: ReplacementModel) -> np.ndarray:
    """(positions, layers x features) of all prompts; the plain version."""
    parts = []
    for prompt in PROMPTS:
        seen = model.record(prompt).features
        dense = np.zeros((len(prompt), LAYERS, FEATURES))
        dense[seen.position, seen.layer, seen.feature] = seen.activation
        parts.append(dense[SKIP:].reshape(len(prompt) - SKIP, -1))
    return np.concatenate(parts)


def plain_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        found = np.corrcoef(one.T, other.T)[: one.shape[1], one.shape[1] :]
    return np.where(np.isnan(found), -2, found)


@pytest.mark.parametrize("across", [True, False])
def test_features_numbered_in_another_order_are_found_again(model: ReplacementModel, across: bool):
    other, order = shuffled(3)
    found = match(model, other, PROMPTS, across=across)
    rows = found.features.to_pylist()
    assert len(rows) > FEATURES
    for row in rows:
        assert row["correlation"] == pytest.approx(1.0)
        assert row["other_layer"] == row["layer"]
        assert int(order[row["layer"]][row["other_feature"]]) == row["feature"]
        assert row["mutual"]
    assert found.shared() == found.shared(0.999) == 1.0
    for row in found.streams.to_pylist():
        assert (row["cka"], row["aligned"]) == pytest.approx((1.0, 1.0))
    assert found.positions == sum(len(prompt) - SKIP for prompt in PROMPTS)


@pytest.mark.parametrize("across", [True, False])
def test_correlations_are_those_of_all_pairs(
    model: ReplacementModel, across: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tracer.evaluation.matching.AT_ONCE", 5)
    other = replacement_model("gpt2", kind="per_layer", seed=8)
    a, b = activations(model), activations(other)
    every = plain_correlations(a, b)
    if not across:
        layer = np.arange(LAYERS * FEATURES) // FEATURES
        every = np.where(layer[:, None] == layer, every, -2)
    found = match(model, other, PROMPTS, across=across)
    varies = np.flatnonzero(a.std(0) > 0)
    assert [r["layer"] * FEATURES + r["feature"] for r in found.features.to_pylist()] == [*varies]
    some = 0
    for row in found.features.to_pylist():
        at = row["layer"] * FEATURES + row["feature"]
        assert row["fires"] == (a[:, at] != 0).sum()
        assert row["correlation"] == pytest.approx(every[at].max())
        to = row["other_layer"] * FEATURES + row["other_feature"]
        assert every[at, to] == pytest.approx(every[at].max())
        assert row["mutual"] == (every[:, to].max() <= every[at, to] + 1e-9)
        some += row["mutual"]
    assert 0 < some < found.features.num_rows
    least = float(np.median(found.features["correlation"].to_numpy()))
    rows = found.features.to_pylist()
    close = [row["mutual"] and row["correlation"] >= least for row in rows]
    assert found.shared(least) == pytest.approx(np.mean(close))


def random_streams(seed: int, rows: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 6)) + 3, rng.normal(size=(rows, 4)) - 1


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    found = Moments(x.shape[1], y.shape[1])
    for part in range(0, len(x), 30):
        found.add(x[part : part + 30], y[part : part + 30])
    return found


def test_alignment_and_cka_are_those_of_their_definitions():
    x, y = random_streams(0)
    found = moments(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    kernels = x @ x.T, y @ y.T
    cka = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(k) for k in kernels])
    assert found.cka == pytest.approx(cka)
    u, _, v = np.linalg.svd(x.T @ y, full_matrices=False)
    turned = x @ u @ v
    scale = (turned * y).sum() / (x**2).sum()  # u v is no whole rotation where widths differ
    assert found.aligned == pytest.approx((turned * y).sum() ** 2 / ((x**2).sum() * (y**2).sum()))
    assert found.aligned == pytest.approx(scale * (turned * y).sum() / (y**2).sum())
    assert 0 < found.cka < 0.5
    assert 0 < found.aligned < 0.5


def test_a_stream_turned_scaled_and_moved_is_the_same_space():
    x, _ = random_streams(1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    found = moments(x, -2.5 * x @ turn + 7)
    assert (found.cka, found.aligned) == pytest.approx((1.0, 1.0))
    stretched = moments(x, x * np.array([9, 1, 1, 1, 1, 1]))
    assert stretched.aligned < 0.9
    still = moments(x, np.ones((len(x), 3)))
    assert (still.cka, still.aligned) == (0.0, 0.0)


def test_models_of_other_depth_are_compared_at_the_same_depth(model: ReplacementModel):
    from tracer.evaluation.matching import _depths

    assert _depths(4, 2) == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]
    assert _depths(2, 4) == [(0, 0), (1, 2), (2, 4)]
    assert [row["other_layer"] for row in match(model, model, PROMPTS).streams.to_pylist()] == [
        *range(LAYERS + 1)
    ]


def test_what_cannot_be_matched_is_refused(model: ReplacementModel):
    with pytest.raises(TraceError, match="fewer than two positions"):
        match(model, model, [[3, 4]])
    with pytest.raises(TraceError, match="fewer than two positions"):
        match(model, model, [])


def test_the_call_is_offered(model: ReplacementModel):
    import tracer

    assert tracer.match is match
    assert isinstance(tracer.match(model, model, PROMPTS[:3]), tracer.Matching)


def test_the_command_gives_what_python_gives(tmp_path: Path):
    (tmp_path / "texts.txt").write_text("w3 w9 w4\nw5 w7 w12 w30\nw8 w9\n")
    texts = ["w3 w9 w4", "w5 w7 w12 w30", "w8 w9"]
    one = ReplacementModel.load(SMALL[1], SMALL[3])
    two = ReplacementModel.load(SMALL[1], "neurons")
    expected = match(one, two, texts, across=False)
    given = ("match", str(tmp_path / "texts.txt"), *SMALL, "--other-transcoders", "neurons")
    found = json.loads(succeed(*given, "--same-depth", "--json"))
    assert found["features"] == expected.features.to_pylist()
    assert found["streams"] == expected.streams.to_pylist()
    assert found["shared"] == expected.shared()
    text = succeed(*given, "--same-depth", "--top", "1", "--least", "0.2")
    assert f"shared\t{words.percent(expected.shared(0.2))} of " in text
    assert text.count("\tyes\n") + text.count("\tno\n") == 1
    assert "holds no text" in refused("match", str(empty(tmp_path)))
    line = refused("match", given[1], "--other-model", "nowhere")
    assert line.startswith("--other-model nowhere needs --other-transcoders: ")


def test_the_command_loads_a_model_once_where_dictionaries_alone_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "texts.txt").write_text("w3 w9 w4\nw5 w7 w12 w30\n")
    loads = []
    load = ReplacementModel.load
    monkeypatch.setattr(ReplacementModel, "load", lambda **how: loads.append(how) or load(**how))
    succeed("match", str(tmp_path / "texts.txt"), *SMALL, "--other-transcoders", "neurons")
    succeed("match", str(tmp_path / "texts.txt"), *SMALL)
    assert len(loads) == 2


def empty(folder: Path) -> Path:
    (folder / "empty.txt").write_text("\n")
    return folder / "empty.txt"


def test_the_command_has_the_defaults_of_the_python_function():
    shown = defaults("match")
    for name, value in python_defaults(match).items():
        assert shown[name] == value
    assert shown["least"] == python_defaults(Matching.shared)["least"]
