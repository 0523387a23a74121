"""Transcoder file formats, one module each: `recognise`, `load`, `save`.

A foreign format is converted here, at the edge, into the one layout of `transcoder.py`.
"""

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from replacement_models.errors import ModelError
from replacement_models.formats import circuit_tracer, native
from replacement_models.hub import folder_of
from replacement_models.transcoder import Transcoder

FORMATS: dict[str, ModuleType] = {"tracer": native, "circuit-tracer": circuit_tracer}
LAZY_ABOVE = 2 << 30
"""Bytes of weight files from which decoder rows stay on disk unless the caller says otherwise."""


def load_transcoder(name: str | Path, lazy: bool | None = None) -> Transcoder:
    """Read a transcoder in any known format.

    Args:
        name: a folder, or a hub id `owner/name[//subfolder][@revision]`.
        lazy: leave decoder rows on disk and read the active ones; None decides by size.

    Raises:
        ModelError: nothing there, an unknown format, a missing or torn file, an unsupported field.
    """
    folder, _ = folder_of(str(name))
    for module in FORMATS.values():
        if module.recognise(folder):
            if lazy is None:
                size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
                lazy = size > LAZY_ABOVE
            transcoder: Transcoder = module.load(folder, lazy)
            return transcoder
    raise ModelError(
        f"{name}: holds no transcoder in a known format (looked for {native.CONFIG} and "
        f"{circuit_tracer.CONFIG})"
    )


def save_transcoder(transcoder: Transcoder, folder: str | Path, format: str = "tracer") -> Path:
    """Write a transcoder; the folder appears whole or not at all.

    Args:
        transcoder: what to write.
        folder: must not exist, or be empty.
        format: "tracer" or "circuit-tracer".

    Raises:
        ModelError: unknown format, the format cannot hold it, or the folder is in use.
    """
    if format not in FORMATS:
        raise ModelError(f"format is {format!r}, expected one of {sorted(FORMATS)}")
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ModelError(f"{path}: exists and is not an empty folder; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        FORMATS[format].save(transcoder, beside)
        beside.chmod(0o755)
        beside.replace(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return path


def content_hash(name: str | Path) -> str:
    """SHA-256 over the names and bytes of a transcoder's files, for a graph's metadata."""
    folder, _ = folder_of(str(name))
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".yaml", ".npz"):
            digest.update(json.dumps([path.name, path.stat().st_size]).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
