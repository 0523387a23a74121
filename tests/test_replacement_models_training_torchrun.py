"""A rank among others, seen from inside one process: what it is told, and what it says."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import torch
from torch import distributed as dist

from replacement_models import ModelError
from replacement_models.training import torchrun
from replacement_models.training.config import TrainConfig
from replacement_models.training.ranks import ALONE, Ranks
from replacement_models.training.torchrun import SaidElsewhereError

CONFIG = TrainConfig.of({"output": "runs/first"})
GOES_ON = "the same command goes on from the last checkpoint in runs/first"
SAYS = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1",
}  # fmt: skip


class Notes:
    """What ranks leave each other, as TCPStore keeps it."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def set(self, key: str, value: str) -> None:
        self.kept[key] = int(value)

    def add(self, key: str, more: int) -> int:
        self.kept[key] = self.kept.get(key, 0) + more
        return self.kept[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)


class Gone(Notes):
    """The same where the rank that keeps it is lost."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Broken pipe")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No rank's environment, little patience, and SIGTERM as it was."""
    for name in (*SAYS, torchrun.WATCHED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torchrun, "PATIENCE", 0.3)
    monkeypatch.setattr(torchrun, "SOON", 0.1)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def rank(monkeypatch: pytest.MonkeyPatch, **says: str) -> None:
    """This process as one of four ranks, two of them on this machine."""
    for name, value in {**SAYS, **says}.items():
        monkeypatch.setenv(name, value)


def test_a_rank_knows_its_number_its_neighbours_and_its_card(monkeypatch: pytest.MonkeyPatch):
    found = torchrun.number(), torchrun.counted(), torchrun.on_this_machine()
    assert found == (0, 1, 1)
    assert torchrun.device_of("cuda") == "cuda"
    rank(monkeypatch)
    found = torchrun.number(), torchrun.counted(), torchrun.on_this_machine()
    assert found == (1, 4, 2)
    assert [torchrun.device_of(name) for name in ("cuda", "cpu")] == ["cuda:1", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "1")  # what is left of another run does not count
    assert (torchrun.number(), torchrun.on_this_machine()) == (0, 1)


