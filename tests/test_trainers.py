"""Trainers side by side: all read the same rows, and are compared at equal L0."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import trainer_peers
from benchmarks.trainer_curves import at_l0, compared, table
from benchmarks.trainer_figures import Text
from benchmarks.trainer_planted import PLANTED, Planted
from benchmarks.trainer_rows import TOLD, Job, Rows
from benchmarks.trainers import Comparison, Side, Sizes, parsed, sides
from replacement_models import DenseDecoder, ReLU, TranscoderLayer
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.training.harvest import joined

SIZES = Sizes(tokens=2048, batch=256, features=96, planted=2048)
OURS = Side(
    "tracer sae", "tracer sae", (4.0,), (1e-3, 4e-3), module="benchmarks.trainer_own", planted=True
)
STAND_IN = Side(
    "stand-in", "tracer sae", (0.5, 1.0, 2.0), (0.0, 4.0), module="tests.trainer_stand_in",
    planted=True,
)  # fmt: skip


def comparison(folder: Path) -> Comparison:
    planted = Planted(folder, SIZES.planted, held=512)
    return Comparison(folder, SIZES, Text(folder, SIZES.tokens), planted)


def test_sides_train_on_the_same_rows_at_the_best_of_their_rates(tmp_path: Path):
    runs, tried = comparison(tmp_path).runs([OURS, STAND_IN])
    assert [one["side"] for one in runs] == ["tracer sae", *["stand-in"] * 3]
    assert len({one["checksum"] for one in runs}) == 1
    assert {one["tokens"] for one in runs} == {2048}
    for side in (OURS, STAND_IN):
        errors = tried[side.name]
        assert sorted(map(float, errors)) == list(side.rates)
        [rate] = {one["rate"] for one in runs if one["side"] == side.name}
        assert errors[f"{rate:g}"] == min(errors.values())
    l0 = [one["l0"] for one in runs[1:]]
    assert l0 == sorted(l0, reverse=True)
    told = [(path, path.stat().st_mtime_ns) for path in tmp_path.glob(f"*/{TOLD}")]
    assert comparison(tmp_path).runs([OURS, STAND_IN]) == (runs, tried)  # nothing is run again
    assert all(path.stat().st_mtime_ns == before for path, before in told)


def test_rows_in_another_order_are_noticed(tmp_path: Path):
    backwards = replace(STAND_IN, name="backwards")
    with pytest.raises(SystemExit, match="backwards, stand-in did not train on the same rows"):
        comparison(tmp_path).runs([STAND_IN, backwards])


def test_a_side_that_fails_is_named(tmp_path: Path):
    with pytest.raises(SystemExit, match="stand-in failed at 1"):
        comparison(tmp_path).runs([replace(STAND_IN, module="tests.no_such_trainer")])


def test_the_rows_are_what_the_models_mlps_read_and_write(tmp_path: Path):
    text = Text(tmp_path, 512, held=256, prompts=1, spoken=2)
    rows = Rows(Job("any", str(text.written(256)), "", 512, 256, 8, 1.0, 1.0))
    inputs, outputs = rows.part(0, 512)
    source = text.source
    known = joined([source(number) for number in range(source.rows.chunks)])
    for layer, (x, y) in enumerate(zip(known.inputs, known.outputs, strict=True)):
        at = int((x - inputs[7, layer]).abs().sum(1).argmin())
        assert torch.equal(x[at], inputs[7, layer])
        assert torch.equal(y[at], outputs[7, layer])
    held = text.measured_on.inputs[0]
    assert float(torch.cdist(held, inputs[:, 0].contiguous()).median()) > 1


def test_what_is_planted_is_found_by_who_knows_it(tmp_path: Path):
    planted = Planted(tmp_path, 1024, held=2000)
    rows, width = planted.directions, planted.directions.shape[1]

    def coder(decoder: torch.Tensor) -> SparseAutoencoder:
        layer = TranscoderLayer(
            W_enc=rows, b_enc=torch.full((len(rows),), -0.4), b_dec=torch.zeros(width),
            decoder=DenseDecoder(decoder[:, None]), activation=ReLU(),
        )  # fmt: skip
        return SparseAutoencoder([layer])

    found = planted.figures(coder(rows))
    assert found["recovered"] == pytest.approx(1, abs=1e-5)
    assert found["recovered_firmly"] == 1
    half = torch.cat((rows[: PLANTED // 2], torch.randn(PLANTED - PLANTED // 2, width)))
    assert planted.figures(coder(half))["recovered_firmly"] == pytest.approx(0.5, abs=0.05)
    assert found["error"] < planted.figures(coder(half))["error"]


def point(side: str, l0: float, error: float, score: float, fast: float = 100.0) -> dict[str, Any]:
    return {
        "side": side, "against": "own", "setting": l0, "l0": l0, "error": error,
        "replacement_score": score, "tokens_a_cpu_second": fast,
    }  # fmt: skip


def test_curves_are_read_at_equal_l0():
    own = [point("own", 8, 0.1, 0.9), point("own", 2, 0.4, 0.5)]  # L0 4 is half-way over log L0
    assert at_l0(own, "error", 4) == pytest.approx(0.2)
    assert at_l0(own, "replacement_score", 4) == pytest.approx(0.7)
    assert at_l0(own, "error", 8) == pytest.approx(0.1)
    assert at_l0(own, "error", 1.9) is None
    assert at_l0(own, "divergence", 4) is None
    found = compared([*own, point("peer", 4, 0.25, 0.8, fast=50.0), point("peer", 9, 0.1, 0.9)])
    assert found[0]["error"] == pytest.approx(0.8)
    assert found[0]["replacement_score"] == pytest.approx(-0.1)
    assert found[0]["tokens_a_cpu_second"] == pytest.approx(2.0)
    assert "error" not in found[1]
    assert [one["side"] for one in found] == ["peer", "peer"]


def test_a_table_has_a_line_a_run():
    runs = [point("own", 2, 0.4, 0.5), point("own", 8, 0.1, 0.9), point("peer", 4, 0.25, 0.8)]
    lines = table(runs).splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| peer | 4 | 4.00 | 0.250 |")
    assert lines[-1].endswith("| 0.80 | -0.100 |")


def test_peers_without_a_checkout_are_left_out(tmp_path: Path):
    names = [
        side.name for side in sides(parsed([str(tmp_path), "--peers", "p", "--sparsify", "s"]))
    ]
    assert names == ["tracer", "tracer per-layer", "tracer sae", "SAELens", "sparsify"]
    assert [len(side.settings) for side in sides(parsed([str(tmp_path), "--peers", "p"]))] == [
        5
    ] * 4


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    data = torch.randn(64, 2, 3, 4).numpy()
    path = tmp_path / "rows.npy"
    __import__("numpy").save(path, data)
    return Rows(Job("any", str(path), str(tmp_path), 64, 16, 8, 1.0, 1.0))


def test_a_peers_hooks_see_the_rows(rows: Rows):
    model, seen = trainer_peers.Model(rows), {}
    for at, block in enumerate(model.h):
        block["mlp"].register_forward_hook(
            lambda _, args, output, at=at: seen.__setitem__(at, (args[0], output))
        )
    for item in list(trainer_peers.Sequences(rows.job)):
        first = int(item["input_ids"][0])
        model(item["input_ids"][None])
        inputs, outputs = rows.part(first, first + 16)
        for at, (read, written) in seen.items():
            assert torch.equal(read[0], inputs[:, at])
            assert torch.equal(written[0], outputs[:, at])
    assert len(seen) == 3
    assert rows.tokens == 64
    told = rows.checksum
    model(torch.zeros(1, 1, dtype=torch.long))  # a peer asks how wide outputs are
    assert (rows.tokens, rows.checksum) == (64, told)


def test_a_store_starts_at_the_first_rows_and_then_gives_all(rows: Rows):
    store = trainer_peers.Store(rows, before=2)
    first = [next(iter(store)) for _ in range(2)]
    assert rows.tokens == 0
    every = list(store)
    assert rows.tokens == 64
    assert len(every) == 4
    for one, other in zip(first, every[:2], strict=True):
        assert torch.equal(one[0], other[0])
    norms = torch.cat([read for read, _ in every]).norm(dim=-1).mean(0)
    assert torch.allclose(norms, torch.full((3,), 2.0), atol=1e-5)  # the root of the width


def test_the_gradient_that_stands_in_for_a_kernel_is_the_products():
    indices, values = torch.randint(8, (5, 3)), torch.randn(5, 3)
    dense, plain = torch.randn(5, 4), torch.zeros(5, 8)
    plain.index_put_((torch.arange(5)[:, None].expand(5, 3), indices), values, accumulate=True)
    found = trainer_peers._gradient(indices, values, dense, 8)
    assert torch.allclose(found, plain.T @ dense, atol=1e-6)


def test_jobs_are_read_as_they_were_written(tmp_path: Path, rows: Rows):
    rows.job.write(tmp_path / "job.json")
    assert Job.read(str(tmp_path / "job.json")) == rows.job
    rows.start()
    rows.batch(0)
    rows.finish(more=1)
    told = json.loads((tmp_path / TOLD).read_text())
    assert told["tokens"] == 16
    assert told["more"] == 1
