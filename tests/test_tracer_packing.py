"""Rows finished and ranked on a device: the same graphs as in main memory.

The device is main memory treated as a GPU's. Products are made as on the CPU here, so effects are
the same bits; sums of rows are added up in another order there, and may differ in the last.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import tracer
from tests.random_hybrids import hybrid
from tests.random_models import PROMPT, replacement_model
from tests.test_tracer_memory import sizes
from tests.test_tracer_spill import BLOCKS
from tracer.attribution import (
    blocks,
    finished,
    frontier_on_device,
    local_model,
    memory,
    packing,
    scoring,
    sweep,
)
from tracer.attribution.finished import FlooredRun, WholeRun
from tracer.attribution.frontier import Frontier
from tracer.attribution.frontier_on_device import FrontierOnDevice
from tracer.attribution.local_model import Reach, linearise
from tracer.attribution.memory import estimate, with_room_to_rank
from tracer.attribution.targets import feature_rows


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rows go the way they go on a GPU."""
    monkeypatch.setattr(blocks, "needed", lambda device: True)
    return monkeypatch


def assert_same(found: tracer.AttributionGraph, expected: tracer.AttributionGraph) -> None:
    """The same nodes, effects bit by bit, sums but for the last."""
    assert found.nodes["id"].equals(expected.nodes["id"])
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found.effect, name), getattr(expected.effect, name))
    for name in ("constant", "pre_activation"):
        assert found.nodes[name].equals(expected.nodes[name])
    for name in ("left_out", "left_out_absolute", "influence"):
        one, other = (graph.nodes[name].to_numpy() for graph in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [1 << 22, 100])
@pytest.mark.parametrize("floor", [0.0, 1e-3, 0.02, 0.2])
@pytest.mark.parametrize("cap", [{}, {"max_features": 40, "rank_every": 12}])
@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [("gpt2", "per_layer", torch.float64), ("gpt_neox", "cross_layer", torch.float32)],
)
def test_rows_from_a_device_make_the_same_graph(
    family: str,
    kind: str,
    dtype: torch.dtype,
    cap: dict[str, Any],
    floor: float,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
):
    model = replacement_model(family, dtype, kind=kind)
    expected = tracer.trace(model, PROMPT, edge_floor=floor, **cap)
    monkeypatch.setattr(blocks, "needed", lambda device: True)
    monkeypatch.setattr(packing, "TILE", tile)
    monkeypatch.setattr(frontier_on_device, "TILE", tile)
    assert_same(tracer.trace(model, PROMPT, edge_floor=floor, **cap), expected)


@pytest.mark.parametrize(
    ("family", "kind", "floor"),
    [
        ("llama", "cross_layer", 0.0),
        ("gemma2", "per_layer", 0.01),
        ("qwen3_next", None, 0.0),
        ("zamba2", None, 0.0),
    ],
)
def test_the_whole_way_of_a_gpu_makes_the_same_graph(
    away: pytest.MonkeyPatch, family: str, kind: str | None, floor: float
):
    """Products of all positions at once, in blocks of keys, as well; in float32 they differ."""
    how: dict[str, Any] = {"max_features": 40, "rank_every": 12, "edge_floor": floor}
    model = hybrid(family) if kind is None else replacement_model(family, kind=kind)
    with away.context() as here:
        here.setattr(blocks, "needed", lambda device: False)
        expected = tracer.trace(model, PROMPT, **how)
    for module in (scoring, sweep):
        away.setattr(module, "batched", lambda like: True)
    away.setattr(local_model, "needed", lambda device: True)
    away.setattr(sweep, "KEYS", 2)
    found = tracer.trace(model, PROMPT, **how)
    assert found.nodes["id"].equals(expected.nodes["id"])
    assert abs(found.effect - expected.effect).max() < 1e-12


@pytest.mark.parametrize("floor", [0.0, 0.02])
@torch.no_grad()
def test_packed_rows_are_those_finished_in_main_memory(
    floor: float, monkeypatch: pytest.MonkeyPatch
):
    """Any numbers, rows of nothing but zeros among them, and numbers where nothing reaches."""
    model = replacement_model("llama")
    local = linearise(model, model.record(PROMPT), skip_positions=1)
    columns = np.arange(len(local.features))
    rows = feature_rows(model, model.record(PROMPT), local, columns)
    dense = torch.randn(len(rows), local.columns, generator=torch.Generator().manual_seed(0))
    dense[7] = dense[20] = 0
    dense[30, 3:] = 0
    effects = blocks.Effects(dense.clone(), torch.ones(len(rows)))
    parts = finished.parts_of(local, rows)
    finish, total = packing.Away.of(local, dense, floor).begin(rows, columns, parts, floor, effects)
    block, scratch = finish(), torch.empty(10**6, dtype=torch.float64)
    assert block.places == finished.places_of(rows, parts)
    for (part, reach), run in zip(parts, block.effects, strict=True):
        expected, sums = finished.finished(dense[part], reach, floor, scratch)
        np.testing.assert_array_equal(run.dense(local.columns), expected.dense(local.columns))
        np.testing.assert_allclose(block.sums.signed[part], sums.signed, atol=1e-12)
        np.testing.assert_allclose(block.sums.absolute[part], sums.absolute, rtol=1e-14)
        np.testing.assert_allclose(block.sums.floored[part], sums.floored, atol=1e-12)
        np.testing.assert_allclose(total[part].numpy(), sums.absolute, rtol=1e-14)
        there = effects.sources[part].numpy()
        np.testing.assert_array_equal(there, run.dense(local.columns))


