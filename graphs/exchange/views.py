"""`view.json`: what a viewer saved beside a graph: its pins, thresholds, places."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graphs.schema import GraphError

FORMAT = 1


def view_of(content: bytes | None, where: str) -> dict[str, Any]:
    """The view that a file holds.

    Args:
        content: of the file; None where there is none.
        where: as errors call it.

    Returns:
        What modules/state.mjs reads, JSON throughout; empty where there is no file.

    Raises:
        GraphError: it is torn or foreign, or holds numbers that JSON has not.
    """
    if content is None:
        return {}
    try:
        value = json.loads(content)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise GraphError(f"{where} is no JSON: {reason:.100}: mend or remove it") from error
    view = value.get("view", {}) if isinstance(value, dict) else None
    if not isinstance(view, dict) or value.get("format") != FORMAT:
        raise GraphError(f"{where}: expected an object with format {FORMAT} and a view: mend or "
                         "remove it")  # fmt: skip
    return view


def with_view(view: Mapping[str, Any]) -> bytes:
    """The content of `view.json`: the same view gives the same bytes.

    Raises:
        GraphError: the view holds what JSON has not: a number that is not finite, say.
    """
    value = {"format": FORMAT, "view": dict(view)}
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GraphError(f"the view is no JSON: {error!s:.100}") from error
    return f"{text}\n".encode("utf-8", "replace")


def pins_of(content: bytes | None) -> list[str]:
    """Ids of the pinned nodes of a saved view; none where there is no view that can be read."""
    try:
        value = json.loads(content or b"{}")
        found = value["view"]["pins"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def with_pins(pins: Sequence[str]) -> bytes:
    """The content of `view.json` of a view that has pins and nothing else."""
    return with_view({"pins": list(pins)})
