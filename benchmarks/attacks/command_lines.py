"""Command lines: every command with one or two things that no shell should be able to hurt by."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np

import tracer
from benchmarks.attacks.model_files import GOLDEN, TOKENS
from benchmarks.attacks.trial import Attack, command, require
from graphs import AttributionGraph
from graphs.exchange.files import is_passing
from replacement_models import ReplacementModel
from tracer.commands import COMMANDS, main

SMALL = [
    "--model",
    str(GOLDEN / "llama_gqa_clt" / "model"),
    "--transcoders",
    str(GOLDEN / "llama_gqa_clt" / "transcoders"),
]
IDS = ["--tokens", ",".join(map(str, TOKENS))]
BASES: dict[str, list[str]] = {
    "trace": [*IDS, *SMALL, "--max-features", "4", "-o", "OUT.graph"],
    "show": ["GRAPH"],
    "prune": ["GRAPH", "-o", "OUT.graph"],
    "group": ["GRAPH", "-o", "OUT.graph"],
    "render": ["GRAPH", "-o", "OUT.dot"],
    "export": ["GRAPH", "-o", "OUT.csv"],
    "import": ["GRAPH.json", "-o", "OUT.graph"],
    "intervene": [*IDS, *SMALL, "--set", "0/1/1=0"],
    "generate": [*IDS, *SMALL, "--max-new-tokens", "1"],
    "lens": [*IDS, *SMALL],
    "convert": [SMALL[3], "OUT.set"],
    "heads": ["GRAPH", *SMALL],
    "attention": ["GRAPH", *SMALL, "--layer", "0", "--head", "0"],
    "label": ["GRAPH", "0/1", "a label"],
    "train": ["NONE.yaml"],
    "patch": ["a", "b", *SMALL, "--target", "c"],
    "direction": ["NONE.csv", *SMALL, "-o", "OUT.safetensors"],
}
"""Arguments with which each does something quick."""
SLOW = {"validate", "view", "features", "monitor", "drive"}
"""Of these only wrong options are tried."""
ODD = (
    *("", " ", "0", "-1", "-0", "1", "3", "999999999", "99999999999999999999", "1e308", "1e-320"),
    *("nan", "inf", "-inf", "0x10", "1_000", "²", "٣", "a", "\udcff", "\x00", "a\nb", "\x1b[2J"),
    *("/", "/dev/null", "/nonexistent/x", ".", "..", "~nosuchuser/x", "~", "x" * 300, "../../x"),
    *("0/0/0=1", "0/1/1=1e308", "9/9/9=1", "0/1:3/2=0.5", "0/-1/1=nan", "//=", "1,2,3", "1,,2"),
    *("meta", "cuda:99", "hpu", "privateuseone", "neurons", "error", "=1+1", "--", "-", "%s", "{}"),
    *(
        "GRAPH",
        "OUT.graph",
        "OUT.zip",
        "OUT.svg",
        "OUT.txt",
        "TEXT.txt",
        "BAD.zip",
        "1:2",
        ":",
        "a:b",
    ),
)


@cache
def options_of(name: str) -> tuple[click.Option, ...]:
    """Every option of a command."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return tuple(one for one in found.params if isinstance(one, click.Option) and one.opts)


def prepared(place: Path) -> dict[str, str]:
    """Files that command lines name."""
    model = ReplacementModel.load(SMALL[1], SMALL[3])
    tracer.trace(model, TOKENS, max_features=4).save(place / "given.graph")
    (place / "text.txt").write_bytes(b"\xff\xfe\x00latin\n")
    (place / "bad.zip").write_bytes(b"PK\x05\x06" + bytes(30))
    return {
        "GRAPH": str(place / "given.graph"),
        "TEXT": str(place / "text"),
        "BAD": str(place / "bad"),
        "OUT": str(place / "out"),
        "NONE": str(place / "none"),
    }


def placed(argument: str, known: dict[str, str]) -> str:
    """An argument with names of files in place of words."""
    for word, path in known.items():
        if argument == word or argument.startswith(f"{word}."):
            return path + argument.removeprefix(word)
    return argument


def drawn(rng: np.random.Generator) -> list[str]:
    """A command line with something odd in it."""
    names = sorted({*COMMANDS})
    name = names[int(rng.integers(len(names)))]
    arguments = list(BASES.get(name, []))
    options = options_of(name)
    for _ in range(int(rng.integers(1, 3))):
        value = ODD[int(rng.integers(len(ODD)))]
        kind = rng.random()
        if kind < 0.2 and arguments:
            arguments[int(rng.integers(len(arguments)))] = value
        elif kind < 0.25 and arguments:
            arguments.pop(int(rng.integers(len(arguments))))
        elif kind < 0.3:
            arguments.append(value)
        elif options:
            option = options[int(rng.integers(len(options)))]
            arguments += [option.opts[-1]] if option.is_flag else [option.opts[-1], value]
    if name in SLOW:
        arguments = [*arguments, "--no-such-option"]
    return [name, *arguments]


def clean(place: Path, before: set[Path]) -> None:
    """Fail where a command left part of something; remove what it wrote."""
    for path in set(place.iterdir()) - before:
        require(not is_passing(path.name) and ".partial" not in path.name, f"{path.name} is left")
        if path.name.startswith("out") and path.suffix in (".graph", ".zip"):
            AttributionGraph.load(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def odd_lines(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Command lines: refused in one line with exit code 2, or done with an output that loads."""
    known = prepared(place)
    held: dict[Any, ReplacementModel] = {}
    load: Any = ReplacementModel.load.__func__  # type: ignore[attr-defined]

    def loaded(cls: Any, *names: Any, **how: Any) -> ReplacementModel:
        key = repr((names, how))
        if key not in held:
            held[key] = load(cls, *names, **how)
        return held[key]

    ReplacementModel.load = classmethod(loaded)  # type: ignore[method-assign, assignment]
    given = place / "given.graph"
    whole = {path: path.read_bytes() for path in given.iterdir()}
    before = set(place.iterdir())

    def attack() -> None:
        line = [placed(one, known) for one in drawn(rng)]
        try:
            command(*line)
        finally:
            clean(place, before)
            if not given.is_dir() or {p: p.read_bytes() for p in given.iterdir()} != whole:
                shutil.rmtree(given, ignore_errors=True)
                given.mkdir()
                for path, content in whole.items():
                    path.write_bytes(content)

    try:
        while True:
            yield attack
    finally:
        ReplacementModel.load = classmethod(load)  # type: ignore[method-assign, assignment]
