"""What `store.json` of a feature store must say, checked as a store is opened."""

from collections.abc import Callable, Mapping
from typing import Any

from graphs.described import is_count, is_number, is_text


def _listing(every: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(every, value))


def _is_widths(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name.isascii() and name.isdigit() and len(name) < 6 and is_count(count)
        for name, count in value.items()
    )


def _is_bins(value: Any) -> bool:
    names = ("lowest_power", "octaves", "parts")
    return isinstance(value, dict) and all(
        type(value.get(name)) is int and abs(value[name]) < 10_000 for name in names
    )


SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("model", "transcoders", "dictionary_hash"), (is_text, "text")),
    "settings": (lambda value: isinstance(value, dict), "an object with how it was built"),
    "features": (_is_widths, "an object with the number of features by layer"),
    "special": (_listing(is_text), "a list of tokens"),
    "quantiles": (_listing(is_number), "a list of shares"),
    "bins": (_is_bins, "an object with whole numbers lowest_power, octaves and parts"),
    "tokens_counted": (is_count, "a whole number"),
}
"""Key -> check, and what it expects in words."""


def misdescribed(about: Mapping[str, Any]) -> str | None:
    """What is wrong with the description of a store.

    Returns:
        One line; None where nothing is.
    """
    for name, (check, expected) in SCHEMA.items():
        if name not in about or not check(about[name]):
            return f"{name} is {about.get(name)!r:.60}, expected {expected}"
    return None
