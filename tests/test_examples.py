"""The examples run from end to end, each in a folder of its own; warnings are errors."""

import gzip
import json
import runpy
import sys
from pathlib import Path

import pytest

from replacement_models.training.config_file import read_config

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
    assert (len(NOTEBOOKS), len(SCRIPTS)) == (3, 3)


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


def test_influence_prints_sentences_from_the_most_helpful_to_the_least(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("kronfluence")
    monkeypatch.setattr(sys, "argv", ["influence.py", "--sentences", "24", "--top", "3"])
    runpy.run_path(str(ROOT / "examples" / "influence.py"), run_name="__main__")
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "the opposite of hot is → cold: influence of 24 sentences"
    assert lines.pop(3) == "…"
    values = [float(line.split()[0]) for line in lines]
    assert len(values) == 6
    assert values == sorted(values, reverse=True)
    assert not any(mark in line for line in lines for mark in "[]{}<>")


SMOLLM2 = ROOT / "examples" / "smollm2"


@pytest.mark.parametrize("config", sorted(SMOLLM2.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_a_real_model_are_such(config: Path):
    found = read_config(config)
    assert found.dictionary.kind == config.stem
    assert found.dictionary.span == {"per_layer": None, "cross_layer": 4}[config.stem]
    assert found.steps > 0


def test_learning_is_drawn_from_what_a_run_wrote_down(tmp_path: Path):
    measured = {"error": 0.5, "error_weighted": 0.4, "divergence": 2.0, "agreement": 0.5}
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": 0, "tokens": 0, "cpu_seconds": 0.0, "measured": measured}]
    step = {"step": 1, "tokens": 512, "cpu_seconds": 5.0, "error": 0.6, "error_unweighted": 0.7}
    lines.append(step | {"l0": 4.0, "dead": 0.0})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        **{"tokens": 512, "cpu_seconds": 5.0, "replaced": {"divergence": 1.0}},
        **{name: [0.2, 0.4] for name in ("error", "error_weighted", "l0", "dead")},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    saved = run / "checkpoints" / "step_000000001"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text('{"notes": {"start_cpu_seconds": 2.0}}')
    sys.argv = ["learning.py", str(run), str(tmp_path / "out")]
    runpy.run_path(str(SMOLLM2 / "learning.py"), run_name="__main__")
    found = json.loads((tmp_path / "out" / "learning.json").read_text())
    first, last = found["measured"]
    assert found["training"] == [lines[1] | {"cpu_seconds": 7.0}]
    assert (first["cpu_seconds"], first["error"]) == (2.0, 0.5)
    assert (last["cpu_seconds"], last["tokens"]) == (7.0, 512)
    assert last["error"] == pytest.approx(0.3)
    assert (tmp_path / "out" / "learning.svg").read_text().count("<polyline") == 12


def test_text_of_packages_is_cut_into_documents(tmp_path: Path):
    docs = tmp_path / "docs"
    page = "<html><head><title>no</title></head><body><p>One¶</p><script>no</script><p>Two</p>"
    for name in ("debian-handbook/en-US", "anarchism", "python3.11-doc"):
        (docs / name).mkdir(parents=True)
        (docs / name / "page.html").write_text(page + "<p>" + "word " * 400)
    jargon = docs / "jargon-text" / "usr/share/doc/jargon-text"
    jargon.mkdir(parents=True)
    (jargon / "jargon.txt.gz").write_bytes(gzip.compress(b"jargon  file"))
    sys.argv = ["text.py", str(docs), str(tmp_path / "corpus.jsonl")]
    runpy.run_path(str(SMOLLM2 / "text.py"), run_name="__main__")
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
    texts = sorted(json.loads(line)["text"] for line in lines)
    assert len(texts) == 4
    assert texts[0].startswith("One\nTwo\nword word")
    assert texts[3] == "jargon file"
