"""What befalls a process while it writes, and what several do at once."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tracer
from benchmarks.attacks.graph_files import same, sample
from benchmarks.attacks.model_files import GOLDEN, TOKENS
from benchmarks.attacks.trial import Attack, require
from graphs import AttributionGraph, GraphError
from graphs.exchange.files import is_passing
from replacement_models import ReplacementModel

STEPS = 10
"""Changes to the file system that saving a graph makes at most."""


class Steps:
    """What is called before every change to the file system, from inside `acting`."""

    def __init__(self) -> None:
        self.left = -1
        self.act: Any = None

    def step(self) -> None:
        """Count down, and act at the end."""
        if self.left >= 0 and threading.current_thread() is threading.main_thread():
            self.left -= 1
            if self.left < 0:
                self.act()


STEP = Steps()
METHODS = ("write_bytes", "replace", "mkdir", "unlink", "rmdir", "rename")


def watched() -> dict[str, Any]:
    """Put `STEP` before what changes a folder; returns what was there."""
    before = {name: getattr(Path, name) for name in METHODS}

    def wrapped(name: str) -> Any:
        def method(self: Path, *arguments: Any, **how: Any) -> Any:
            STEP.step()
            return before[name](self, *arguments, **how)

        return method

    for name in METHODS:
        setattr(Path, name, wrapped(name))
    return before


def restored(before: dict[str, Any]) -> None:
    """Undo `watched`."""
    for name, method in before.items():
        setattr(Path, name, method)


def killed(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """A copy of the process, killed before some step of saving over a graph."""
    old, new = sample(0), sample(1)
    before = watched()

    def attack() -> None:
        path = place / str(rng.choice(["g", "g.zip"]))
        STEP.left = -1
        old.save(path)
        step = int(rng.integers(STEPS))
        child = os.fork()
        if child == 0:
            STEP.act, STEP.left = lambda: os.kill(os.getpid(), signal.SIGKILL), step
            try:
                new.save(path)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        found = AttributionGraph.load(path)
        require(same(found, old) or same(found, new), "neither the old graph nor the new one")
        new.save(path)
        require(same(AttributionGraph.load(path), new), "saving again does not mend it")
        left = [one.name for one in place.iterdir() if is_passing(one.name)]
        require(not left, f"{left} is left by a dead process")

    try:
        while True:
            yield attack
    finally:
        restored(before)


def failing(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """A full disk, a folder that may not be written, Ctrl-C, an error of ours, at some step."""
    old, new = sample(0), sample(1)
    before = watched()
    errors = (
        OSError(28, "No space left on device"),
        OSError(13, "Permission denied"),
        KeyboardInterrupt(),
        MemoryError(),
        OSError(5, "Input/output error"),
    )

    def attack() -> None:
        path = place / str(rng.choice(["g", "g.zip"]))
        STEP.left = -1
        old.save(path)
        error = errors[int(rng.integers(len(errors)))]

        def fail() -> None:
            raise error

        STEP.act, STEP.left = fail, int(rng.integers(STEPS))
        try:
            new.save(path)
        except (KeyboardInterrupt, MemoryError):
            pass
        finally:
            STEP.left = -1
            found = AttributionGraph.load(path)
            require(same(found, old) or same(found, new), "neither the old graph nor the new one")
            left = [one.name for one in place.iterdir() if is_passing(one.name)]
            require(not left, f"{left} is left")

    try:
        while True:
            yield attack
    finally:
        restored(before)


def together(path: Path, graphs: list[AttributionGraph], forked: bool) -> AttributionGraph:
    """Save two graphs to one path at once, one of them in a process of its own if `forked`.

    Returns:
        What is read there meanwhile.
    """
    wrong: list[str] = []

    def save(graph: AttributionGraph) -> None:
        try:
            graph.save(path)
        except GraphError as error:
            wrong.append(str(error))

    child = os.fork() if forked else -1
    if child == 0:
        try:
            graphs[0].save(path)
        finally:
            os._exit(0)
    threads = [threading.Thread(target=save, args=[one]) for one in graphs[int(forked) : 2]]
    for thread in threads:
        thread.start()
    found = AttributionGraph.load(path)
    for thread in threads:
        thread.join()
    if forked:
        os.waitpid(child, 0)
    require(not wrong, f"a writer failed: {wrong}")
    return found


def crowded(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Two threads, or a thread and a process, that save to one path, and one that reads it."""
    graphs = [sample(seed) for seed in range(3)]

    def attack() -> None:
        path = place / str(rng.choice(["g", "g.zip"]))
        graphs[2].save(path)
        found = together(path, graphs, bool(rng.random() < 0.5))
        for one in (found, AttributionGraph.load(path)):
            require(any(same(one, graph) for graph in graphs), "a graph that nobody saved")
        left = [one.name for one in place.iterdir() if is_passing(one.name)]
        require(not left, f"{left} is left")

    while True:
        yield attack


def at_once(model: ReplacementModel, prompts: list[list[int]]) -> list[Any]:
    """Graphs, or errors, of prompts traced each in a thread."""
    found: dict[int, Any] = {}

    def call(number: int) -> None:
        try:
            found[number] = tracer.trace(model, prompts[number], max_features=2, max_logits=1)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=call, args=[number]) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(prompts))]


def threaded(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Two calls on one model in two threads: each gives what it gives alone."""
    golden = GOLDEN / "llama_gqa_clt"
    model = ReplacementModel.load(golden / "model", golden / "transcoders")
    prompts = [TOKENS[:3], TOKENS[1:4]]
    alone = [tracer.trace(model, one, max_features=2, max_logits=1) for one in prompts]

    def attack() -> None:
        order = [int(at) for at in rng.integers(len(prompts), size=2)]
        for at, one in zip(order, at_once(model, [prompts[at] for at in order]), strict=True):
            if isinstance(one, Exception):
                raise one
            require(same(one, alone[at]), "a thread's graph is another one")

    while True:
        yield attack
