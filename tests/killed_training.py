"""Kill training runs, at steps and while they write, and compare what they end with.

`python -m tests.killed_training FOLDER` trains once in peace, and once in processes that are killed
one after the other with SIGKILL, each going on where the last checkpoint stands: some in the middle
of a step, some before a change to the file system, some interrupted as by Ctrl-C. Prints how many
were killed.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from replacement_models import load_transcoder
from replacement_models.training.loop import Loop
from tests.killed import die_at, hidden
from tests.training_runs import same, trained

RUN: dict[str, Any] = {
    "dictionary": {"kind": "cross_layer", "features": 64, "widths": [64, 48]},
    "run": {"tokens": 24 * 256, "batch": 256, "checkpoint_every": 5, "log_every": 4, "threads": 1},
    "loss": {"dead_after": 500, "revive_every": 4},
    "divergence": {"share": 0.25, "rows": 2},
}


def die_in_step(number: int, with_signal: int) -> None:
    """Have this process get a signal in its `number`-th step."""
    usual, count = Loop.step, iter(range(number + 1))

    def step(self: Loop, batch: Any) -> Any:
        if next(count, number) == number - 1:
            os.kill(os.getpid(), with_signal)
        return usual(self, batch)

    Loop.step = step  # type: ignore[method-assign]


def outcome(folder: Path, kind: str, number: int) -> int:
    """How a process ends that trains on: 0 or a signal; 1 where it was interrupted."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if kind == "write":
                die_at(number)
            elif kind != "none":
                die_in_step(number, signal.SIGKILL if kind == "step" else signal.SIGINT)
            trained(folder, **RUN)
            code = 0
        except KeyboardInterrupt:
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> int:
    """How many processes were killed before one got through."""
    torch.set_num_threads(1)
    expected = load_transcoder(trained(folder / "peace", **RUN).transcoder)
    draw, killed = random.Random(0), 0
    plan = [("step", draw.randint(2, 8)), ("write", draw.randint(3, 12)), ("ask", 3)] * 2
    plan += [("write", number) for number in (1, 2, 5, 8, 14, 20)] + [("step", 1)]
    for kind, number in plan:
        ended = outcome(folder / "war", kind, number)
        assert ended in (0, -signal.SIGKILL, 1), ended
        killed += ended != 0
    assert outcome(folder / "war", "none", 0) == 0
    assert same(expected, load_transcoder(folder / "war" / "transcoder"))
    assert hidden(folder / "war" / "checkpoints") == []
    logs = [
        [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        for name in ("peace", "war")
    ]
    for one, other in zip(*logs, strict=True):
        for name in ("step", "error", "l0", "dead"):
            assert one[name] == other[name], (one["step"], name)
    return killed


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps({"killed": main(Path(sys.argv[1]))}) + "\n")
