"""Many prompts to one dataset: each exactly once, equal to single traces, whatever happens."""

import dataclasses
import errno
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyarrow import parquet

import tracer
from graphs import AttributionGraph, GraphError
from graphs.collections import shards
from graphs.collections.columns import TIMES
from replacement_models import ModelError, ReplacementModel
from replacement_models.one_writer import one_writer
from tests.killed import die_at
from tracer import Difference, GraphDataset, TraceError
from tracer.commands import main
from tracer.commands import many as many_command
from tracer.datasets import many, on_ray
from tracer.datasets import shard as shard_module
from tracer.datasets.plan import plan

GOLDEN = Path(__file__).parent / "data" / "golden" / "llama_gqa_clt"
SMALL = ["--model", str(GOLDEN / "model"), "--transcoders", str(GOLDEN / "transcoders")]
IDS = [[1, 7, 12, 30, 5], [1, 4, 4, 9], [1, 20], [1, 30, 2, 8, 8, 3], [1, 9, 9]]


@pytest.fixture(scope="module")
def golden() -> ReplacementModel:
    return ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(golden: ReplacementModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "runs"
    tracer.trace_many(golden, IDS, out, shard=2)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a dataset that two runs agree in."""
    files = (path for path in out.rglob("*") if path.is_file() and path.parent.name != TIMES)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def reasons(dataset: GraphDataset) -> dict[int, str]:
    rows = dataset.prompts.to_table(columns=["prompt", "reason"]).to_pylist()
    return {row["prompt"]: row["reason"] for row in rows if row["reason"] is not None}


def test_graphs_are_those_of_single_traces_pruned(golden: ReplacementModel, unbroken: Path):
    dataset = GraphDataset.load(unbroken)
    assert dataset.is_complete
    assert [number for number, _ in dataset.graphs()] == [*range(5)]
    for number, graph in dataset.graphs():
        single = tracer.trace(golden, IDS[number])
        assert graph.nodes.equals(single.prune().nodes)
        assert graph.edges.equals(single.prune().edges)
        assert graph.metadata == single.prune().metadata
        row = dataset.prompts.to_table().to_pylist()[number]
        assert row["traced_replacement"] == single.scores.replacement
        assert (row["traced_nodes"], row["traced_edges"]) == (
            single.nodes.num_rows,
            single.effect.nnz,
        )


def test_whole_graphs_and_settings_of_trace(golden: ReplacementModel, tmp_path: Path):
    dataset = tracer.trace_many(
        golden, IDS[:1], tmp_path / "runs", nodes=1, edges=1, max_features=5, skip_positions=0
    )
    single = tracer.trace(golden, IDS[0], max_features=5, skip_positions=0)
    assert dataset.graph(0).effect.nnz == single.effect.nnz
    assert dataset.graph(0).metadata["settings"]["max_features"] == 5


def test_attention_that_is_kept_comes_back(golden: ReplacementModel, tmp_path: Path):
    dataset = tracer.trace_many(golden, IDS[:2], tmp_path / "runs", keep_attention=True)
    assert not reasons(dataset)
    single = tracer.trace(golden, IDS[1], keep_attention=True).prune()
    assert dataset.graph(1).nodes.equals(single.nodes)
    assert dataset.graph(1).tables["steering"].equals(single.tables["steering"])
    assert dataset.graph(1).keeps_attention


def test_no_clock_stands_in_what_two_runs_agree_in(
    golden: ReplacementModel, unbroken: Path, tmp_path: Path
):
    tracer.trace_many(golden, IDS, tmp_path / "again", shard=2)
    assert contents(tmp_path / "again") == contents(unbroken)
    times = parquet.read_table(unbroken / TIMES)
    assert times["prompt"].to_pylist() == [*range(5)]
    assert (times["seconds"].to_numpy() > 0).all()


class Stop:
    """Presses Ctrl-C after so many prompts."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 2, 3])
def test_ctrl_c_keeps_what_is_finished_and_the_same_call_goes_on(
    golden: ReplacementModel, unbroken: Path, tmp_path: Path, after: int
):
    with pytest.raises(KeyboardInterrupt):
        tracer.trace_many(golden, IDS, tmp_path / "runs", shard=2, progress=Stop(after))
    assert len(GraphDataset.load(tmp_path / "runs")) == after
    seen: list[int] = []
    tracer.trace_many(
        golden, IDS, tmp_path / "runs", shard=2, progress=lambda done, total: seen.append(done)
    )
    assert seen == [*range(after, 6)]
    assert contents(tmp_path / "runs") == contents(unbroken)


def killed(work: Callable[[], Any], step: int) -> int:
    """How a copy of this process ended that was to be killed before a step of its writing."""
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_step_and_run_again_nothing_is_lost_or_doubled(
    golden: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shard_module, "KEEP_EVERY", 0.0)  # every prompt is written, shards anew

    def trace_all(out: Path) -> None:
        tracer.trace_many(golden, [*IDS[:2], [10**6]], out, shard=2)

    trace_all(tmp_path / "unbroken")
    expected, step, ends = contents(tmp_path / "unbroken"), 1, []
    while not ends or ends[-1] != 0:
        out = tmp_path / f"killed{step}"
        ends.append(killed(lambda out=out: trace_all(out), step))
        if out.exists() and (out / "settings.json").exists():
            dataset = GraphDataset.load(out)
            for number, graph in dataset.graphs():
                assert graph.metadata["token_ids"] == IDS[number]
        trace_all(out)
        assert contents(out) == expected, step
        step += 7
    assert set(ends) == {-signal.SIGKILL, 0}
    assert len(ends) > 10


def test_work_is_kept_from_time_to_time(
    golden: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shard_module, "KEEP_EVERY", 0.0)

    def look(done: int, total: int) -> None:
        if done:
            assert len(GraphDataset.load(tmp_path / "runs")) == done

    tracer.trace_many(golden, IDS, tmp_path / "runs", shard=4, progress=look)


def test_a_full_disk_is_said_in_one_line_and_costs_nothing_that_was_written(
    golden: ReplacementModel, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = parquet.write_table, []

    def full(*arguments: Any, **settings: Any) -> None:
        calls.append(arguments)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **settings)

    monkeypatch.setattr(shards.parquet, "write_table", full)
    with pytest.raises(GraphError, match=r"cannot write .*: No space left on device: choose"):
        tracer.trace_many(golden, IDS, tmp_path / "runs", shard=2)
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert len(GraphDataset.load(tmp_path / "runs")) == 2
    assert not list((tmp_path / "runs").rglob(".*"))
    tracer.trace_many(golden, IDS, tmp_path / "runs", shard=2)
    assert contents(tmp_path / "runs") == contents(unbroken)


def test_what_was_begun_with_something_else_is_not_gone_on_with(
    golden: ReplacementModel, unbroken: Path
):
    before = contents(unbroken)
    for given, said in (
        ({"shard": 3}, "shard 2, now it is 3"),
        ({"shard": 2, "nodes": 0.5}, "nodes 0.8, now it is 0.5"),
        ({"shard": 2, "max_logits": 3}, "max_logits 10, now it is 3"),
    ):
        with pytest.raises(TraceError, match=f"was begun with {said}"):
            tracer.trace_many(golden, IDS, unbroken, **given)
    with pytest.raises(TraceError, match="was begun with prompts 5, now it is 4"):
        tracer.trace_many(golden, IDS[:4], unbroken, shard=2)
    with pytest.raises(TraceError, match="was begun with prompts_digest"):
        tracer.trace_many(golden, IDS[::-1], unbroken, shard=2)
    assert contents(unbroken) == before


def test_another_models_prompts_are_not_added(golden: ReplacementModel, unbroken: Path):
    other = ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")
    with torch.no_grad():
        other.host.model.model.norm.weight *= 1.5
    with pytest.raises(TraceError, match="was begun with weights_digest"):
        tracer.trace_many(other, IDS, unbroken, shard=2)


def test_places_that_are_taken_are_left_alone(golden: ReplacementModel, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(TraceError, match=r"name (a|another) folder"):
            tracer.trace_many(golden, IDS, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_one_process_writes_at_a_time(golden: ReplacementModel, tmp_path: Path):
    out = tmp_path / "runs"
    with one_writer(out, "prompts"), pytest.raises(ModelError, match="written by another process"):
        tracer.trace_many(golden, IDS, out)
    assert not out.exists()


def test_a_prompt_that_fails_is_a_row_with_its_reason(golden: ReplacementModel, tmp_path: Path):
    prompts = [
        [1, 2, 3],
        [1, 10**6],
        [],
        " \n",
        {"tokens": [1, 2], "targets": [5000]},
        {"tokens": [1, 2], "targets": []},
        {"prompt": "a", "tokens": [1]},
        {"tokens": ["a"]},
        3.5,
        None,
        b"bytes",
        [True, 1],
        [1 << 80],
        {"tokens": [1, 2], "minus": 3},
        {"tokens": [1, 2], "targets": [{"difference": [1]}]},
        "\ud800",
        "a" * (1 << 22) + "a",
    ]
    dataset = tracer.trace_many(golden, prompts, tmp_path / "runs")
    found = reasons(dataset)
    assert sorted(found) == [*range(1, len(prompts))]
    assert all(reason and "\n" not in reason for reason in found.values())
    assert "is not in 0.." in found[1]
    assert "empty" in found[2]
    assert "empty" in found[3]
    assert found[4] == "target 5000 is not in 0..39"
    assert found[13] == "minus needs a target"
    with pytest.raises(GraphError, match=r"prompt 4 failed: target 5000"):
        dataset.graph(4)


def test_an_error_nobody_foresaw_is_the_row_of_one_prompt(
    golden: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tracer.datasets import one

    real = one.trace

    def breaks(model: Any, prompt: Any, **settings: Any) -> AttributionGraph:
        if list(prompt) == IDS[1]:
            raise RuntimeError("CUDA ran\nout of memory")
        return real(model, prompt, **settings)

    monkeypatch.setattr(one, "trace", breaks)
    dataset = tracer.trace_many(golden, IDS[:3], tmp_path / "runs")
    assert reasons(dataset) == {1: "RuntimeError: CUDA ran out of memory"}


def failing(monkeypatch: pytest.MonkeyPatch, *which: int) -> None:
    """Let traces of some prompts fail from now on."""
    from tracer.datasets import one

    real = tracer.trace

    def breaks(model: Any, prompt: Any, **settings: Any) -> AttributionGraph:
        if list(prompt) in [IDS[number] for number in which]:
            raise RuntimeError("out of memory")
        return real(model, prompt, **settings)

    monkeypatch.setattr(one, "trace", breaks)


@pytest.mark.parametrize("stopped", [False, True])
def test_failed_prompts_are_traced_anew_on_request_and_the_bytes_are_those_of_an_unbroken_run(
    golden: ReplacementModel,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
):
    out = tmp_path / "runs"
    failing(monkeypatch, 0, 3)
    assert [*reasons(tracer.trace_many(golden, IDS, out, shard=2))] == [0, 3]
    failing(monkeypatch)
    tracer.trace_many(golden, IDS, out, shard=2)
    assert [*reasons(GraphDataset.load(out))] == [0, 3]  # not asked for
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            tracer.trace_many(golden, IDS, out, shard=2, retry=True, progress=Stop(4))
        assert len(GraphDataset.load(out)) == 4
        tracer.trace_many(golden, IDS, out, shard=2)
    else:
        tracer.trace_many(golden, IDS, out, shard=2, retry=True)
    assert contents(out) == contents(unbroken)


def test_what_fails_again_is_a_row_again(
    golden: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing(monkeypatch, 0, 1)
    tracer.trace_many(golden, IDS, tmp_path / "runs", shard=5)
    failing(monkeypatch, 1)
    again = tracer.trace_many(golden, IDS, tmp_path / "runs", shard=5, retry=True)
    assert reasons(again) == {1: "RuntimeError: out of memory"}
    assert again.prompts.to_table()["prompt"].to_pylist() == [*range(5)]
    assert [number for number, _ in again.graphs()] == [0, 2, 3, 4]


def test_targets_of_a_prompt_come_before_those_of_all(golden: ReplacementModel, tmp_path: Path):
    prompts = [
        {"tokens": IDS[0], "targets": [3, 4], "language": "en", "level": 2},
        {"tokens": IDS[0], "target": 3, "minus": 4, "level": 1.5},
        {"tokens": IDS[0], "targets": {"difference": [3, 4], "weight": 2.0}, "language": None},
        {"tokens": IDS[0], "sure": True},
    ]
    dataset = tracer.trace_many(golden, prompts, tmp_path / "runs", targets=[7])
    assert not reasons(dataset)
    for number, targets in enumerate(
        ([3, 4], [Difference(3, 4)], [Difference(3, 4, weight=2.0)], [7])
    ):
        single = tracer.trace(golden, IDS[0], targets=targets).prune()
        assert dataset.graph(number).nodes.equals(single.nodes)
    held = dataset.prompts.to_table()
    assert held["language"].to_pylist() == ["en", None, None, None]
    assert held["level"].to_pylist() == [2.0, 1.5, None, None]
    assert held["sure"].to_pylist() == [None, None, None, True]
    assert json.loads(held["targets"][0].as_py()) == [3, 4]
    assert held["targets"][3].as_py() is None


@pytest.mark.parametrize(
    ("prompts", "settings", "said"),
    [
        ([], {}, "holds no prompt"),
        ([{"tokens": [1], "status": "x"}], {}, "'status' is one of the dataset's own"),
        ([{"tokens": [1], "": "x"}], {}, "a column is called ''"),
        ([{"tokens": [1], "\ud800": "x"}], {}, "a column is called"),
        ([{"tokens": [1]} | {f"c{n}": n for n in range(257)}], {}, "has 257 columns"),
        (IDS, {"nodes": 0}, "nodes is 0, expected a share"),
        (IDS, {"edges": 1.5}, "edges is 1.5, expected a share"),
        (IDS, {"edges": 0}, "edges is 0, expected a share"),
        (IDS, {"shard": 0}, "shard is 0, expected 1 to 1048576 prompts"),
        (IDS, {"shard": (1 << 20) + 1}, "shard is 1048577, expected 1 to 1048576 prompts"),
    ],
)
def test_what_is_wrong_with_all_prompts_is_refused_before_any_work(
    golden: ReplacementModel,
    tmp_path: Path,
    prompts: list[Any],
    settings: dict[str, Any],
    said: str,
):
    with pytest.raises(TraceError, match=said):
        tracer.trace_many(golden, prompts, tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()


def test_a_plan_takes_everything_and_the_longest_shard(golden: ReplacementModel, tmp_path: Path):
    prompts = many._read(IDS)
    longest = plan(golden, prompts, tmp_path, 1 << 20, (1, 1), {})
    assert (longest.shards, longest.numbers(0)) == (1, range(5))
    assert longest.about["pruned"] == {"nodes": 1, "edges": 1}
    by_two = plan(golden, prompts, tmp_path, 2, (1, 1), {})
    assert [by_two.numbers(at) for at in range(by_two.shards)] == [
        *(range(2), range(2, 4), range(4, 5))
    ]
    assert plan(golden, prompts[:4], tmp_path, 2, (1, 1), {}).shards == 2
    assert plan(golden, prompts, tmp_path, 1, (1, 1), {}).shards == 5


def test_a_setting_that_trace_has_not_is_a_mistake(golden: ReplacementModel, tmp_path: Path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_feature'"):
        tracer.trace_many(golden, IDS, tmp_path / "runs", max_feature=3)


# The command


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(main, ["trace", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_writes_the_dataset_of_the_call(
    golden: ReplacementModel, unbroken: Path, tmp_path: Path
):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"tokens": ids}) + "\n" for ids in IDS))
    out = tmp_path / "runs"
    result = run("--prompts", str(file), "-o", str(out), "--shard", "2", *SMALL)
    assert result.exit_code == 0, result.output
    assert "prompts\t5 traced, 0 failed\n" in result.output
    assert f"Saved {out}. In Python: tracer.GraphDataset.load('{out}')" in result.output
    assert contents(out) == contents(unbroken)
    assert run("--prompts", str(file), "-o", str(out), "--shard", "2", *SMALL).exit_code == 0
    assert contents(out) == contents(unbroken)


def test_progress_says_how_many_are_done_and_how_many_a_second(monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[int, int, str]] = []

    @contextmanager
    def shown(what: str) -> Iterator[Callable[[int, int, str], None]]:
        assert what == "Tracing prompts"
        yield lambda *given: told.append(given)

    clock = iter((10.0, 10.5, 14.0, 18.0))
    monkeypatch.setattr(many_command, "progress", shown)
    monkeypatch.setattr(many_command, "monotonic", lambda: next(clock))
    with many_command.rated_progress() as show:
        show(3, 9)
        show(4, 9)
        show(7, 9)
    assert told == [
        (3, 9, "Tracing prompts (3 of 9)"),
        (4, 9, "Tracing prompts (4 of 9, 0.25 graphs a second)"),
        (7, 9, "Tracing prompts (7 of 9, 0.5 graphs a second)"),
    ]


def test_the_command_names_what_failed(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"tokens": [1, 2, 3]}\n{"tokens": [1, 99]}\nnot json\n')
    result = run("--prompts", str(file), "-o", str(tmp_path / "runs"), *SMALL)
    assert result.exit_code == 0, result.output
    assert "prompts\t1 traced, 2 failed\n" in result.output
    assert "1\tprompt: token id 99 is not in 0..39\n" in result.output
    assert "2\tline 3: is no JSON" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["PROMPT", "--prompts", "x"], "expected PROMPT, --tokens or --prompts, got two"),
        (["PROMPT", "--nodes", "0.5"], "--nodes needs --prompts"),
        (["PROMPT", "--shard", "5"], "--shard needs --prompts"),
        (["PROMPT", "--retry"], "--retry needs --prompts"),
        (["--prompts", "missing.txt"], "missing.txt: cannot be read (No such file or directory)"),
        (["--prompts", "."], ".: cannot be read (Is a directory)"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {said}")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interrupted_the_command_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tracer.datasets import many

    real = many.done

    def second_stops(*arguments: Any) -> Any:
        if arguments[2] == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(many, "done", second_stops)
    file, out = tmp_path / "prompts.jsonl", tmp_path / "runs"
    file.write_text("".join(json.dumps({"tokens": ids}) + "\n" for ids in IDS))
    result = run("--prompts", str(file), "-o", str(out), *SMALL)
    assert result.exit_code == 130
    assert result.stderr.endswith("holds what was finished, the same command goes on from it\n")
    assert len(GraphDataset.load(out)) == 1


def test_numbers_of_every_row_are_finite_or_absent(unbroken: Path):
    held = GraphDataset.load(unbroken).nodes.to_table()
    assert np.isfinite(held["influence"].to_numpy()).all()


# Ray


def test_ray_writes_the_same_bytes_and_leaves_no_process(
    golden: ReplacementModel, unbroken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    ray = pytest.importorskip("ray")
    out, seen = tmp_path / "runs", []
    with pytest.raises(KeyboardInterrupt):
        tracer.trace_many(golden, IDS, out, shard=2, progress=Stop(1))
    tracer.trace_many(
        golden,
        IDS,
        out,
        shard=2,
        ray="local",
        workers=1,
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] == 1
    assert seen[-1] == 5
    assert contents(out) == contents(unbroken)
    assert not ray.is_initialized()
    assert "Traceback" not in capfd.readouterr().err


def test_ray_is_asked_for_what_is_missing_and_for_nothing_else(
    golden: ReplacementModel, tmp_path: Path
):
    out = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        tracer.trace_many(golden, IDS, out, shard=2, progress=Stop(3))
    settled = plan(golden, many._read(IDS), out, 2, (0.8, 0.98), {})
    assert [(number, [one for one, _ in some]) for number, some in on_ray._tasks(settled)] == [
        (1, [3]),
        (2, [4]),
    ]
    tracer.trace_many(golden, IDS, out, shard=2)
    assert on_ray._tasks(settled) == []


def test_ray_loads_no_model_that_was_made_in_memory(golden: ReplacementModel, tmp_path: Path):
    made = dataclasses.replace(golden, loaded_with=None)
    with pytest.raises(TraceError, match="the model was made in memory"):
        tracer.trace_many(made, IDS, tmp_path / "runs", ray="local")


def test_an_address_where_nobody_listens_is_refused_before_anything_is_written(
    golden: ReplacementModel, tmp_path: Path
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"[::1]:{port}"):
            with pytest.raises(TraceError, match=f"Ray at '{re.escape(address)}': "):
                tracer.trace_many(golden, IDS, tmp_path / "runs", ray=address)
    assert not (tmp_path / "runs").exists()


def test_workers_are_none_without_ray(golden: ReplacementModel, tmp_path: Path):
    with pytest.raises(TraceError, match="workers is 2: expected 1 or more, and ray with it"):
        tracer.trace_many(golden, IDS, tmp_path / "runs", workers=2)
    assert not (tmp_path / "runs").exists()
