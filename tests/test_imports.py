"""Imports point one way and run in no circle; no file runs code.

cli -> tracer.commands -> the rest of tracer -> {replacement_models, graphs}. Counted are all
imports: at the top of a module, inside functions, and for type checkers alone.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

from replacement_models import formats

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "graphs": {"graphs"},
    "replacement_models": {"replacement_models"},
    "tracer": {"tracer", "graphs", "replacement_models"},
}
BELOW = {
    "cli": {"tracer.commands"},
    "tracer.commands": {"tracer", "graphs", "replacement_models"},
    "tracer": {"graphs", "replacement_models"},
    "graphs": set(),
    "replacement_models": set(),
}
"""The rooms that a room's modules may import from, besides their own."""
CODE_RUNNERS = {"eval", "exec", "torch.load", "torch.save", "np.load", "numpy.load"}
CODE_FORMATS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def sources() -> list[Path]:
    """Every module that is shipped."""
    packages = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
    return [ROOT / "cli.py", *packages]


def imports(file: Path) -> Iterator[str]:
    """Top-level package of every import in `file`, those inside functions too."""
    yield from (name.partition(".")[0] for name in named(file))


def named(file: Path) -> Iterator[str]:
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
        if any(f"{name}.".startswith("tracer.commands.") for name in named(file))
    }
    inside = {str(file.relative_to(ROOT)) for file in (ROOT / "tracer/commands").glob("*.py")}
    assert found - inside == {"cli.py", "tracer/__main__.py"}


COMMANDS = sorted(
    f"tracer.commands.{file.stem}"
    for file in (ROOT / "tracer" / "commands").glob("*.py")
    if file.stem != "__init__"
)


def test_the_engine_knows_nothing_of_the_model_that_is_shipped():
    for file in (ROOT / "tracer").rglob("*.py"):
        assert "replacement_models.tiny" not in file.read_text(encoding="utf-8"), file


NO_TORCH = [
    *("graphs", "replacement_models", "cli", "tracer", "tracer.commands", *COMMANDS),
    *("replacement_models.errors", "replacement_models.formats.names"),
]


@pytest.mark.parametrize("module", NO_TORCH)
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


@pytest.mark.parametrize("package", [formats])
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


def modules() -> dict[str, str]:
    """Dotted name -> text of every module that is shipped; a package by its name alone."""
    paths = {file: file.relative_to(ROOT).with_suffix("") for file in sources()}
    return {
        ".".join(path.parts).removesuffix(".__init__"): file.read_text(encoding="utf-8")
        for file, path in paths.items()
    }


def module_graph(texts: Mapping[str, str]) -> "nx.DiGraph[str]":
    """Who imports whom, among the modules of `texts`.

    `from package import name` leads to the submodule of that name, or to where the package itself
    imported the name from; to the package only for what it defines.
    """
    names = {module: dict(bindings(text)) for module, text in texts.items()}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(texts)
    for module, text in texts.items():
        for origin, name in imported(text):
            target = home(origin, name, names)
            if target is not None and target != module:
                graph.add_edge(module, target)
    return graph


def imported(text: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import; None where a module is imported as a whole."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def bindings(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name -> (module, its name there) of what a module imports at its top, for types or not."""
    body = ast.parse(text).body
    for_types = [node for outer in body if isinstance(outer, ast.If) for node in outer.body]
    for node in [*body, *for_types]:
        if isinstance(node, ast.ImportFrom):
            yield from ((a.asname or a.name, (node.module or "", a.name)) for a in node.names)


def home(
    origin: str, name: str | None, names: Mapping[str, Mapping[str, tuple[str, str]]]
) -> str | None:
    """The module that an import needs, if it is one of ours."""
    if name is not None and f"{origin}.{name}" in names:
        return f"{origin}.{name}"
    is_package = any(other.startswith(f"{origin}.") for other in names)
    if is_package and name is not None and name in names[origin]:
        return home(*names[origin][name], names)
    return origin if origin in names else None


def circles(graph: "nx.DiGraph[str]") -> list[set[str]]:
    """Sets of modules that import each other."""
    return [part for part in nx.strongly_connected_components(graph) if len(part) > 1]


def room(module: str) -> str:
    """Where a module stands, as `BELOW` names it."""
    if module in ("cli", "tracer.__main__"):
        return "cli"
    inside = (module + ".").startswith("tracer.commands.")
    return "tracer.commands" if inside else module.partition(".")[0]


def test_a_circle_is_found_whatever_it_runs_through():
    package = {
        "p": "from p.a import one",
        "p.a": "import typing\nif typing.TYPE_CHECKING:\n    from p import b\none = 1",
        "p.b": "def two():\n    import p.c",
        "p.c": "from p import one",
        "p.d": "from p import one",
    }
    assert circles(module_graph(package)) == [{"p.a", "p.b", "p.c"}]


def test_what_a_package_passes_on_is_no_circle():
    package = {
        "p": "from p.a import one\nfrom p.b import two\nthree = 3",
        "p.a": "one = 1",
        "p.b": "from p import a, one\ntwo = one",
    }
    assert circles(module_graph(package)) == []
    package["p.a"] = "from p import three\none = 1"
    assert circles(module_graph(package)) == [{"p", "p.a", "p.b"}]


@pytest.fixture(scope="module")
def found() -> "nx.DiGraph[str]":
    return module_graph(modules())


def test_no_imports_run_in_a_circle(found: "nx.DiGraph[str]"):
    assert circles(found) == []


def test_a_room_imports_only_from_those_below_it(found: "nx.DiGraph[str]"):
    whole = any(room(module) == "tracer.commands" for module in found)
    for source, target in found.edges:
        here, there = room(source), room(target)
        if here == "cli" and not whole:
            continue  # the commands still stand in cli.py
        assert there == here or there in BELOW[here], f"{source} imports {target}"


@pytest.mark.parametrize("part", ["graphs.pictures", "graphs.exchange"])
def test_what_takes_tables_knows_no_graph(found: "nx.DiGraph[str]", part: str):
    for module in found:
        if f"{module}.".startswith(f"{part}."):
            assert "graphs.graph" not in found[module], module
