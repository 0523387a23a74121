"""One process at a time where work of hours goes into one folder, and a killed one leaves no trace.

The system lets go of a lock when the process that holds it ends, however it ends. Locks stand in
the user's cache folder, so that nothing is added to what is written; where there is none, or the
system has no such locks, nobody is kept out.
"""

import contextlib
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from replacement_models.errors import ModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on a file, which is made where it is missing, until the end.

    Yields:
        Whether it was to be had: not where another process, or thread, holds it.

    Raises:
        OSError: the file cannot be made.
    """
    if fcntl is None:
        yield False
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def one_writer(folder: Path, what: str) -> Iterator[None]:
    """Refuse to write a folder that another process is writing.

    Of the processes of one distributed run, the first keeps others out.

    Args:
        folder: where the work goes.
        what: names it in the error.

    Raises:
        ModelError: another process is at it.
    """
    with contextlib.ExitStack() as stack:
        held = True
        with contextlib.suppress(OSError, RuntimeError):
            held = os.environ.get("RANK", "0") != "0" or stack.enter_context(locked(_file(folder)))
        if not held and fcntl is not None:
            raise ModelError(
                f"{what}: {folder} is being written by another process: wait for it, or name "
                "another place"
            )
        yield


def _file(folder: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(cache) / "tracer" / "locks"
    place.mkdir(parents=True, exist_ok=True)
    return place / sha256(str(folder.absolute()).encode(errors="replace")).hexdigest()[:24]
