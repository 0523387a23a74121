"""Folders that appear whole or not at all; what killed processes left of others is cleaned up.

The same as `graphs.exchange.files` does for graphs: the two packages know nothing of each other.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from platform import node

NAME_BYTES = 150
"""Of a folder's name as much as its temporary name holds; file systems allow 255 in all."""

_filling: set[str] = set()
"""Temporary names that threads of this process write at present."""


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill; on the disk and renamed to `path` at the end.

    After an exception nothing is left of it. `path` must be free or an empty folder.

    Raises:
        OSError: the place cannot be written, or was taken meanwhile.
    """
    start = path.name.encode(errors="ignore")[:NAME_BYTES].decode(errors="ignore")
    machine = sha256(node().encode()).hexdigest()[:6]  # whose process numbers these are
    partial = path.with_name(f".{start}.{machine}-{os.getpid()}-{secrets.token_hex(6)}.partial")
    _filling.add(partial.name)
    try:
        _remove_leftovers(path.parent, rf"\.{re.escape(start)}\.{machine}-(\d+)-\w+\.partial")
        partial.mkdir()
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush_names(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _filling.discard(partial.name)


def _remove_leftovers(folder: Path, names: str) -> None:
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            found = re.fullmatch(names, entry.name)
            if found and entry.name not in _filling and not _runs(int(found[1])):
                shutil.rmtree(entry, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether another process of this number runs."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _flush(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    _flush_names(folder)


def _flush_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
