"""What a graph's metadata may say: one schema, checked wherever a graph comes in.

Every key is optional, and keys that are not known here are anyone's to use; what is known has one
shape, so that nothing that shows a graph has to ask.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from graphs import validation_summary

DEEPEST = 64
"""Objects and lists within each other that metadata may hold."""
LAYERS = 10_000
"""Layers of a model at most: pictures have a row for each."""
LARGEST = 1 << 63
"""Whole numbers stay below it, as in every table."""

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """A whole number from 0 up."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _of_layers(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LAYERS


def _listing(every: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(every, value))


def _naming(every: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(every, value.values()))


def _none_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _holding(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with some keys; others may join them."""

    def check(value: Any) -> bool:
        if not isinstance(value, dict) or not needed.keys() <= value.keys():
            return False
        known = {**needed, **(optional or {})}
        return all(known[name](part) for name, part in value.items() if name in known)

    return check


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


def _is_summary(value: Any) -> bool:
    """Whether a validation's summary can be shown."""
    try:
        said = {"validation": value, "pruned": {"nodes": -1, "edges": -1}}
        texts = [validation_summary.subtitle(said), validation_summary.sentences(said)]
        for columns, rows in validation_summary.tables(value):
            texts += [*columns, *(cell for row in rows for cell in row)]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False
    return all(text is None or isinstance(text, str) for text in texts)


SCHEMA: dict[str, tuple[Check, str]] = {
    "prompt": (is_text, "text"),
    "model": (is_text, "text"),
    "model_revision": (is_text, "text"),
    "transcoders": (is_text, "text"),
    "transcoders_hash": (is_text, "text"),
    "dictionary_hash": (is_text, "text"),
    "elsewhere": (is_text, "text"),
    "held": (
        _holding(dict.fromkeys(("kernels", "factors"), _listing(is_count))),
        "an object with the lists of layers kernels and factors",
    ),
    "labels_refused": (is_text, "text"),
    "tokens": (_listing(is_text), "a list of strings"),
    "token_ids": (_listing(is_count), "a list of whole numbers from 0 up"),
    "position": (is_count, "a whole number from 0 up"),
    "layers": (_of_layers, f"a whole number from 0 to {LAYERS}"),
    "vocabulary": (is_count, "a whole number from 0 up"),
    "active_features": (is_count, "a whole number from 0 up"),
    "floored_share": (is_number, "a number"),
    "settings": (
        _holding({}, {"targets": _none_or(_listing(lambda _: True)), "skip_positions": is_count}),
        "an object with how it was traced",
    ),
    "versions": (_is_object, "an object with names of programs"),
    "partial": (_is_object, "an object with the number of features"),
    "scores": (_is_object, "an object with scores"),
    "skip_alone": (_naming(_none_or(is_number)), "an object with scores"),
    "labels": (_naming(_is_object), "an object with an object for every feature"),
    "conservation": (
        _holding({"worst": is_number, "relative": is_number, "node": is_text}),
        "an object with the numbers worst and relative and the text node",
    ),
    "pruned": (
        _holding(
            {"nodes": _is_share, "edges": _is_share},
            {
                **dict.fromkeys(("kept_nodes", "kept_edges"), is_count),
                **dict.fromkeys(("total_nodes", "total_edges"), is_count),
                "uncovered": is_number,
            },
        ),
        "an object with the shares nodes and edges, above 0 and at most 1, and counts",
    ),
    "stability": (_holding({"over": is_text}), "an object with the text over"),
    "validation": (_is_summary, "the summary of a validation"),
}
"""Key -> check, and what it expects in words."""


def misdescribed(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with metadata.

    Returns:
        One line; None where nothing is.

    >>> misdescribed({"prompt": "hot", "layers": "four"})
    "metadata['layers'] must be a whole number from 0 to 10000, got 'four'"
    """
    if wrong := _unwieldy(metadata):
        return f"metadata hold {wrong}"
    for name, (check, expected) in SCHEMA.items():
        if name in metadata and not check(metadata[name]):
            value = metadata[name]
            got = "null" if value is None else f"{value!r:.60}"
            return f"metadata[{name!r}] must be {expected}, got {got}"
    return None


def _unwieldy(metadata: Mapping[str, Any]) -> str | None:
    """What no export can hold: values nested too deep, half characters, endless numbers."""
    level: list[Any] = [dict(metadata)]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif wrong := _unheld(value):
                return wrong
        level = inner
        if not level:
            return None
    return f"more than {DEEPEST} objects and lists within each other"


def _unheld(value: Any) -> str | None:
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        return f"text with half a character: {value!r:.60}"
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return f"a number of {len(str(value)) if abs(value) < 10**1000 else 'too many'} digits"
    return None
