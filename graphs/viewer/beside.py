"""What stands beside a graph's tables in its folder: groups, a saved view, tables of attention."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphs.exchange.arrow import table_of
from graphs.exchange.files import place_of, write_together
from graphs.schema import GraphError
from graphs.viewer.payload import Beside

GROUPS, VIEW = "groups.json", "view.json"
FORMAT = 1
LARGEST = 1 << 24
"""Bytes of a JSON file beside a graph; a larger one is none of ours."""


def read_beside(path: Path) -> Beside:
    """Read what a graph's folder holds beside the graph; of a .zip nothing.

    Returns:
        The graph's name, tables of attention, groups and saved view, empty where there are none.

    Raises:
        GraphError: one of the files is torn or not what its name says.
    """
    if not path.is_dir():
        return Beside(name=path.name)
    groups, view = _json(path, GROUPS), _json(path, VIEW)
    found = groups.get("groups", ())
    if not isinstance(found, list | tuple) or not all(isinstance(one, dict) for one in found):
        raise GraphError(f"{path / GROUPS}: expected a list of groups under 'groups'")
    tables = {
        file.stem: _table(file)
        for file in sorted(path.glob("*.arrow"))
        if file.stem == "heads" or file.stem.startswith("attention")
    }
    return Beside(name=path.name, tables=tables, groups=found, view=view.get("view", {}))


def write_beside(folder: Path, groups: list[Mapping[str, Any]], view: Mapping[str, Any]) -> None:
    """Write groups and view beside a graph, both or neither.

    Raises:
        GraphError: the folder cannot be written.
    """
    values = {
        GROUPS: {"format": FORMAT, "groups": groups},
        VIEW: {"format": FORMAT, "view": dict(view)},
    }
    files = {
        name: pa.py_buffer(
            json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "replace")
        )
        for name, value in values.items()
    }
    write_together(folder, files)


def _json(folder: Path, name: str) -> dict[str, Any]:
    place = place_of(folder, name)
    if place is None:
        return {}
    if place.stat().st_size > LARGEST:
        raise GraphError(f"{place}: has more than {LARGEST} bytes: no file of ours does")
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GraphError(f"{place}: cannot be read as JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise GraphError(f"{place}: expected an object with format {FORMAT}")
    return value


def _table(file: Path) -> pa.Table:
    try:
        return table_of(file.read_bytes(), str(file))
    except OSError as error:
        raise GraphError(f"{file}: cannot be read: {error.strerror}") from error
