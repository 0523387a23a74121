"""Choices of ways that outlive the process, in the user's cache folder.

One file a processor and release of torch. Nothing depends on it: one that cannot be read, written
or understood is as good as none.
"""

import hashlib
import json
import os
import platform
import tempfile
from functools import cache
from pathlib import Path

import torch

TELLING = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags")
"""Lines of /proc/cpuinfo in which processors differ that multiply at different speeds."""
KIND = "tracer products 1"


class ChoiceFile:
    """Names of ways by class of products."""

    def __init__(self, path: Path | None = None) -> None:
        """At `path`, or in the user's cache folder, looked up at every use."""
        self._path = path

    def read(self) -> dict[str, str]:
        """What it holds, as texts; empty where there is nothing to be had."""
        try:
            held = json.loads(self._place().read_text())
            ways = held["ways"] if held["kind"] == KIND else {}
            return {name: way for name, way in ways.items() if isinstance(way, str)}
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def add(self, name: str, way: str) -> None:
        """Hold one more, where files can be written."""
        held = self.read() | {name: way}
        about = {"kind": KIND, "processor": processor_name(), "torch": torch.__version__}
        text = json.dumps(about | {"ways": dict(sorted(held.items()))}, indent=1)
        try:
            path = self._place()
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                made = Path(scratch) / path.name
                made.write_text(text + "\n")
                made.replace(path)
        except (OSError, RuntimeError):
            return

    def _place(self) -> Path:
        if self._path is not None:
            return self._path
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracer"
        return folder / f"products-{_machine()}.json"


def processor_name() -> str:
    """What the processor calls itself."""
    return _processor().get("model name") or platform.processor() or platform.machine()


@cache
def _machine() -> str:
    known = [*sorted(_processor().items()), processor_name(), os.cpu_count(), torch.__version__]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


@cache
def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): text.strip() for name, _, text in pairs if name.strip() in TELLING}
