"""`view.json`: what a viewer saved beside a graph. Here only its pins are read and written."""

import json
from collections.abc import Sequence

FORMAT = 1


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
    value = {"format": FORMAT, "view": {"pins": list(pins)}}
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
