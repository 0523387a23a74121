"""Training on several ranks: what one process would do; one line where one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks.training_plan import lines
from replacement_models import ModelError
from replacement_models.training import torchrun
from replacement_models.training.config import TrainConfig
from replacement_models.training.memory import Share, check_memory, planned
from replacement_models.training.ranks import ALONE, shards_of
from replacement_models.training.wiring import Wiring
from tests.training_runs import settings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("what", ["gradients", "batches", "runs", "rare"])
def test_ranks_do_what_one_process_does(what: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.ranks", str(tmp_path), what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout.endswith(f"{what}: held\n"), done.stderr


def test_ranks_meet_at_torchruns_store_or_at_that_of_the_first(monkeypatch: pytest.MonkeyPatch):
    config = TrainConfig.of({"ranks": {"wait": 5.0}})
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", str(kept.port)), ("TORCHELASTIC_RESTART_COUNT", "3"),
                        ("TORCHELASTIC_USE_AGENT_STORE", "True")):  # fmt: skip
        monkeypatch.setenv(name, value)
    torchrun._store(config).set("said", "by rank 0")
    assert kept.get("tracer/3/said") == b"by rank 0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    first = torchrun._store(config)
    monkeypatch.setenv("RANK", "1")
    torchrun._store(config).set("said", "by rank 1")
    assert first.get("said") == b"by rank 1"


def test_ranks_end_with_what_started_them_where_it_watches_them(monkeypatch: pytest.MonkeyPatch):
    ended: list[int] = []

    class AtOnce:
        def __init__(self, target: Any, args: Any, daemon: bool) -> None:
            assert daemon
            self.start = lambda: target(*args)

    monkeypatch.setattr(torchrun, "Thread", AtOnce)
    monkeypatch.setattr(torchrun, "_end_with", ended.append)
    monkeypatch.setattr(torchrun, "_store", lambda config: None)
    monkeypatch.setattr(torchrun, "_meet", lambda config, store: ALONE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(torchrun.WATCHED, raising=False)
    with torchrun.ranks_begun(TrainConfig()) as found:
        assert found is ALONE
    assert not ended
    monkeypatch.setenv(torchrun.WATCHED, "1")
    with torchrun.ranks_begun(TrainConfig()):
        assert ended == [os.getppid()]


def started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`tracer train` on two ranks, of a small run."""
    sections: dict[str, dict[str, Any]] = {
        "dictionary": {"features": 64, "kind": "cross_layer"},
        "data": {"prompts": 0, "rows": 4},
        "run": {"tokens": 25_600, "checkpoint_every": 5, "log_every": 1},
    }
    given = settings(folder / "run", **sections)
    (folder / "run.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    command = [sys.executable, str(ROOT / "cli.py"), "train", str(folder / "run.yaml")]
    return subprocess.Popen(
        [*command, "--ranks", "2", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    """Numbers of the processes that one has started, in the order in which it did."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(map(int, children.read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find a rank")
def test_a_rank_that_is_lost_costs_one_line_and_the_same_command_goes_on(tmp_path: Path):
    process = started(tmp_path)
    until = time.monotonic() + 600
    while not list((tmp_path / "run").glob("checkpoints/step_*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    printed, said = process.communicate(timeout=600)
    assert process.returncode == 2
    assert printed == ""
    assert said == (
        "Error: rank 1 of 2 was killed (SIGKILL, as where memory runs out); the same command goes "
        f"on from the last checkpoint in {tmp_path / 'run'}\n"
    )
    again = started(tmp_path)
    printed, said = again.communicate(timeout=600)
    assert (again.returncode, said) == (0, "")
    assert printed.count("Saved ") == 1
    assert (tmp_path / "run" / "transcoder").is_dir()
    wrong = started(tmp_path, "--set", "run.seed=3")
    printed, said = wrong.communicate(timeout=600)
    assert (wrong.returncode, printed) == (2, "")
    assert said.startswith(f"Error: output: the run in {tmp_path / 'run'} was begun with run.seed")
    assert said.count("\n") == 1


def under_torchrun(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A small run on two ranks that torchrun itself starts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(ROOT / "tests" / "under_torchrun.py")
    return subprocess.run(
        [sys.executable, *launcher, script, str(folder), *arguments],
        cwd=folder.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see threads")
def test_under_torchrun_a_lost_rank_is_said_once_and_the_run_goes_on(tmp_path: Path):
    lost = under_torchrun(tmp_path / "run", "6")
    assert lost.returncode == 1
    ours = [line for line in lost.stderr.splitlines() if line.startswith("Error: ")]
    assert ours == [
        "Error: rank 1 of 2 was lost; the same command goes on from the last checkpoint in "
        f"{tmp_path / 'run'}"
    ]
    assert lost.stdout == "rank 0 has left []\n"
    again = under_torchrun(tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert sorted(again.stdout.splitlines()) == [f"rank {n} has left []" for n in (0, 1)]
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert steps == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("sections", "count", "said"),
    [
        ({"ranks": {"shards": 3}}, 4, "ranks.shards: expected a divisor of the 4 ranks, got 3"),
        (
            {"dictionary": {"features": 100}},
            8,
            "dictionary.features: expected a multiple of the 8 ranks that share them out "
            "(ranks.shards), got 100",
        ),
        (
            {"ranks": {"shards": 2}, "run": {"batch": 257}},
            4,
            "run.batch: expected a multiple of the 2 ranks that share out its tokens (4 ranks "
            "over ranks.shards 2), got 257",
        ),
    ],
)
def test_what_does_not_divide_is_refused(sections: dict[str, Any], count: int, said: str):
    with pytest.raises(ModelError) as refused:
        shards_of(TrainConfig.of(sections), count)
    assert str(refused.value) == said


def test_the_plan_counts_shards_and_parts(monkeypatch: pytest.MonkeyPatch):
    config = TrainConfig.of({"dictionary": {"kind": "cross_layer", "features": 65_536}})
    wiring = Wiring.of(config.dictionary, 4)
    alone, split = (planned(config, wiring, 64, share) for share in (Share(), Share(4, 2, 8)))
    assert alone.parameters / split.parameters == pytest.approx(4, rel=0.01)
    assert split.buffer < 0.5 * alone.buffer
    assert split.batch < 0.2 * alone.batch
    place = "replacement_models.training.memory.free_on"
    monkeypatch.setattr(place, lambda device: round(8 * split.total / 0.9) + 8)
    check_memory(config, wiring, 64, Share(4, 2, 8))
    monkeypatch.setattr(place, lambda device: round(6 * split.total / 0.9))
    with pytest.raises(ModelError, match=r"on cpu for each rank, .* would fit: "):
        check_memory(config, wiring, 64, Share(4, 2, 8))


def test_the_guide_shows_what_the_plan_prints():
    page = (ROOT / "docs" / "guides" / "ranks.md").read_text(encoding="utf-8")
    shown = page.split("<!-- plan -->\n")[1].split("\n<!-- /plan -->")[0]
    assert shown == "\n".join(lines())