@torch.no_grad()
def test_a_row_of_infinite_effects_takes_no_room_from_others():
    """All of them are as large as the floor says, more than there is room for."""
    model = replacement_model("gpt2")
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    columns = np.arange(len(local.features))
    rows = feature_rows(model, recording, local, columns)
    dense = torch.ones(len(rows), local.columns)
    dense[3] = float("inf")
    parts = finished.parts_of(local, rows)
    effects = blocks.Effects(dense, torch.ones(len(rows)))
    away = packing.Away.of(local, dense, 0.001)
    block = away.begin(rows, columns, parts, 0.001, effects)[0]()
    found = np.concatenate([run.dense(local.columns) for run in block.effects])
    others = np.arange(len(rows)) != 3
    reaching = [np.full(part.stop - part.start, reach.count) for part, reach in parts]
    assert not found[3].any()
    assert np.isinf(block.sums.absolute[3])
    np.testing.assert_array_equal(found.sum(1)[others], np.concatenate(reaching)[others])


def run_of(dense: np.ndarray, floored: bool) -> finished.RowRun:
    return FlooredRun(sparse.csr_array(dense)) if floored else whole(dense)


def whole(dense: np.ndarray) -> WholeRun:
    return WholeRun(Reach.of(np.arange(dense.shape[1])), dense)


def random_rows(seed: int, floored: bool) -> list[Any]:
    """What frontiers learn: blocks of runs with their sums, sites, own columns and weights."""
    draw, found = np.random.default_rng(seed), []
    for site, own in ((9, [-1, -1]), (6, [12, 3]), (6, [14]), (3, [4, 5, 6]), (8, [15])):
        # Small whole numbers: many ties.
        dense = draw.integers(-2, 3, (len(own), 20)) * (np.arange(20) < 2 * site)
        total = np.abs(dense).sum(1) + draw.integers(0, 2, len(own))
        weight = np.where(np.array(own) < 0, 0.5, 0.0)
        runs = [run_of(dense.astype(np.float64), floored)]
        found.append((runs, total.astype(float), (np.full(len(own), site), np.array(own)), weight))
    return found


@pytest.mark.parametrize("tile", [1, 1 << 20])
@pytest.mark.parametrize("floored", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_both_frontiers_choose_the_same_features_and_break_ties_alike(
    seed: int, floored: bool, tile: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frontier_on_device, "TILE", tile)
    order = np.random.default_rng(seed).permutation(16)
    like = torch.zeros(0, dtype=torch.float64)
    here = Frontier.over(order, columns=20)
    swept, read = (FrontierOnDevice.over(order, 20, 9, like) for _ in range(2))
    for runs, total, own, weight in random_rows(seed, floored):
        here.add(runs, total, own, weight)
        read.add(runs, total, own, weight)
        dense = torch.from_numpy(np.concatenate([run.dense(20) for run in runs]))
        swept.take(dense, torch.from_numpy(total), own, weight)
        for there in (swept, read):
            np.testing.assert_allclose(there.influence().numpy(), here.influence(), atol=1e-14)
            for count in (1, 4, 9):
                np.testing.assert_array_equal(there.next(count), here.next(count))


def test_a_killed_trace_tells_the_device_of_rows_on_the_disk(
    away: pytest.MonkeyPatch, tmp_path: Path
):
    away.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, read = replacement_model("gpt2", kind="cross_layer"), []
    really = FrontierOnDevice.add
    away.setattr(FrontierOnDevice, "add", lambda *given: read.append(1) or really(*given))

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise RuntimeError("stop")

    for floor in (0.0, 0.02):
        how = BLOCKS | {"edge_floor": floor, "spill_above": 0.0}
        with pytest.raises(RuntimeError, match="stop"):
            tracer.trace(model, PROMPT, progress=stop, **how)
        assert not read
        found = tracer.trace(model, PROMPT, **how)
        assert len(read) >= 3
        assert_same(found, tracer.trace(model, PROMPT, **BLOCKS, edge_floor=floor))
        read.clear()


def test_rows_are_ranked_in_main_memory_where_the_device_has_no_room(away: pytest.MonkeyPatch):
    model, made = replacement_model("gpt2"), []
    how: dict[str, Any] = {"max_features": 40, "rank_every": 12}
    there = tracer.trace(model, PROMPT, **how)
    really = Frontier.over
    away.setattr(Frontier, "over", lambda *given: made.append(1) or really(*given))
    tracer.trace(model, PROMPT, **how)
    assert not made
    away.setattr(memory, "ranking_bytes", lambda sizes: 1e18 * sizes.ranked_there)
    assert_same(tracer.trace(model, PROMPT, **how), there)
    assert made


def test_a_device_ranks_if_it_then_holds_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_on", lambda device: 1e15)
    model, given = replacement_model("gpt2"), replace(sizes(on_cpu=False), ranked_there=True)
    whole = estimate(given).device / memory.GB
    assert with_room_to_rank(model, given, whole + 1e-3).ranked_there
    less = with_room_to_rank(model, given, whole - 1e-3)
    assert not less.ranked_there
    rows = 1010 * given.columns * 4
    assert rows < estimate(given).device - estimate(less).device < rows + 2e8
