"""A module of the user's own called `graphs` hides ours: say so before it is taken for ours."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

BESIDE = ("graphs", "replacement_models")
"""Packages that are installed beside this one."""
DOOR = ("tracer.__main__", "tracer.commands", "tracer.interrupts")
"""What runs all the same, to say it on the command line."""


def namesake() -> str | None:
    """What is wrong, in one line, where another module stands in for one of ours."""
    root = Path(__file__).parents[1]
    for name in BESIDE:
        place = _place(name)
        if place is not None and place.parent.resolve() != (root / name).resolve():
            return (
                f"{place} hides tracer's own package {name!r}: rename it, or run where it is not "
                "on the module search path"
            )
    return None


def check_namesakes() -> None:
    """Refuse to go on where another module stands in for one of ours.

    Raises:
        ImportError: names the file and says what to do.
    """
    if why := namesake():
        raise ImportError(why)


def refuse_rooms() -> None:
    """Where a namesake is found, make `import tracer.patching` and its like say so too."""
    if namesake():
        sys.meta_path.insert(0, _Refusal())


class _Refusal:
    """Finds nothing; refuses submodules of ours as long as there is a namesake."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith("tracer.") and not name.startswith(DOOR):
            check_namesakes()
        return None


def _place(name: str) -> Path | None:
    """The file that an import of `name` would run or has run."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = find_spec(name)
        file = spec.origin if spec is not None else None
    return None if file is None else Path(file)
