"""Users' own labels: they win over all others, are kept in a file, and belong to one dictionary.

The file is `labels.json` as it may stand beside a dictionary (replacement_models/formats/labels.py)
with the dictionary's content hash beside the names, so that it can be shared and is not taken for
another dictionary's.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from graphs.exchange.files import writing
from replacement_models.formats.labels import FORMAT, parse_labels
from tracer.errors import TraceError

FILE = "own_labels.json"
Names = dict[tuple[int, int], str]


def read_own(path: Path, dictionary: str) -> Names:
    """Labels of one dictionary's features; none where there is no such file.

    Args:
        path: the file.
        dictionary: content hash that it must be of (features/dictionary_hash.py).

    Raises:
        TraceError: it is another dictionary's.
        ModelError: it is no file of labels, or is torn.
    """
    if not path.is_file():
        return {}
    found = parse_labels(path)
    got = found.get("dictionary")
    if got != dictionary:
        whose = f"the dictionary {str(got)[:12]}" if got else "no dictionary by name"
        raise TraceError(
            f"{path}: holds labels of {whose}, expected {dictionary[:12]}; features of another "
            "dictionary are other features"
        )
    return found["labels"]


def write_own(path: Path, labels: Mapping[tuple[int, int], str], dictionary: str) -> None:
    """Write labels of one dictionary's features, whole or not at all."""
    named = {f"{layer}/{feature}": labels[layer, feature] for layer, feature in sorted(labels)}
    about = FORMAT | {"dictionary": dictionary, "labels": named}
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")
