"""The examples run from end to end, each in a folder of its own; warnings are errors."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in, and no arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example"])


def cells(notebook: Path) -> list[dict[str, object]]:
    """The cells with code."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_the_examples_promised_are_there():
    assert (len(NOTEBOOKS), len(SCRIPTS)) == (3, 2)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_the_first_cell_to_the_last(notebook: Path, tmp_path: Path):
    code = "\n".join("".join(cell["source"]) for cell in cells(notebook))  # type: ignore[arg-type]
    (tmp_path / "notebook.py").write_text(code, encoding="utf-8")
    runpy.run_path("notebook.py", run_name="__main__")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_what_it_printed(notebook: Path):
    assert all(cell["outputs"] == [] for cell in cells(notebook))
    assert all(cell["execution_count"] is None for cell in cells(notebook))


def test_a_texan_feature_matters_in_texas_alone(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(ROOT / "examples" / "many_prompts.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    shares = {line.split()[0]: float(line.split()[-2]) for line in lines}
    assert shares["Dallas"] > 0.05
    assert max(shares[city] for city in ("Oakland", "Seattle", "Chicago")) == 0


def test_bottlenecks_are_shares_in_order(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(ROOT / "examples" / "bottlenecks.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    shares = [float(line.split("%")[0]) for line in lines]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert 10 < shares[0] <= 100
