"""kill -9 at any moment: what a command was replacing loads, as it was or as it was to become."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_command_killed_at_any_step_leaves_the_old_or_the_new(tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    steps = json.loads(ran.stdout.splitlines()[-1])
    assert set(steps) == {
        *("trace", "trace over a folder", "trace over a zip"),
        *("prune over a folder", "prune over itself", "validate", "convert"),
    }
    assert min(steps.values()) >= 5, steps
