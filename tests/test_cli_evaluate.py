"""`tracer evaluate` as a user meets it."""

import json
from pathlib import Path

import pytest

import tracer
from replacement_models import replacement
from tests.test_cli import defaults, python_defaults, refused, run

FEW = ("--max-tokens", "600", "--prompt-count", "1", "--alone-tokens", "0", "--swap-count", "20")
TINY = Path(__file__).parents[1] / "replacement_models" / "tiny"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)


def test_it_has_the_defaults_of_the_python_function():
    shown = defaults("evaluate")
    expected = python_defaults(tracer.evaluate)
    del expected["progress"]
    assert shown["transcoders"] == ()
    assert expected.pop("transcoders") is None
    assert {name: shown[name] for name in expected} == expected


def test_it_prints_every_figure_and_writes_figures_and_a_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replacement, "_notes", lambda *_: ("weights were dequantised",))
    result = run("evaluate", *FEW, "-o", "my.evaluation")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert result.stderr.endswith("weights were dequantised\n")
    for said in ("measured on", "all replaced", "by affine instead", "affine maps alone", "flip"):
        assert said in text
    assert "of the features that fire" in text
    assert text.endswith("To see it: open my.evaluation/evaluation.html\n")
    found = json.loads(Path("my.evaluation/evaluation.json").read_text())
    assert found["dictionaries"][0]["name"] == "embedded/clt"
    assert sorted(path.name for path in Path("my.evaluation").iterdir()) == [
        "evaluation.html",
        "evaluation.json",
    ]
    assert tracer.Evaluation.load("my.evaluation").figures == found


def test_graphs_are_of_the_prompts_in_the_file():
    Path("two.txt").write_text("The opposite of hot is\n\nThe day after Monday is\n")
    result = run("evaluate", *FEW, "--prompts", "two.txt", "-o", "mine")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("mine/evaluation.json").read_text())
    asked = ["The opposite of hot is", "The day after Monday is"]
    [one] = found["dictionaries"]
    assert [graph["prompt"] for graph in one["graphs"]["prompts"]] == asked


def test_mistakes_are_one_line_and_leave_nothing():
    assert refused("evaluate", "--model", "M").startswith("--model M needs --transcoders")
    line = refused("evaluate", "--model", "M", "--transcoders", "T")
    assert line.startswith("--model M needs --corpus: text to measure on")
    assert refused("evaluate", *FEW, "--corpus", "none.txt", "-o", "x").startswith("none.txt: ")
    assert "holds no evaluation" in refused("evaluate", "--earlier", ".", "-o", "x")
    Path("empty.txt").write_text("\n\n")
    assert refused("evaluate", "--prompts", "empty.txt").startswith("empty.txt: holds no prompt")
    assert refused("evaluate", "--transcoders", "nowhere", "-o", "x")
    assert refused("evaluate", "-o", "no/where").startswith(
        "cannot write no/where: expected a folder"
    )
    assert not Path("x").exists()


def test_interrupted_it_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tracer.evaluation.evaluate.measure", stop)
    found = run("evaluate", *FEW, "-o", "x")
    assert (found.exit_code, found.stderr) == (130, "Error: interrupted\n")
    assert not Path("x").exists()
