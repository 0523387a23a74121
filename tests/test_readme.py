"""The README says nothing that does not hold."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from docs.fill_readme import SHOWN, between, main, output, speed_in_short, speed_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `tracer ...` line, split as a shell would."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("tracer ")]


def test_the_python_blocks_run_as_they_stand(tmp_path: Path):
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 4


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


def without_conservation(text: str) -> str:
    """The text less the one line in which rounding shows."""
    lines = text.split("conservation error", 1)
    return lines[0] + lines[1].split("\n", 1)[1]


def test_the_output_shown_is_what_the_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    printed = without_conservation(output("demo/dallas.graph", "demo/dallas.dot"))
    shown = without_conservation(SHOWN.findall(README)[0]).replace("dallas.svg\n", "dallas.dot\n")
    fresh, old = (
        (NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)])
        for text in (printed.replace("-o demo/dallas.svg", "-o demo/dallas.dot"), shown)
    )
    assert fresh[0] == old[0], "make readme"
    assert fresh[1] == pytest.approx(old[1], rel=0.02, abs=0.002), "make readme"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_has_only_options_that_exist(words: list[str]):
    command = main.get_command(click.Context(main), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])


def test_every_command_is_shown():
    assert {words[1] for words in commands()} == {*main.list_commands(click.Context(main))}


def test_nothing_is_left_to_fill_in():
    assert "TODO" not in README


@pytest.mark.parametrize(
    ("file", "mark", "shown"),
    [
        ("benchmarks/README.md", "measured speed", speed_table),
        ("README.md", "speed in short", speed_in_short),
    ],
)
def test_the_speeds_are_what_the_benchmark_wrote(file: str, mark: str, shown: Callable[[], str]):
    found = between(mark).search((ROOT / file).read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == shown(), "make readme"
