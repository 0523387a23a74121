"""Settings in sections: limits beside each field, types checked, mistakes refused in one line."""

import math
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from replacement_models.errors import ModelError

Kind = TypeVar("Kind", bound="Section")


def setting(default: Any, **limits: Any) -> Any:
    """A field with a default and limits: `least`, `above`, `most`, `among`."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Section:
    """Fields with limits, checked when a value is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            value = _as(getattr(self, one.name), hints[one.name])
            if value is MISSING:
                raise self.wrong(one.name, _expected(one, hints), getattr(self, one.name))
            if not _within(value, one):
                raise self.wrong(one.name, _expected(one, hints), value)
            object.__setattr__(self, one.name, value)
        self.check()

    def check(self) -> None:
        """Refuse fields that contradict each other."""
        raise NotImplementedError

    def wrong(self, name: str, expected: str, got: Any) -> ModelError:
        """The one line that refuses a field."""
        return ModelError(f"{self._name(name)}: expected {expected}, got {_shown(got)}")

    @classmethod
    def of(cls: type[Kind], found: Any, where: str = "") -> Kind:
        """A section from what YAML holds.

        Args:
            found: fields by name; sections within by theirs.
            where: what the section is called.

        Raises:
            ModelError: a field is unknown, of another type, or out of its limits.
        """
        if not isinstance(found, dict):
            raise ModelError(f"{where or 'config'}: expected fields by name, got {_shown(found)}")
        known = {one.name: one for one in fields(cls)}
        for name in found:
            if name not in known:
                at = f"{where}.{name}" if where else str(name)
                raise ModelError(f"{at}: no such field, expected one of {', '.join(known)}")
        hints = get_type_hints(cls)
        values = {
            name: hints[name].of(value, name)
            if is_dataclass(hints[name]) and not isinstance(value, Section)
            else value
            for name, value in found.items()
        }
        return cls(**values)

    @classmethod
    def _name(cls, field_name: str) -> str:
        section = cls.__name__.removesuffix("Config").lower()
        return field_name if section == "train" else f"{section}.{field_name}"


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as(value: Any, hint: Any) -> Any:
    """A value as a type says it, MISSING where it cannot be."""
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        return _as(value, next(one for one in get_args(hint) if one is not NoneType))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        found = tuple(_as(item, inner) for item in items)
        return MISSING if MISSING in found else found
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML takes 1e-3 for text
        try:
            return float(value)
        except ValueError:
            return MISSING
    return value if type(value) is hint else MISSING


def _within(value: Any, one: "Field[Any]") -> bool:
    limits = one.metadata
    if value is None:
        return True
    values = value if isinstance(value, tuple) else (value,)
    if "among" in limits:
        return all(item in limits["among"] for item in values)
    return all(
        math.isfinite(item)
        and item >= limits.get("least", item)
        and item <= limits.get("most", item)
        and item > limits.get("above", item - 1)
        for item in values
        if isinstance(item, int | float)
    )


def _expected(one: "Field[Any]", hints: dict[str, Any]) -> str:
    """What a field takes, in words."""
    limits, hint = one.metadata, hints[one.name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind not in (NoneType, Ellipsis)]
    listed = get_origin(hint) is tuple or get_origin(kinds[0]) is tuple
    inner = get_args(kinds[0])[0] if get_origin(kinds[0]) is tuple else kinds[0]
    if "among" in limits:
        return f"one of {', '.join(limits['among'])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words = names.get(inner, "a section")
    if listed:
        words += " or a list of them"
    words += "".join(
        f" {said} {limits[name]:g}"
        for name, said in (("least", "from"), ("above", "above"), ("most", "up to"))
        if name in limits
    )
    return f"{words}, or null" if NoneType in get_args(hint) else words
