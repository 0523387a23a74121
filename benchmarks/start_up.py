"""CPU seconds of short commands, each a process of its own: `python -m benchmarks.start_up`.

The embedded default is traced, validated, changed, patched and let to write; beside them stands
what Python, torch and the model's module alone take to import. User and system time of the process,
the least of the runs. With `--against CHECKOUT` the same commands of another checkout run in turns
with these, on graphs of its own. Prints a table and writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkouts import checkout, revision
from benchmarks.output import RESULTS, output_file
from replacement_models.speed.choice_file import processor_name

PROMPT = "The capital of the state containing Dallas is"
CLEAN, CORRUPTED = "The opposite of hot is", "The opposite of day is"
HERE = Path(__file__).parents[1]
TRACER = "tracer"
"""In a command: the command line of a checkout."""
CASES: dict[str, list[str]] = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch and the model's module": [
        *(sys.executable, "-c", "import torch; import transformers.models.gpt2.modeling_gpt2"),
    ],
    "tracer --help": [TRACER, "--help"],
    "tracer trace": [TRACER, "trace", PROMPT, "-o", "dallas.graph"],
    "tracer validate": [TRACER, "validate", "dallas.graph"],
    "tracer intervene": [TRACER, "intervene", PROMPT, "--set", "0/-2/0=0"],
    "tracer generate": [TRACER, "generate", PROMPT, "--max-new-tokens", "8"],
    "tracer patch": [TRACER, "patch", CLEAN, CORRUPTED, "--target", " cold"],
    "tracer show": [TRACER, "show", "dallas.graph"],
    "tracer render": [TRACER, "render", "dallas.graph", "-o", "dallas.svg"],
}


def seconds(call: Sequence[str], folder: Path, checkout: Path) -> float:
    """CPU time of one process and those it starts."""
    if call[0] == TRACER:
        call = [sys.executable, str(checkout / "cli.py"), *call[1:]]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    before = os.times()
    subprocess.run(call, cwd=folder, env=environment, check=True, capture_output=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def measured(checkouts: Sequence[Path], cases: Sequence[str], runs: int) -> list[dict[str, float]]:
    """The least CPU time of every case, for each checkout.

    In turn, so that a busy moment hits them alike.
    """
    found: list[dict[str, list[float]]] = [{name: [] for name in cases} for _ in checkouts]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(len(checkouts))]
        for folder in folders:
            folder.mkdir()
        for _ in range(runs):
            for name in cases:
                for folder, checkout, times in zip(folders, checkouts, found, strict=True):
                    times[name].append(seconds(CASES[name], folder, checkout))
    return [{name: round(min(each), 2) for name, each in times.items()} for times in found]


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=checkout, help="folder of another checkout")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "start_up.json")
    options = parser.parse_args()
    other = options.against
    least, *before = measured([HERE, *([other] if other else [])], options.cases, options.runs)
    result = {"processor": processor_name(), "runs": options.runs, "cpu_seconds": least}
    if other:
        result |= {"against": revision(other), "cpu_seconds_against": before[0]}
    for name, time in least.items():
        print(f"{name:40} {time:6.2f}", *(f"{times[name]:6.2f} before" for times in before))
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
