"""Arguments of a tool, as JSON gave them: described for whoever calls, checked before anything."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.errors import TraceError

LONGEST = 20_000
"""Characters of a text."""
MOST = 200
"""Entries of a list, and of anything that is counted."""


@dataclass(frozen=True)
class Argument:
    """One argument."""

    name: str
    kind: str
    """text, count, flag, choice or changes."""
    says: str
    default: Any = None
    choices: tuple[str, ...] = ()
    required: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of its values."""
        found = dict(_SCHEMAS[self.kind])
        if self.kind == "choice":
            found["enum"] = list(self.choices)
        if self.default is not None:
            found["default"] = self.default
        return found | {"description": self.says}

    def checked(self, value: object) -> Any:
        """A value of this argument.

        Raises:
            TraceError: it is none.
        """
        right = {
            "text": isinstance(value, str) and len(value) <= LONGEST,
            "count": type(value) is int and 1 <= value <= MOST,
            "flag": isinstance(value, bool),
            "choice": value in self.choices if isinstance(value, str) else False,
            "changes": isinstance(value, list) and all(map(_is_change, value)),
        }[self.kind]
        if not right or (self.kind == "changes" and not 0 < len(value) <= MOST):  # type: ignore[arg-type]
            expected = _EXPECTED[self.kind].replace("CHOICES", ", ".join(self.choices))
            raise TraceError(f"{self.name} is {str(value)!r:.80}, expected {expected}")
        return value


CHANGE = {
    "type": "object",
    "properties": {
        "node": {"type": "string", "description": "id of a feature node, as in 2_311_8"},
        "value": {"type": "number", "description": "set its activation to this"},
        "scale": {"type": "number", "description": "or multiply it by this"},
    },
    "required": ["node"],
    "additionalProperties": False,
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "maxLength": LONGEST},
    "count": {"type": "integer", "minimum": 1, "maximum": MOST},
    "flag": {"type": "boolean"},
    "choice": {"type": "string"},
    "changes": {"type": "array", "items": CHANGE, "minItems": 1, "maxItems": MOST},
}
_EXPECTED = {
    "text": f"text of at most {LONGEST} characters",
    "count": f"a whole number from 1 to {MOST}",
    "flag": "true or false",
    "choice": "one of CHOICES",
    "changes": f'1 to {MOST} changes as {{"node": "2_311_8", "value": 0}} or "scale"',
}


def _is_change(one: object) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("node"), str) or len(one) != 2:
        return False
    number = one.get("value", one.get("scale"))
    return type(number) in (int, float) and math.isfinite(float(number or 0))


def schema_of(arguments: Sequence[Argument]) -> dict[str, Any]:
    """JSON schema of all arguments of a tool."""
    return {
        "type": "object",
        "properties": {one.name: one.schema for one in arguments},
        "required": [one.name for one in arguments if one.required],
        "additionalProperties": False,
    }


def checked(arguments: Sequence[Argument], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool is called with, defaults filled in.

    Raises:
        TraceError: one is missing, unknown, or not of its kind.
    """
    known = {one.name: one for one in arguments}
    if unknown := sorted(set(given) - set(known)):
        raise TraceError(f"{str(unknown[0])!r:.80} is no argument: expected {', '.join(known)}")
    if missing := [one.name for one in arguments if one.required and given.get(one.name) is None]:
        raise TraceError(f"{missing[0]} is missing: {known[missing[0]].says}")
    return {
        name: one.default if given.get(name) is None else one.checked(given[name])
        for name, one in known.items()
    }
