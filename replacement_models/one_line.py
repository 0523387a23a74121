"""Values that hold tensors, shown in a line: a notebook prints whatever a cell ends in."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

LONGEST = 40
"""Characters of a text, or of a few numbers, that are still shown."""


def one_line(value: Any) -> str:
    """What to use as `__repr__` of a dataclass: its fields, none of them at length.

    Returns:
        Tensors as type and shape, sequences as how many of what, all else short or by its class.
    """
    parts = [f"{one.name}={brief(getattr(value, one.name))}" for one in fields(value)]
    return f"{type(value).__name__}({', '.join(parts)})"


def brief(value: Any) -> str:
    """One field's value, in few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if value is None or isinstance(value, str | int | float | complex):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, Sequence):
        return _several(value)
    return type(value).__name__


def _several(values: Sequence[Any]) -> str:
    if all(isinstance(value, int | float | str) for value in values):
        text = repr(values)
        return text if len(text) <= LONGEST else f"{len(values)} values"
    kinds = {brief(value) for value in values}
    return f"{len(values)} x {kinds.pop()}" if len(kinds) == 1 else f"{len(values)} values"
