"""Names of features, kept beside a dictionary: `labels.json` in its folder, whatever its format.

    {"format": "tracer-labels", "version": 1, "labels": {"0/311": "a city in Texas"}}

Keys are layer/feature. Features without a name are described by what they promote
(tracer/features/promoted.py).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replacement_models.errors import ModelError

FILE = "labels.json"
PLACE = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
FORMAT = {"format": "tracer-labels", "version": 1}


def read_labels(folder: Path) -> dict[tuple[int, int], str]:
    """Names by (layer, feature); none where the folder has no file of ours.

    Raises:
        ModelError: the file is torn, or an entry is not a name for a feature.
    """
    path = folder / FILE
    if not path.is_file() or _format(_json(path)) != FORMAT["format"]:
        return {}
    return parse_labels(path)["labels"]


def parse_labels(path: Path) -> dict[str, Any]:
    """A file of labels with whatever else it says.

    Returns:
        Its keys; `labels` as names by (layer, feature).

    Raises:
        ModelError: it is not such a file, is torn, or an entry is not a name for a feature.
    """
    found = _json(path)
    if _format(found) != FORMAT["format"]:
        raise ModelError(f"{path}: is no file of labels; expected format {FORMAT['format']!r}")
    labels = found.get("labels")
    if found.get("version") != FORMAT["version"] or not isinstance(labels, dict):
        raise ModelError(f"{path}: expected version 1 and an object 'labels'")
    named = {_place(path, key): _name(path, key, name) for key, name in labels.items()}
    return {**found, "labels": named}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error


def _format(found: Any) -> Any:
    return found.get("format") if isinstance(found, dict) else None


def write_labels(labels: Mapping[tuple[int, int], str], folder: Path) -> None:
    """Write names by (layer, feature) into a dictionary's folder."""
    named = {f"{layer}/{feature}": labels[layer, feature] for layer, feature in sorted(labels)}
    text = json.dumps(FORMAT | {"labels": named}, indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n")


def _place(path: Path, key: str) -> tuple[int, int]:
    place = PLACE.fullmatch(key)
    if place is None:
        raise ModelError(f"{path}: {key!r:.80} is not layer/feature, as in 0/311")
    return int(place[1]), int(place[2])


def _name(path: Path, key: str, name: object) -> str:
    if not isinstance(name, str):
        raise ModelError(f"{path}: the label of {key} is {name!r:.80}, expected a string")
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise ModelError(f"{path}: the label of {key} holds half a character: {name!r:.80}")
    return name
