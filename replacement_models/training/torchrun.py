"""Ranks as torchrun starts them: how they find each other, and the one line when one is lost.

Of several ranks one speaks: the first one to fail says why, the others end without a word.
"""

import atexit
import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread, current_thread, main_thread
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

from replacement_models.errors import ModelError
from replacement_models.training.config import TrainConfig
from replacement_models.training.ranks import ALONE, DATA, FEATURES, Ranks, shards_of

WATCHED = "TRACER_RANKS_ARE_WATCHED"
"""Set where the process that started the ranks says itself which one was lost."""
PATIENCE = 3.0
"""Seconds in which the others say that they are still there."""
SOON = 0.5
"""The same where only one is missing."""
BROKEN = (
    *("gloo", "nccl", "Connection closed", "Connection reset", "Broken pipe", "Timed out"),
    *("timed out", "Socket", "recvValue", "sendBytes"),
)
"""What torch says where another rank does not answer."""


class _StoppedError(RuntimeError):
    """This rank has been told to stop."""


class SaidElsewhereError(ModelError):
    """Another rank, or what started them all, says what is wrong."""


def number() -> int:
    """Of this process among the ranks; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if counted() > 1 else 0


def counted() -> int:
    """How many ranks there are, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_machine() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(counted()))) if counted() > 1 else 1


def device_of(name: str) -> str:
    """The device of this rank: of several graphics cards the one with its number here."""
    if counted() == 1 or name != "cuda":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def ranks_begun(config: TrainConfig) -> Iterator[Ranks]:
    """This process among its ranks, as torchrun's environment says; alone where it says nothing.

    Raises:
        ModelError: sizes do not divide; or a rank was lost on the way.
        SaidElsewhereError: something else failed, and another process says what.
    """
    count = counted()
    if count == 1:
        yield ALONE
        return
    if dist.is_initialized():
        raise ModelError("ranks: this process has a process group already; destroy it first")
    # Groups stand in cycles of references, and their threads end with them. Left to the end of the
    # interpreter, such a thread can abort a rank that has finished.
    atexit.register(gc.collect)
    store = _store(config)
    if WATCHED in os.environ:
        Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    with _told_to_stop():
        try:
            yield _meet(config, store)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            ours = isinstance(error, Exception) or type(error).__module__.startswith("torch")
            said = _said(error, config, store) if ours else error
            if said is error:
                raise
            raise said from error
        finally:
            _leave_group()


def _leave_group() -> None:
    """Those that wait for this one learn of it."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Take SIGTERM, which torchrun sends where a rank is lost, for an error as any other."""
    if current_thread() is not main_thread():
        yield
        return

    def stopped(*_: Any) -> None:
        raise _StoppedError

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with(parent: int) -> None:
    """Let no rank outlive what started it: the same command may be given again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _store(config: TrainConfig) -> Any:
    """Where ranks leave each other notes; torchrun keeps it, and it outlives any rank."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
    try:
        store = TCPStore(
            host,
            int(port),
            is_master=number() == 0 and not kept,
            timeout=timedelta(seconds=config.ranks.wait),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"ranks: {host}:{port}, where they meet, cannot be reached") from error
    return PrefixStore(f"tracer/{attempt}", store)


def _meet(config: TrainConfig, store: Any) -> Ranks:
    count = counted()
    shards = shards_of(config, count)
    kind = "cuda" if config.run.device.startswith("cuda") else "cpu"
    if kind == "cuda":
        _take_card(config.run.device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=number(),
        world_size=count,
        timeout=timedelta(seconds=config.ranks.wait),
    )
    mesh = init_device_mesh(kind, (count // shards, shards), mesh_dim_names=(DATA, FEATURES))
    return Ranks(count, number(), shards, mesh)


def _take_card(name: str) -> None:
    """Each rank of a machine takes one.

    Raises:
        ModelError: there are too few, or one is named for all.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cuda" or there < on_this_machine():
        raise ModelError(
            f"run.device: expected cuda, and a card for each of the {on_this_machine()} ranks of "
            f"this machine, got {name!r} and {there} cards"
        )
    torch.cuda.set_device(device_of(name))


def _said(error: BaseException, config: TrainConfig, store: Any) -> BaseException:
    """What this rank says: why it failed, which one was lost, or nothing."""
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is a line to be said
    lost = isinstance(error, _StoppedError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in BROKEN)
    )
    if lost and WATCHED in os.environ:
        return SaidElsewhereError("a rank was lost")
    try:
        store.set(f"ended/{number()}", "1")
        speaks = store.add("ended", 1) == 1
    except RuntimeError:  # kept by rank 0, which is gone
        return ModelError(_words("0", config)) if number() == 1 else SaidElsewhereError("")
    if not speaks:
        return SaidElsewhereError("another rank says why") if lost or _plain(error) else error
    return ModelError(_words(_missing(store), config)) if lost else error


def _plain(error: BaseException) -> bool:
    return isinstance(error, ModelError | OSError)


def _missing(store: Any) -> str:
    """The ranks that do not say that they have ended."""
    _leave_group()
    gone, begin = set(range(counted())), time.monotonic()
    while gone and time.monotonic() < begin + (PATIENCE if len(gone) > 1 else SOON):
        gone = {one for one in gone if not store.check([f"ended/{one}"])}
        time.sleep(0.05)
    return ", ".join(map(str, sorted(gone)))


def _words(gone: str, config: TrainConfig) -> str:
    """The one line: which ranks are gone, by their numbers, and what to do."""
    if not gone:  # all have been told to
        return f"stopped; {how_to_go_on(config)}"
    which = (
        f"ranks {gone} of {counted()} were" if "," in gone else f"rank {gone} of {counted()} was"
    )
    return f"{which} lost; {how_to_go_on(config)}"


def how_to_go_on(config: TrainConfig) -> str:
    """What to do where a run ended before its time."""
    return f"the same command goes on from the last checkpoint in {config.output}"
