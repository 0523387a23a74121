"""One fault tried: written into a copy of the tree, and the tests that run its line started."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

BROKEN = 70
"""Exit code of a trial in which pytest itself failed."""
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
           "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip
"""Of pytest: what `warm` imported is not rewritten, which changes nothing but messages."""
MEMORY = 12 << 30
"""Bytes that a trial may take: a fault may ask for anything."""
WAIT, TIMES = 30.0, 5.0
"""A trial may take so many seconds of its processor, and so many times what its tests take without
a fault."""
PATIENCE = 10.0
"""Times that by the clock: other work may slow it, and what waits for ever takes no processor."""


def warm() -> None:
    """Import what every test needs and none of ours, so that trials begin with it."""
    for name in ("torch", "transformers", "scipy.sparse", "networkx", "pyarrow.parquet",
                 "click.testing", "rich.console"):  # fmt: skip
        __import__(name)


def outcome(tree: Path, tests: Sequence[str], seconds: float, log: Path) -> str:
    """Run tests in a process of their own until one fails.

    Args:
        tree: where they stand.
        tests: their names.
        seconds: that they take without a fault.
        log: file for what pytest prints.

    Returns:
        "survived", "killed", or "killed by time".

    Raises:
        RuntimeError: pytest itself failed, so nothing is known.
    """
    child = os.fork()
    if child == 0:
        _run(tree, tests, log, WAIT + TIMES * seconds)
    end = time.monotonic() + PATIENCE * (WAIT + TIMES * seconds)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code == BROKEN:
                raise RuntimeError(f"pytest did not run: {log.read_text(errors='replace')[-2000:]}")
            if code == -signal.SIGXCPU:
                return "killed by time"
            return "survived" if code == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed by time"


def _run(tree: Path, tests: Sequence[str], log: Path, seconds: float) -> None:
    """Never returns."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, resource.RLIM_INFINITY))
    os.chdir(tree)
    sys.path[0] = str(tree)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    code = BROKEN
    try:
        code = int(pytest.main([*OPTIONS, *tests]))
    except BaseException:  # told by the exit code, and in the log
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
