"""How much memory there is: free on the machine, within the container's limit, on the GPU."""

from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_on(device: torch.device) -> int | None:
    """Bytes that a device can still give; None where nobody says.

    On CUDA what torch holds in reserve counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserve)
    return free_in_memory() if device.type == "cpu" else None


def free_in_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes of main memory this process can still get; None where the system does not say.

    Args:
        proc: where Linux tells of the machine and the process.
        cgroups: where it tells of control groups, versions 1 and 2.
    """
    found = [_number(proc / "meminfo", "MemAvailable:"), *_in_groups(proc, cgroups)]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _in_groups(proc: Path, cgroups: Path) -> list[int | None]:
    """What every group above the process leaves, page cache that can be dropped counted as free."""
    found: list[int | None] = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, kinds, place = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        top = cgroups
        if "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = cgroups / "memory"
        elif kinds:
            continue
        group = top / place.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                limit, used = (_number(folder / name) for name in names[:2])
                cache = _number(folder / "memory.stat", names[2]) or 0
                if limit is not None and used is not None:
                    found.append(limit - used + cache)
    return found


def _number(path: Path, name: str = "") -> int | None:
    """The number in a file, or behind a name in it, in bytes; None where there is none."""
    for line in _text(path).splitlines():
        words = line.split()
        if name and words[:1] != [name]:
            continue
        value, *unit = words[1:] if name else words
        if value.isdecimal():
            return int(value) * (1024 if unit == ["kB"] else 1)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
