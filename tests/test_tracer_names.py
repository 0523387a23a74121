"""One import is enough: `tracer` has what a user needs, and loads it when it is used."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import graphs
import replacement_models
import tracer
from tracer import namesakes

ROOT = Path(__file__).parents[1]
LAZY = [tracer, replacement_models]


def declared(module: ModuleType) -> set[str]:
    """Names that a type checker sees imported."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if ast.unparse(node).startswith("if TYPE_CHECKING:")]
    return {
        alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("module", LAZY, ids=lambda module: module.__name__)
def test_every_name_offered_is_there_and_seen_by_a_type_checker(module: ModuleType):
    assert set(module.__all__) == set(module._PLACES) == declared(module)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__name__.rpartition(".")[2] == name


@pytest.mark.parametrize("module", LAZY, ids=lambda module: module.__name__)
def test_no_other_name_is_there(module: ModuleType):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nil'"):
        _ = module.nil


def test_names_are_those_of_the_packages():
    assert tracer.AttributionGraph is graphs.AttributionGraph
    assert tracer.ReplacementModel is replacement_models.ReplacementModel
    assert tracer.patching is importlib.import_module("tracer.patching")
    assert {*graphs.__all__} <= {*tracer.__all__}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that stands first on its module search path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(params=["graphs.py", "replacement_models/__init__.py"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A module of a user's own that is called as one of our packages."""
    file: Path = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text("print('plotting')\n")
    return file


def refusal(file: Path) -> str:
    """The one line that says what is wrong."""
    name = (file.parent if file.name == "__init__.py" else file).stem
    return (
        f"{file} hides tracer's own package {name!r}: rename it, or run where it is not on the "
        "module search path"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import tracer; tracer.trace",
        "from tracer import ReplacementModel",
        "from tracer import patching",
        "import tracer.patching",
        "from tracer.attribution.trace import trace",
    ],
)
def test_a_namesake_of_ours_is_named_before_it_runs(theirs: Path, tmp_path: Path, code: str):
    done = python(tmp_path, "-c", code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {refusal(theirs)}"
    assert done.stdout == ""


def test_a_namesake_that_ran_first_is_named_too(theirs: Path, tmp_path: Path):
    name = theirs.relative_to(tmp_path).parts[0].removesuffix(".py")
    done = python(tmp_path, "-c", f"import {name}, tracer; tracer.trace")
    assert done.stderr.splitlines()[-1] == f"ImportError: {refusal(theirs)}"


@pytest.mark.parametrize("arguments", [["trace", "hi"], ["trace", "--help"], ["--help"]])
def test_the_command_line_names_a_namesake_in_one_line(
    theirs: Path, tmp_path: Path, arguments: list[str]
):
    done = python(tmp_path, "-m", "tracer", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {refusal(theirs)}\n"


def test_a_folder_called_graphs_is_no_namesake(tmp_path: Path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "dallas.graph").mkdir()
    assert python(tmp_path, "-c", "import tracer; tracer.NodeKind").returncode == 0


def test_what_an_import_would_run_is_found_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert namesakes.namesake() is None
    (tmp_path / "replacement_models.py").write_text("raise SystemExit", encoding="utf-8")
    (tmp_path / "of_nobody.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert namesakes._place("of_nobody") == tmp_path / "of_nobody.py"
    assert namesakes._place("there_is_none") is None
    assert namesakes.namesake() is None  # ours ran before
    monkeypatch.delitem(sys.modules, "replacement_models")
    hidden = f"{tmp_path / 'replacement_models.py'} hides tracer's own package 'replacement_models'"
    assert str(namesakes.namesake()).startswith(hidden)
    with pytest.raises(ImportError, match="hides tracer's own package"):
        namesakes.check_namesakes()
