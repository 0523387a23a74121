"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from graphs.schema import GraphError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; renamed to `path` at the end.

    After an exception nothing is left of it, and what stood at `path` before stands there still.

    Raises:
        GraphError: the folder is missing or may not be written, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise GraphError(
            f"cannot write {path}: {reason}: choose a place that exists and can be written"
        ) from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
