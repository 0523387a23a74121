"""Resident memory of this process, as Linux counts it."""

import ctypes
from pathlib import Path


def resident() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def peak() -> int:
    """Bytes resident at most since the start, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let `peak` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Hand back what the C library (GNU's) keeps of freed memory."""
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
