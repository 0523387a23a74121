"""Imports point one way; no file runs code.

cli -> tracer.commands -> the rest of tracer -> {replacement_models, graphs}.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    yield from (name.partition(".")[0] for name in imported(file))


def imported(file: Path) -> Iterator[str]:
    """Every module or name that `file` imports, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import absolutely"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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


def test_only_the_doors_import_the_commands():
    found = {
        str(file.relative_to(ROOT))
        for file in sources()
        if any(f"{name}.".startswith("tracer.commands.") for name in imported(file))
    }
    inside = {str(file.relative_to(ROOT)) for file in (ROOT / "tracer/commands").glob("*.py")}
    assert found - inside == {"cli.py", "tracer/__main__.py"}


COMMANDS = sorted(
    f"tracer.commands.{file.stem}"
    for file in (ROOT / "tracer" / "commands").glob("*.py")
    if file.stem != "__init__"
)


@pytest.mark.parametrize(
    "module", ["graphs", "replacement_models", "cli", "tracer", "tracer.commands", *COMMANDS]
)
def test_a_module_that_needs_no_torch_does_not_load_it(module: str):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_help_waits_for_a_large_package():
    code = (
        "import sys; from tracer.commands import COMMANDS, main\n"
        "for words in ([], *([name] for name in COMMANDS)):\n"
        "    main([*words, '--help'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'pyarrow', 'rich'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_read_or_written_in_a_format_that_runs_code(file: Path):
    assert not {*imports(file)} & CODE_FORMATS
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CODE_RUNNERS, f"{file}:{node.lineno}"
