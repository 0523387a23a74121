"""What a file format is to the rest of the package: one value a module of this folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from replacement_models.transcoder import Transcoder


def nowhere_else(folder: Path) -> Mapping[str, Path]:
    """No weight file lies outside the folder."""
    return {}


@dataclass(frozen=True)
class Format:
    """How one tool keeps transcoders on disk. Foreign layouts are converted here, at the edge."""

    name: str
    """As in `names.py`, and as `tracer convert --format` takes it."""
    recognise: Callable[[Path], bool]
    """Whether a folder claims to hold this format."""
    load: Callable[[Path, bool], Transcoder]
    """Reads a folder; with True decoder rows stay on disk. ModelError where it cannot."""
    save: Callable[[Transcoder, Path], None] | None = None
    """Writes into an existing empty folder, or raises ModelError where the format has no place for
    what the transcoder holds; None where nobody writes this format."""
    elsewhere: Callable[[Path], Mapping[str, Path]] = nowhere_else
    """Weight files outside the folder, by their addresses."""
