"""Load, save, convert and hash transcoders, in whatever format their files are.

A foreign format is converted at this edge into the one layout of `transcoder.py`.
"""

import json
from hashlib import file_digest, sha256
from pathlib import Path

from safetensors import SafetensorError

from replacement_models.dictionaries.activation import Elementwise
from replacement_models.errors import ModelError
from replacement_models.formats import (
    circuit_tracer,
    clt_forge,
    crosslayer_coding,
    crosslayer_transcoder,
    gemma_scope,
    gemma_scope_2,
    native,
    openmoss,
    saelens,
    sparsify,
)
from replacement_models.formats.contract import Format
from replacement_models.formats.labels import FILE as LABELS
from replacement_models.formats.one_width import ONE_WIDTH, of_one_width
from replacement_models.formats.storage.appearing import appearing
from replacement_models.hub import folder_of
from replacement_models.transcoder import Transcoder

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        native,
        crosslayer_transcoder,
        circuit_tracer,
        clt_forge,
        crosslayer_coding,
        gemma_scope,
        gemma_scope_2,
        openmoss,
        saelens,
        sparsify,
    )
}
"""In the order in which a folder is offered to them."""
WRITABLE = {name: format.save for name, format in FORMATS.items() if format.save is not None}
"""Writers by name."""
WANTED = ("*.safetensors", "*.npz", "*.json", "*.yaml")
"""What a hub id is asked for."""
UNWANTED = ("features/*",)
"""Published sets carry gigabytes of example texts for a viewer there."""
SPRAWLING = "google/gemma-scope"
"""Repositories that are never fetched whole."""
LAZY_ABOVE = 2 << 30
"""Bytes of weight files from which decoder rows stay on disk unless the caller says otherwise."""

UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, OSError, MemoryError),
)
"""What reading a foreign file fails with where its parts do not fit; RecursionError is a
RuntimeError."""


def load_transcoder(name: str | Path, lazy: bool | None = None) -> Transcoder:
    """Read a transcoder in any known format.

    Args:
        name: a folder, or a hub id `owner/name[/subfolder][@revision]`.
        lazy: leave decoder rows on disk and read the active ones; None decides by size.

    Returns:
        The dictionary in the one layout, on the CPU, in the type it is stored in.

    Raises:
        ModelError: nothing there, an unknown format, a missing or torn file, an unsupported field.
    """
    folder = transcoder_folder(name)
    format = _format_of(folder)
    if format is None:
        raise ModelError(
            f"{name}: holds no transcoder in a known format; known are {', '.join(FORMATS)}"
        )
    if lazy is None:
        files = [*_files(folder), *format.elsewhere(folder).values()]
        lazy = sum(path.stat().st_size for path in files if path.is_file()) > LAZY_ABOVE
    try:
        return format.load(folder, lazy)
    except ModelError as error:
        if str(folder) in str(error):
            raise
        raise ModelError(f"{folder}: {error}") from error
    except UNREADABLE as error:  # foreign files can say anything anywhere
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"{folder}: cannot be read as {format.name}: a field or a tensor is not what the "
            f"format says ({reason}); copy or download it again"
        ) from error


def save_transcoder(transcoder: Transcoder, folder: str | Path, format: str = "tracer") -> Path:
    """Write a transcoder; the folder appears whole or not at all.

    Args:
        transcoder: what to write.
        folder: must not exist, or be empty.
        format: one of WRITABLE.

    Returns:
        The folder.

    Raises:
        ModelError: unknown format, the format cannot hold it, or the folder is in use or cannot
            be written.
    """
    if format not in WRITABLE:
        raise ModelError(f"format is {format!r}, expected one of {sorted(WRITABLE)}")
    if any(isinstance(layer.activation, Elementwise) for layer in transcoder.layers):
        raise ModelError(
            "a model's own neurons are no file's to hold; load them with transcoders 'neurons'"
        )
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ModelError(f"{path}: exists and is not an empty folder; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as whole:
            WRITABLE[format](transcoder, whole)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be written ({error}); nothing was left there") from error
    return path


def convert(source: str | Path, target: str | Path, format: str = "tracer") -> Path:
    """Rewrite a transcoder in another format, decoder rows read from disk where it is large.

    Where the format has as many features in every layer, narrow layers are widened by features that
    never fire; the others keep their numbers.

    Args:
        source: a folder or hub id in any known format.
        target: folder to write; must not exist, or be empty.
        format: one of WRITABLE.

    Returns:
        The folder written.

    Raises:
        ModelError: the source cannot be read, or the format cannot hold it.
    """
    found = load_transcoder(source)
    if format in ONE_WIDTH:
        found = of_one_width(found)
    return save_transcoder(found, target, format)


def content_hash(name: str | Path) -> str:
    """SHA-256 over the names and bytes of a transcoder's files, for a graph's metadata.

    Names of features (`labels.json`) do not count: they change nothing that a graph says.

    Returns:
        64 hexadecimal digits.
    """
    folder = transcoder_folder(name)
    listing = [[path.relative_to(folder).as_posix(), _file_hash(path)] for path in _files(folder)]
    format = _format_of(folder)
    elsewhere = {} if format is None else format.elsewhere(folder)
    listing += [[address, _file_hash(path)] for address, path in elsewhere.items()]
    return sha256(json.dumps(listing).encode()).hexdigest()


def transcoder_folder(name: str | Path) -> Path:
    """The local folder behind a transcoder's name; of a hub id only what a transcoder needs.

    Args:
        name: a folder, or a hub id `owner/name[/subfolder][@revision]`.

    Returns:
        An existing folder, in the hub's cache for a hub id.

    Raises:
        ModelError: neither a folder nor a loadable hub id, or a repository too large to fetch.
    """
    address = str(name).partition("@")[0]
    if address.startswith(SPRAWLING) and address.count("/") == 1 and not Path(name).is_dir():
        raise ModelError(
            f"{name}: holds many dictionaries a layer, hundreds of gigabytes; name a subfolder, or "
            "a repository whose config.yaml lists one file a layer (mwhanna/gemma-scope-…)"
        )
    folder, _ = folder_of(str(name), WANTED, UNWANTED)
    return folder


def _format_of(folder: Path) -> Format | None:
    """The first format that recognises a folder."""
    return next((format for format in FORMATS.values() if format.recognise(folder)), None)


def _files(folder: Path) -> list[Path]:
    """Weight and configuration files at any depth, hidden ones left out, in a fixed order."""
    suffixes = {Path(pattern).suffix for pattern in WANTED}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in suffixes
        and path.name != LABELS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _file_hash(path: Path) -> str:
    """SHA-256 of one file; the hub's cache names large files by it, which saves reading them."""
    name = path.resolve().name
    if path.is_symlink() and len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
