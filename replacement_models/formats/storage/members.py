"""Sets of transcoders that keep one folder a layer."""

import os
from pathlib import Path

from replacement_models.errors import ModelError

FOLDERS = 10_000
"""Folders that are looked into at most: somebody may name `/`."""


def members(folder: Path, config: str, weights: str) -> list[Path]:
    """`folder` itself or every folder below it that holds both files, in a fixed order.

    Raises:
        ModelError: there are too many folders below for one dictionary.
    """
    if _is_member(folder, config, weights):
        return [folder]
    found = []
    for count, (place, _, names) in enumerate(os.walk(folder)):
        if count > FOLDERS:
            raise ModelError(
                f"{folder}: has more than {FOLDERS} folders in it: name the one of a dictionary"
            )
        if {config, weights} <= set(names):
            found.append(Path(place))
    return sorted(found)


def _is_member(folder: Path, config: str, weights: str) -> bool:
    return (folder / config).is_file() and (folder / weights).is_file()
