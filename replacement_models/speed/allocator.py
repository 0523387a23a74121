"""What becomes of freed memory: kept for the next tensor, or handed back to the system.

GNU's C library takes options that it cannot be asked for, so what was set last is remembered here,
and what it would have come to when left alone is put back. It starts with 128 KiB for the first two
of them and raises both by itself as larger blocks are freed, up to RAISED: a process that has
loaded a model is there, or near. The first option that anyone sets ends that for good, so they stay
at RAISED then. Back at 128 KiB they would stay as well, and every larger array of the user's own
would be fresh memory from then on (tests/test_tracer_process.py counts it).
"""

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters' numbers in malloc.h."""
RAISED = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 1 << 16}
"""Bytes free at the end of the heap, and bytes of one block, from which on the C library hands back
what is freed; and how many blocks may be such. mallopt(3)."""
KEPT = {M_TRIM_THRESHOLD: 1 << 30, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 0}
HANDED_BACK = {M_TRIM_THRESHOLD: 32 << 20, M_MMAP_THRESHOLD: 8 << 20, M_MMAP_MAX: 1 << 16}
_given: Mapping[int, int] = RAISED
"""What was set last; at first, what the C library comes to by itself."""
_most: float = math.inf
"""Bytes of its own that the process may hold while it keeps what is freed."""
STEP = 32 << 20
"""Bytes that it may grow by until freed memory is handed back again."""
STATM = Path("/proc/self/statm")


def keep_freed(keep: bool, growth: float = math.inf) -> None:
    """Settle what becomes of freed memory until the call ends: kept for the next tensor, or not.

    Fresh memory costs as much time as what is computed on it, so small traces keep theirs. Gaps
    between what is kept add up, though, to as much again in large ones.

    Args:
        keep: whether it is kept.
        growth: bytes that the process may grow by meanwhile; `stay_within` looks.
    """
    global _most
    _give(KEPT if keep else HANDED_BACK)
    _most = own_memory() + growth


def stay_within() -> None:
    """Hand back what is freed, from now on, once the process has grown by more than it may."""
    global _most
    if own_memory() > _most:
        if _given is KEPT:
            _give(HANDED_BACK)
        give_back()
        _most = max(_most, own_memory() + STEP)


def own_memory() -> int:
    """Bytes resident of the process that are no file's; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    resident, shared = STATM.read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


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
    global _most
    before, most = _given, _most
    try:
        yield
    finally:
        _most = most
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
