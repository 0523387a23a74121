"""One rank of a small run, as torchrun starts it: `under_torchrun.py FOLDER [STEP]`.

Rank 1 is killed in step STEP. Each rank says at its very end which threads of gloo's it still has.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from replacement_models import ModelError  # noqa: E402
from replacement_models.training.torchrun import SaidElsewhereError  # noqa: E402
from tests.ranks import RUN, die_in_step  # noqa: E402
from tests.training_runs import trained  # noqa: E402


def left() -> None:
    """Say which threads there are that a group of ranks began."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    found = sorted(name for name in names if "gloo" in name)
    sys.stdout.write(f"rank {os.environ['RANK']} has left {found}\n")


def main(folder: Path, step: int) -> int:
    """Train; exit codes as the command's."""
    sections: dict[str, Any] = {**RUN, "divergence": {"share": 0.0}}
    if step and os.environ["RANK"] == "1":
        die_in_step(step)
    try:
        trained(folder, **sections)
    except SaidElsewhereError:
        return 2
    except ModelError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    atexit.register(left)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
