"""What becomes of freed memory: kept for the next tensor, or handed back to the system.

GNU's C library takes options that it cannot be asked for, so what was set last is remembered here,
and what it would have come to when left alone is put back. It starts with 128 KiB for the first two
of them and raises both by itself as larger blocks are freed, up to RAISED: a process that has
loaded a model is there, or near. The first option that anyone sets ends that for good, so they stay
at RAISED then. Back at 128 KiB they would stay as well, and every larger array of the user's own
would be fresh memory from then on (tests/test_tracer_process.py counts it).
"""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters' numbers in malloc.h."""
RAISED = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 1 << 16}
"""Bytes free at the end of the heap, and bytes of one block, from which on the C library hands back
what is freed; and how many blocks may be such. mallopt(3)."""
KEPT = {M_TRIM_THRESHOLD: 1 << 30, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 0}
HANDED_BACK = {M_TRIM_THRESHOLD: 32 << 20, M_MMAP_THRESHOLD: 8 << 20, M_MMAP_MAX: 1 << 16}
_given: Mapping[int, int] = RAISED
"""What was set last; at first, what the C library comes to by itself."""


def keep_freed(keep: bool) -> None:
    """Settle what becomes of freed memory until the call ends: kept for the next tensor, or not.

    Fresh memory costs as much time as what is computed on it, so small traces keep theirs. In large
    ones gaps between what is kept can double what a trace takes.
    """
    _give(KEPT if keep else HANDED_BACK)


def give_back() -> None:
    """Hand back what is freed but kept by the C library: a gigabyte after a long recording.

    Nothing happens while freed memory is to be kept, nor where nothing was settled: on a GPU little
    is freed here, and the host has better to do.
    """
    for library in _glibc() if _given is HANDED_BACK else []:
        library.malloc_trim(0)


@contextmanager
def freed_as_before() -> Iterator[None]:
    """Put back the options that were set last before."""
    before = _given
    try:
        yield
    finally:
        if _given is not before:
            _give(before)


def _give(options: Mapping[int, int]) -> None:
    global _given  # as the C library's own setting is
    _given = options
    for library in _glibc():
        for parameter, size in options.items():
            library.mallopt(parameter, size)


def _glibc() -> list[ctypes.CDLL]:
    """The C library, where it is GNU's."""
    if sys.platform != "linux":
        return []
    library = ctypes.CDLL(None)
    known = hasattr(library, "malloc_trim") and hasattr(library, "mallopt")
    return [library] if known else []
