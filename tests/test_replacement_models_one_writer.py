"""Two processes at one output: the second is told; a killed one keeps nobody out."""

import os
import signal
import time
from pathlib import Path

import pytest

from replacement_models import ModelError
from replacement_models.one_writer import locked, one_writer


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(folder: Path) -> bool:
    try:
        with one_writer(folder, "output"):
            return False
    except ModelError as error:
        return f"output: {folder} is being written by another process" in str(error)


def test_a_folder_has_one_writer_and_another_folder_its_own(tmp_path: Path):
    with one_writer(tmp_path / "a", "output"):
        assert refused(tmp_path / "a")
        assert not refused(tmp_path / "b")
    assert not refused(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_of_a_distributed_run_the_first_process_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with one_writer(tmp_path, "output"):
        monkeypatch.setenv("RANK", "1")
        assert not refused(tmp_path)
        monkeypatch.setenv("RANK", "0")
        assert refused(tmp_path)


def test_a_killed_process_keeps_nobody_out(tmp_path: Path):
    child = os.fork()
    if child == 0:
        with one_writer(tmp_path / "a", "output"):
            (tmp_path / "held").touch()
            time.sleep(600)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert refused(tmp_path / "a")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not refused(tmp_path / "a")


def test_a_lock_is_let_go_of_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError, match="stop"), one_writer(tmp_path, "output"):
        raise RuntimeError("stop")
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert not refused(tmp_path)


def test_a_training_run_is_not_joined_by_another_process(tmp_path: Path):
    from replacement_models.training.config import TrainConfig
    from replacement_models.training.train import train
    from tests.training_runs import settings

    folder = tmp_path / "run"
    with one_writer(folder, "output"), pytest.raises(ModelError, match="by another process"):
        train(TrainConfig.of(settings(folder)))
    assert not folder.exists()
