"""Ranks on this machine: started together, watched, and ended together when one is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from replacement_models import ModelError
from replacement_models.training.torchrun import WATCHED

POLL = 0.1
"""Seconds between looks at the ranks."""
PATIENCE = 10.0
"""Seconds that ranks have to end by themselves once one has."""
COMMAND = [sys.executable, "-P", "-c", "from tracer.commands import main; main()"]
ROOT = str(Path(__file__).parents[2])


def launch(count: int, arguments: Sequence[str], after: str) -> int:
    """Run a command of ours in as many processes as there are to be ranks.

    Args:
        count: of ranks.
        arguments: of the command line, as in `["train", "my.yaml"]`.
        after: what to do where one is lost, in words.

    Returns:
        The exit code of the first rank that failed, which has said why; 0 where none did.

    Raises:
        ModelError: a rank was lost; which, and what to do.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = dict(os.environ) | {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        WATCHED: "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))),
    }
    ranks = [_started(number, shared, arguments) for number in range(count)]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # they get it too, and save first
    try:
        codes = _watched(ranks)
    finally:
        signal.signal(signal.SIGINT, before)
        for rank in ranks:
            rank.kill()
    lost = [number for number, code in enumerate(codes) if code is not None and code < 0]
    if lost:
        raise ModelError(_words(lost, codes, after))
    return next((code for code in codes if code), 0)


def _started(
    number: int, shared: Mapping[str, str], arguments: Sequence[str]
) -> "subprocess.Popen[bytes]":
    own = {"RANK": str(number), "LOCAL_RANK": str(number)}
    return subprocess.Popen([*COMMAND, *arguments], env=dict(shared) | own)


def _watched(ranks: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """Exit codes, once all have ended; None of those that did not end after another failed."""
    until = None
    while True:
        codes = [rank.poll() for rank in ranks]
        if None not in codes or (until is not None and time.monotonic() > until):
            return codes
        if until is None and any(codes):
            until = time.monotonic() + PATIENCE
        time.sleep(POLL)


def _words(lost: Sequence[int], codes: Sequence[int | None], after: str) -> str:
    name = signal.Signals(-(codes[lost[0]] or 0)).name
    why = ", as where memory runs out" if name == "SIGKILL" else ""
    which = f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))} of {len(codes)}"
    return f"{which} {'were' if len(lost) > 1 else 'was'} killed ({name}{why}); {after}"
