"""What circuit-tracer's server lists: `graph-metadata.json` beside the graphs of a folder."""

import json
from pathlib import Path
from typing import Any

from graphs.exchange.files import writing
from graphs.schema import GraphError

LIST = "graph-metadata.json"


def write_json(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        GraphError: the place cannot be written.
    """
    with writing(path) as partial:
        partial.write_bytes(content)


def write_with_list(path: Path, content: bytes) -> None:
    """Write a graph and enter it in the list beside it, in the place of one of its name.

    Raises:
        GraphError: the place cannot be written, or the list there is none.
    """
    place = path.parent / LIST
    known = _graphs(place)
    about: dict[str, Any] = json.loads(content)["metadata"]
    if path.name == LIST:
        raise GraphError(f"cannot write {path}: that name is the list's: choose another")
    kept = [one for one in known if one.get("slug") != about["slug"]]
    write_json(path, content)
    write_json(place, json.dumps({"graphs": [*kept, about]}, indent=1).encode())


def _graphs(place: Path) -> list[dict[str, Any]]:
    if not place.exists():
        return []
    try:
        found = json.loads(place.read_bytes())["graphs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GraphError(f"{place} is no list of graphs: mend or move it first") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise GraphError(f"{place} is no list of graphs: mend or move it first")
    return found
