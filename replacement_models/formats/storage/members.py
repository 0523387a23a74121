"""Sets of transcoders that keep one folder a layer."""

from pathlib import Path


def members(folder: Path, config: str, weights: str) -> list[Path]:
    """`folder` itself or every folder below it that holds both files, in a fixed order."""
    if _is_member(folder, config, weights):
        return [folder]
    return sorted(
        path.parent for path in folder.rglob(config) if _is_member(path.parent, config, weights)
    )


def _is_member(folder: Path, config: str, weights: str) -> bool:
    return (folder / config).is_file() and (folder / weights).is_file()
