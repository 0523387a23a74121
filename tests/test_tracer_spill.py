"""Rows on disk: the same bytes, a killed trace that goes on, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracer
from replacement_models import ReplacementModel
from replacement_models.speed.allocator import STATM
from tracer.attribution import blocks, spill
from tracer.attribution.finished import WholeRun
from tracer.attribution.local_model import Reach
from tracer.errors import TraceError

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "llama_gqa_clt"
TOKENS = [1, 7, 12, 30, 5]
BLOCKS: dict[str, Any] = {"max_features": 20, "rank_every": 4}
"""Six blocks of rows, each chosen by those before it."""
KILLED = """
import os, signal, sys
import tracer
from tests.test_tracer_spill import BLOCKS, TOKENS, golden

blocks = int(sys.argv[1])
def kill(done, total):
    global blocks
    blocks -= 1
    if blocks == 0:
        os.kill(os.getpid(), signal.SIGKILL)

tracer.trace(golden(), TOKENS, spill_above=0.0, progress=kill, **BLOCKS)
"""


def golden() -> ReplacementModel:
    return ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return spill.unfinished()


def same(one: tracer.AttributionGraph, other: tracer.AttributionGraph) -> bool:
    return (
        one.nodes.equals(other.nodes)
        and one.edges.equals(other.edges)
        and np.array_equal(one.effect.data, other.effect.data)
        and one.metadata == other.metadata
    )


@pytest.mark.parametrize("how", [{}, BLOCKS, {"edge_floor": 0.01}, BLOCKS | {"edge_floor": 0.01}])
def test_a_trace_over_the_disk_is_the_same_and_leaves_no_file(cache: Path, how: dict[str, Any]):
    model = golden()
    plain = tracer.trace(model, TOKENS, spill_above=float("inf"), **how)
    assert not cache.exists()
    assert same(tracer.trace(model, TOKENS, spill_above=0.0, **how), plain)
    assert list(cache.iterdir()) == []


def test_a_killed_trace_goes_on_where_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch):
    died = subprocess.run([sys.executable, "-c", KILLED, "4"], cwd=ROOT)
    assert died.returncode == -signal.SIGKILL
    [left] = cache.iterdir()
    assert len(list(left.glob("*.safetensors"))) == 4
    swept, sweep = [], blocks.sweep

    def counted(*arguments: Any) -> Any:
        swept.append(1)
        return sweep(*arguments)

    monkeypatch.setattr(blocks, "sweep", counted)
    model = golden()
    graph = tracer.trace(model, TOKENS, spill_above=0.0, **BLOCKS)
    assert len(swept) == 2
    assert list(cache.iterdir()) == []
    assert same(graph, tracer.trace(model, TOKENS, **BLOCKS))


def test_rows_that_would_not_fit_in_memory_go_to_disk(cache: Path):
    model, needs = golden(), []
    plain = tracer.trace(model, TOKENS)
    tracer.trace(model, TOKENS, on_estimate=needs.append)
    assert not cache.exists()
    limit = (needs[0].whole - 1) / 1e9
    with pytest.raises(tracer.TraceError, match="memory: "):
        tracer.trace(model, TOKENS, memory_limit=limit, spill_above=float("inf"))
    graph = tracer.trace(model, TOKENS, memory_limit=limit, on_estimate=needs.append)
    assert cache.exists()
    assert needs[1].whole < needs[0].whole
    assert np.array_equal(graph.effect.data, plain.effect.data)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of resident memory so")
def test_what_was_read_of_rows_on_disk_takes_no_memory_any_more(tmp_path: Path):
    values = np.arange(1 << 22, dtype=np.float32)
    spill.save_file({"values": values}, tmp_path / "rows", {"check": "1"})
    file, arrays, about = spill._mapped(tmp_path / "rows")
    assert about == {"check": "1"}
    rows = arrays["values"].reshape(4, -1)
    run = spill.MappedRun(WholeRun(Reach.of(np.arange(rows.shape[1])), rows), file)
    into = np.zeros(rows.shape[1])
    before = resident()
    run.run.pass_on(np.ones(4), into)
    assert resident() - before > 0.9 * values.nbytes
    run.pass_on(np.ones(4), into)
    assert resident() - before < 0.3 * values.nbytes
    assert np.array_equal(into, 2 * values.reshape(4, -1).sum(0, dtype=np.float64))
    assert (run.rows, run.nbytes) == (4, 0)


def resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stopped(model: ReplacementModel, **how: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tracer.trace(model, TOKENS, spill_above=0.0, progress=stop, **BLOCKS | how)


def test_what_is_torn_on_disk_is_swept_again(cache: Path):
    model = golden()
    stopped(model)
    [left] = cache.iterdir()
    torn, flipped, *_ = sorted(left.glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-8])
    content = bytearray(flipped.read_bytes())
    content[-3] ^= 1
    flipped.write_bytes(content)
    graph = tracer.trace(model, TOKENS, spill_above=0.0, **BLOCKS)
    assert same(graph, tracer.trace(model, TOKENS, **BLOCKS))


def test_another_trace_has_rows_of_its_own(cache: Path):
    model = golden()
    stopped(model)
    stopped(model, targets=[3])
    stopped(model, edge_floor=0.001)
    assert len(list(cache.iterdir())) == 3


def test_a_second_process_at_the_same_trace_does_without(cache: Path):
    model = golden()
    seen: list[bool] = []

    def again(done: int, total: int) -> None:
        if not seen:
            seen.append(True)
            assert same(tracer.trace(model, TOKENS, spill_above=0.0, **BLOCKS), plain)
            assert len(list(cache.iterdir())) == 1

    plain = tracer.trace(model, TOKENS, **BLOCKS)
    assert same(tracer.trace(model, TOKENS, spill_above=0.0, progress=again, **BLOCKS), plain)
    assert seen


def test_a_full_disk_costs_nothing_but_the_files(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    model = golden()
    plain = tracer.trace(model, TOKENS, **BLOCKS)
    monkeypatch.setattr(spill, "save_file", full)
    assert same(tracer.trace(model, TOKENS, spill_above=0.0, **BLOCKS), plain)


def test_rows_that_nobody_took_up_again_are_removed(cache: Path):
    model = golden()
    stopped(model)
    [left] = cache.iterdir()
    old = time.time() - 8 * 86400
    os.utime(left, (old, old))
    stopped(model, targets=[3])
    assert left not in set(cache.iterdir())


def test_a_threshold_that_is_none_is_refused():
    with pytest.raises(TraceError, match="spill_above is -1"):
        tracer.trace(golden(), TOKENS, spill_above=-1)
