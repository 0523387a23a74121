"""Imports point one way, cli -> tracer -> {replacement_models, graphs}; no file runs code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import replacement_models
from replacement_models import formats

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "graphs": {"graphs"},
    "replacement_models": {"replacement_models"},
    "tracer": {"tracer", "graphs", "replacement_models"},
}
CODE_RUNNERS = {"eval", "exec", "torch.load", "torch.save", "np.load", "numpy.load"}
CODE_FORMATS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def sources() -> list[Path]:
    """Every module that is shipped."""
    packages = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
    return [ROOT / "cli.py", *packages]


def imports(file: Path) -> Iterator[str]:
    """Top-level package of every import in `file`, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import absolutely"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str):
    for file in (ROOT / package).rglob("*.py"):
        upward = {*imports(file)} & {*MAY_IMPORT, "cli", "tests", "benchmarks"} - MAY_IMPORT[
            package
        ]
        assert not upward, f"{file.relative_to(ROOT)} imports {sorted(upward)}"


def test_graphs_names_no_torch():
    for file in (ROOT / "graphs").rglob("*.py"):
        assert not {*imports(file)} & {"torch", "transformers", "safetensors"}, file


@pytest.mark.parametrize(
    "module",
    ["graphs", "cli", "replacement_models.errors", "replacement_models.formats.names"],
)
def test_a_module_that_needs_no_torch_does_not_load_it(module: str):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", [replacement_models, formats])
def test_names_that_are_imported_at_first_use_are_those_a_type_checker_sees(package: ModuleType):
    code = Path(package.__file__ or "").read_text(encoding="utf-8")
    [seen] = [node for node in ast.parse(code).body if ast.unparse(node).startswith("if TYPE_")]
    named = {
        alias.name: node.module
        for node in seen.body  # type: ignore[attr-defined]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(named) == package.__all__
    for name, module in named.items():
        assert getattr(package, name) is getattr(import_module(module or ""), name)
    with pytest.raises(AttributeError, match="has no attribute 'Transcode'"):
        _ = package.Transcode


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_read_or_written_in_a_format_that_runs_code(file: Path):
    assert not {*imports(file)} & CODE_FORMATS
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CODE_RUNNERS, f"{file}:{node.lineno}"
