"""Kill commands while they write, before every step that the file system sees of it.

`python -m tests.killed FOLDER` runs commands that write into FOLDER. When one comes to save, a
copy of the process (a fork, so that the model is loaded once) saves and is killed with SIGKILL
before its first step, another before its second, and so on until one gets through. After each,
what was to be replaced must load, as it was or as it was to become, and saving again must succeed
and leave nothing else behind. Prints the number of steps by command.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphs import AttributionGraph
from replacement_models import load_transcoder
from replacement_models.formats import files
from tracer.commands import main
from tracer.validation.validate import Validation

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "llama_gqa_clt"
SMALL = ["--model", str(GOLDEN / "model"), "--transcoders", str(GOLDEN / "transcoders")]
IDS = ["--tokens", "1,7,12,30,5", *SMALL]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod"}
"""What Python reports of changes to a file system, besides files opened to be written."""


def die_at(step: int) -> None:
    """Have this process killed before its `step`-th change to the file system, from 1 on."""
    steps = itertools.count(1)

    def here() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if opened or event in STEPS:
            here()

    sys.addaudithook(watch)
    for name in ("fsync", "write"):
        setattr(os, name, before(getattr(os, name), here))
    Path.write_bytes = in_halves(here)  # type: ignore[method-assign]


def before(function: Callable[..., Any], here: Callable[[], None]) -> Callable[..., Any]:
    """`function`, with a step before it."""

    def step_then_call(*arguments: Any) -> Any:
        here()
        return function(*arguments)

    return step_then_call


def in_halves(here: Callable[[], None]) -> Callable[[Path, Any], int]:
    """What writes a file with a step in its middle, where half of it is there."""

    def write(path: Path, content: Any) -> int:
        with path.open("wb") as file:
            half = len(content) // 2
            file.write(memoryview(content)[:half])
            file.flush()
            here()
            file.write(memoryview(content)[half:])
        return len(content)

    return write


def contents(path: Path) -> Any:
    """What stands at `path`, as comparing it needs; None where nothing does."""
    if not path.exists():
        return None
    if "transcoders" in path.name:
        return [layer.W_enc.tolist() for layer in load_transcoder(path).layers]
    graph = AttributionGraph.load(path)
    return graph.nodes.to_pylist(), graph.edges.to_pylist(), graph.metadata


def hidden(path: Path) -> list[str]:
    """What is left of writing, beside `path` and in it."""
    folders = [path.parent, path] if path.is_dir() else [path.parent]
    return [entry.name for one in folders for entry in one.iterdir() if entry.name[0] == "."]


def copy(source: Path, target: Path) -> None:
    """Have at `target` what is at `source`, if only nothing."""
    if target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    if source.exists():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def outcome(save: Callable[[], Any], step: int) -> int:
    """0 where saving came to its end, or the signal that ended it before a step."""
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            save()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_every_step(save: Callable[[], Any], path: Path, kept: Path) -> int:
    """Save in processes that are killed at one step after the other.

    Returns:
        How many steps saving takes.
    """
    copy(path, kept)
    before = contents(path)
    save()
    after = contents(path)
    assert after != before
    for step in itertools.count(1):
        copy(kept, path)
        ended = outcome(save, step)
        assert ended in (0, -signal.SIGKILL), (step, ended)
        left = contents(path)
        assert left in (before, after), f"step {step}: {path} is neither old nor new"
        if left == before:  # what a second try makes of it
            save()
            assert contents(path) == after
        if ended == 0:
            assert left == after
            return step - 1
        if path.is_dir() and kept.is_dir():
            assert (path / "notes.txt").read_text() == "mine"
    raise AssertionError


def run(arguments: list[str], owner: Any, name: str, path: Path) -> int:
    """Run a command; where it comes to save, kill it over and over. Returns the steps."""
    found: list[int] = []
    real = getattr(owner, name)

    def saving(*given: Any) -> Any:
        setattr(owner, name, real)
        kept = path.parent.with_name(f"kept_{path.name}")
        found.append(killed_at_every_step(lambda: real(*given), path, kept))
        copy(kept, path)
        return real(*given)

    setattr(owner, name, saving)
    main(arguments, standalone_mode=False)
    assert hidden(path) == []
    return found[0]


def everything(folder: Path) -> dict[str, int]:
    """Steps of every command."""
    old, new, packed, sets = (folder / name for name in ("old", "new", "g.zip", "transcoders"))
    trace = ["trace", *IDS, "-o"]
    first = {"trace": run([*trace, str(new)], AttributionGraph, "save", new)}
    other = ["trace", "--tokens", "1,7,12", *SMALL, "-o"]
    for path in (old, packed):
        main([*other, str(path)], standalone_mode=False)
    (old / "notes.txt").write_text("mine")
    (new / "notes.txt").write_text("mine")
    return first | {
        "trace over a folder": run([*trace, str(old)], AttributionGraph, "save", old),
        "trace over a zip": run([*trace, str(packed)], AttributionGraph, "save", packed),
        "prune over a folder": run(
            ["prune", str(new), "-o", str(old)], AttributionGraph, "save", old
        ),
        "prune over itself": run(
            ["prune", str(old), "-o", str(old), "--nodes", "0.5"], AttributionGraph, "save", old
        ),
        "validate": run(["validate", str(new), *SMALL, "--draws", "1"], Validation, "save", new),
        "convert": run(
            ["convert", str(GOLDEN / "transcoders"), str(sets)], files, "save_transcoder", sets
        ),
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(everything(Path(sys.argv[1]))) + "\n")
