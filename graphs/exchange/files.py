"""Files that appear whole or not at all, alone or several together.

A file or folder is written beside its place under a name of its own and renamed to it: one step
of the system, before which everything stands as it was and after which everything is new. Several
files of a folder that stays are renamed as one, a hidden folder `NEXT` in it, and then moved up
one by one. Whoever reads or writes them looks into `NEXT` first, so that a process killed at any
moment leaves the old files or the new ones (`tests/test_tracer_killed.py`).
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from platform import node

import pyarrow as pa

from graphs.schema import GraphError

NEXT = ".next"
"""The folder with what replaces its neighbours."""
NAME_BYTES = 150
"""Of a file's name as much as its temporary name holds; file systems allow 255 in all."""
LEFT = re.compile(r"\..*\.([0-9a-f]{6})-(\d+)-[0-9a-f]{12}\.partial")
"""Temporary names: machine, process, random."""
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
"""What a rename to a folder that holds something fails with."""

_writing: set[str] = set()
"""Temporary names that threads of this process write at present."""


@contextlib.contextmanager
def writing(path: Path, named: Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; renamed to `path` at the end.

    What is written is on the disk before it gets its name. After an exception nothing is left of
    it, and what stood at `path` before stands there still. What processes that were killed left
    of earlier tries is removed. Errors name `named` where it is given.

    Raises:
        GraphError: the folder is missing or may not be written, or the disk is full.
    """
    partial = path.with_name(_temporary(path.name))
    _writing.add(partial.name)
    try:
        _remove_leftovers(path)
        yield partial
        flush(partial)
        partial.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise GraphError(_unwritable(named or path, error)) from error
    finally:
        _remove(partial)
        _writing.discard(partial.name)


def write_together(folder: Path, files: Mapping[str, pa.Buffer]) -> None:
    """Write files into a folder, all of them or none; others in it stay as they are.

    Of several processes and threads that write the same files at once, the last one's stay.

    Raises:
        GraphError: the place cannot be written.
    """
    if not folder.is_dir():
        try:
            _write_folder(folder, files)
            return
        except GraphError:  # another process may have made it meanwhile
            if not folder.is_dir():
                raise
    for _ in range(100):  # other writers may be faster, but not for ever
        try:
            _move_up(folder, files)
            _write_folder(folder / NEXT, files, folder)
            _move_up(folder, files)
            return
        except GraphError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in TAKEN:
                raise
    raise GraphError(f"cannot write {folder}: others write it without end, or {NEXT} is in the way")


def _unwritable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not path.absolute().parent.is_dir():
        return f"cannot write {path}: there is no folder {path.absolute().parent}; make it first"
    reason = error.strerror or str(error)
    return f"cannot write {path}: {reason}: choose a place that exists and can be written"


def _write_folder(folder: Path, files: Mapping[str, pa.Buffer], named: Path | None = None) -> None:
    with writing(folder, named) as partial:
        partial.mkdir()
        for name, content in files.items():
            (partial / name).write_bytes(content)


def _move_up(folder: Path, names: Iterable[str]) -> None:
    """Bring what `NEXT` holds to its place: whatever is in there counts already."""
    following = folder / NEXT
    if not _has_next(folder):
        return
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                (following / name).replace(folder / name)
        flush_folder(folder)
        following.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in TAKEN:  # another process has replaced the files already
            raise GraphError(_unwritable(folder, error)) from error


def place_of(folder: Path, name: str) -> Path | None:
    """Where a file that was written with others stands; None where there is none."""
    places = (folder / NEXT / name, folder / name) if _has_next(folder) else (folder / name,)
    return next((place for place in places if place.is_file()), None)


def _has_next(folder: Path) -> bool:
    """Not where it is a link: a stranger's folder shall name no file outside it."""
    return (folder / NEXT).is_dir() and not (folder / NEXT).is_symlink()


def is_passing(name: str) -> bool:
    """Whether a file of this name is there only while something is written, or was cut short."""
    return name == NEXT or LEFT.fullmatch(name) is not None


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            flush(inside)
        flush_folder(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where the system can do so."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(name: str) -> str:
    start = name.encode(errors="ignore")[:NAME_BYTES].decode(errors="ignore")
    return f".{start}.{_machine()}-{os.getpid()}-{secrets.token_hex(6)}.partial"


def _machine() -> str:
    """Tells machines that share a disk apart: the numbers of their processes are their own."""
    return sha256(node().encode()).hexdigest()[:6]


def _remove_leftovers(path: Path) -> None:
    """Remove what dead processes of this machine left beside `path` in writing it."""
    start = _temporary(path.name).partition(f".{_machine()}-{os.getpid()}-")[0]
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            found = LEFT.fullmatch(entry.name)
            if found and entry.name.startswith(f"{start}.{_machine()}-") and _is_dead(entry.name):
                _remove(entry)


def _is_dead(name: str) -> bool:
    """Whether nobody writes to a temporary name any more."""
    found = LEFT.fullmatch(name)
    assert found is not None
    process = int(found[2])
    if process == os.getpid():
        return name not in _writing
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
