"""The docstrings of `graphs`: every example is run, and what a function returns is said."""

import doctest
import inspect
import pkgutil
import re
from importlib import import_module
from types import FunctionType, ModuleType

import pytest

import graphs

MODULES = [import_module(found.name) for found in pkgutil.walk_packages(graphs.__path__, "graphs.")]
WITH_EXAMPLES = {
    "graphs.edges",
    "graphs.exchange.networks",
    "graphs.exchange.tables",
    "graphs.graph",
    "graphs.influence",
    "graphs.paths",
    "graphs.pictures.dot",
    "graphs.pictures.marks",
    "graphs.prune",
    "graphs.schema",
    "graphs.words",
}
OF_MANY = re.compile(r"\b(Float|Bool|Int|csr_array|Table|DiGraph|tuple|dict|Kept|Scores|Layout)\b")
"""Return types that need a word on shapes, units or columns."""


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_example_prints_what_it_says(module: ModuleType):
    for test in examples(module):
        said: list[str] = []
        result = doctest.DocTestRunner().run(test, out=said.append)
        assert result.failed == 0, "".join(said)
        assert result.attempted == len(test.examples)


def public(module: ModuleType) -> dict[str, FunctionType]:
    """Name -> function or method of what is defined in `module` for others to use."""
    found = dict(inspect.getmembers(module))
    for name, value in list(found.items()):
        if inspect.isclass(value):
            found |= {f"{name}.{key}": unwrapped(it) for key, it in vars(value).items()}
    return {
        f"{module.__name__}.{name}": value
        for name, value in found.items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not any(part.startswith("_") for part in name.split("."))
    }


def unwrapped(member: object) -> object:
    """The function behind a property or a class method."""
    for name in ("func", "fget", "__func__"):
        member = getattr(member, name, None) or member
    return member


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_what_is_returned_is_said_where_its_type_does_not(module: ModuleType):
    for name, function in public(module).items():
        if OF_MANY.search(str(inspect.signature(function).return_annotation)):
            assert "Returns:\n" in (function.__doc__ or ""), name


def test_the_examples_are_found():
    assert {module.__name__ for module in MODULES if examples(module)} >= WITH_EXAMPLES


def test_the_method_everyone_begins_with_has_an_example():
    assert ">>> graph = AttributionGraph.build(" in (graphs.AttributionGraph.build.__doc__ or "")