@pytest.mark.parametrize(
    ("name", "cards", "refused"),
    [("cuda", 2, False), ("cuda", 3, False), ("cuda", 1, True), ("cuda:0", 2, True)],
)
def test_every_rank_of_a_machine_needs_a_card_of_its_own(
    name: str, cards: int, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    rank(monkeypatch)
    taken: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    if refused:
        said = rf"a card for each of the 2 ranks of this machine, got '{name}' and {cards} cards"
        with pytest.raises(ModelError, match=said):
            torchrun._take_card(name)
        assert not taken
    else:
        torchrun._take_card(name)
        assert taken == ["cuda:1"]


def test_what_follows_its_parent_ends_once_that_is_gone(monkeypatch: pytest.MonkeyPatch):
    parents, ended = iter([5, 5, 1]), []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(torchrun.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "_exit", ended.append)
    torchrun._end_with(5)
    assert ended == [1]
    assert not list(parents)


def test_a_process_alone_or_in_a_group_already_meets_nobody(monkeypatch: pytest.MonkeyPatch):
    with torchrun.ranks_begun(CONFIG) as ranks:
        assert ranks is ALONE
    rank(monkeypatch)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with (
        pytest.raises(ModelError, match="has a process group already"),
        torchrun.ranks_begun(CONFIG),
    ):
        pass


def test_being_told_to_stop_is_an_error_as_any_other_and_only_meanwhile():
    def mine(*_: Any) -> None:
        """A handler of ours."""

    def elsewhere() -> None:
        with torchrun._told_to_stop():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[Any] = []
    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(torchrun._StoppedError), torchrun._told_to_stop():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is mine
    thread = Thread(target=elsewhere)  # which may set no handler
    thread.start()
    thread.join()
    assert seen == [mine]


@contextmanager
def failing(
    store: Notes, monkeypatch: pytest.MonkeyPatch, groups: list[str] | None = None
) -> Iterator[None]:
    """Inside a run of ranks that keep their notes in a store; groups that are not left yet."""

    def meet(*_: object) -> Ranks:
        if groups is not None:
            groups.append("ours")
        return ALONE

    monkeypatch.setattr(torchrun, "_store", lambda config: store)
    monkeypatch.setattr(torchrun, "_meet", meet)
    with torchrun.ranks_begun(CONFIG):
        yield


LOST = [RuntimeError("[gloo] Connection closed by peer"), torchrun._StoppedError()]


@pytest.mark.parametrize("error", LOST)
def test_the_first_rank_to_miss_others_names_those_that_say_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    rank(monkeypatch)
    for ended, said in (
        ((0, 3), f"rank 2 of 4 was lost; {GOES_ON}"),
        ((3,), f"ranks 0, 2 of 4 were lost; {GOES_ON}"),
        ((0, 2, 3), f"stopped; {GOES_ON}"),
    ):
        store = Notes()
        store.kept = {f"ended/{one}": 1 for one in ended}
        with pytest.raises(ModelError) as refused, failing(store, monkeypatch):
            raise error
        assert (str(refused.value), type(refused.value)) == (said, ModelError)
        assert refused.value.__cause__ is error
        assert store.check(["ended/1"])


@pytest.mark.parametrize("error", [*LOST, ModelError("no text"), OSError("full"), TypeError("?")])
def test_after_the_first_rank_only_a_mistake_of_ours_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    rank(monkeypatch)
    store = Notes()
    store.kept["ended"] = 1
    with pytest.raises(Exception, match=r".*") as found, failing(store, monkeypatch):
        raise error
    if isinstance(error, TypeError):
        assert found.value is error
    else:
        assert isinstance(found.value, SaidElsewhereError)


def test_the_group_is_left_so_that_no_other_rank_waits_for_this_one(
    monkeypatch: pytest.MonkeyPatch,
):
    rank(monkeypatch)
    groups: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(groups))
    monkeypatch.setattr(dist, "destroy_process_group", groups.clear)
    for error in (LOST[0], ModelError("no text")):
        with pytest.raises(ModelError), failing(Notes(), monkeypatch, groups):
            raise error
        assert not groups
    with failing(Notes(), monkeypatch, groups):
        assert groups == ["ours"]
    assert not groups


def test_the_first_rank_to_fail_says_why(monkeypatch: pytest.MonkeyPatch):
    rank(monkeypatch)
    for error in (ModelError("no text"), RuntimeError("shapes differ"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as found, failing(Notes(), monkeypatch):
            raise error
        assert found.value is error


def test_what_watches_ranks_says_itself_which_was_lost(monkeypatch: pytest.MonkeyPatch):
    rank(monkeypatch)
    monkeypatch.setenv(torchrun.WATCHED, "1")
    monkeypatch.setattr(torchrun, "_end_with", lambda parent: None)
    for error in LOST:
        store = Notes()
        with pytest.raises(SaidElsewhereError), failing(store, monkeypatch):
            raise error
        assert not store.kept
    own = ModelError("no text")
    with pytest.raises(ModelError) as found, failing(Notes(), monkeypatch):
        raise own
    assert found.value is own


@pytest.mark.parametrize("number", ["1", "2"])
def test_where_the_first_rank_takes_the_notes_with_it_the_second_speaks(
    number: str, monkeypatch: pytest.MonkeyPatch
):
    rank(monkeypatch, RANK=number)
    with pytest.raises(ModelError) as refused, failing(Gone(), monkeypatch):
        raise LOST[0]
    if number == "1":
        assert str(refused.value) == f"rank 0 of 4 was lost; {GOES_ON}"
    assert isinstance(refused.value, SaidElsewhereError) is (number == "2")
