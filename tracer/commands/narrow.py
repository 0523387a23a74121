"""Transformers' table of its models, read when something in it is asked for.

As it is imported, transformers reads every file of every model that it has, twice, to know which
class stands where. The auto classes find a model's own package by themselves, so theirs is all that
is read here; the first name that is not in it has the whole table read, and is found as ever.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = "transformers.utils.import_utils"
"""Has the function that reads, and the class of modules that look names up in what it read."""
AUTO = "auto"
NARROWED = {"transformers": "models", "transformers.models": None}
"""Modules that look up in the table of all models -> what stands before its entries."""
LOOKED_UP = ("_objects", "_class_to_module", "_modules", "_object_missing_backend")
READ = ("_class_to_module", "_object_missing_backend", "_import_structure")


def narrow_table() -> None:
    """Have transformers read about models when it is asked, where it is not imported yet."""
    if "transformers" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `TABLE` where it is, has it narrowed once it is loaded, and is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Narrowing(spec.loader)
        return spec


class _Narrowing(Loader):
    """Loads `TABLE` as its own loader does, and narrows it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _narrow(module)


def _narrow(table: Any) -> None:
    """Change what reads and looks up, where they are as they are known here."""
    models = Path(table.__file__).parents[1] / "models"
    read, lazy = (getattr(table, name, None) for name in ("define_import_structure", "_LazyModule"))
    if not (read and lazy and (models / AUTO).is_dir()):
        return
    look_up = lazy.__getattr__
    whole: set[str] = set()

    def read_when_asked(path: Any, prefix: str | None = None) -> Any:
        if models not in (Path(path), Path(path).parent):
            return read(path, prefix)
        before = "" if prefix is None else f"{prefix}."
        found = {**read(str(models / AUTO), f"{before}{AUTO}")}
        names = [f"{before}{place.name}" for place in models.iterdir() if place.is_dir()]
        folders: dict[str, set[str]] = {name: set() for name in names}
        return found | {frozenset(): folders | found.get(frozenset(), {})}

    def look_up_reading(module: Any, name: str) -> Any:
        if module.__name__ in NARROWED and module.__name__ not in whole and _unknown(module, name):
            whole.add(module.__name__)
            structure = read(models, NARROWED[module.__name__])
            _widen(module, lazy(module.__name__, module.__file__, structure))
        return look_up(module, name)

    table.define_import_structure = read_when_asked
    lazy.__getattr__ = look_up_reading


def _unknown(module: Any, name: str) -> bool:
    """Whether only the whole table may know a name; no file of the package is called so."""
    if name.startswith("_") or any(name in vars(module).get(place, ()) for place in LOOKED_UP):
        return False
    return not (Path(module.__file__).parent / f"{name}.py").is_file()


def _widen(module: Any, whole: Any) -> None:
    """Give a module what it would look up in had the whole table been read."""
    module._modules |= whole._modules
    for place in READ:
        vars(module)[place].update({**vars(whole)[place], **vars(module)[place]})
    module.__all__.extend(set(whole.__all__) - set(module.__all__))
