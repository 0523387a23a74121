"""CPU seconds of short commands, each a process of its own: `python -m benchmarks.start_up`.

The embedded default is traced, changed, patched and let to write; beside them stands what Python,
torch and the model's module alone take to import. User and system time of the process, the least
of the runs. Prints a table and writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.output import RESULTS, output_file
from replacement_models.speed.choice_file import processor_name

PROMPT = "The capital of the state containing Dallas is"
CLEAN, CORRUPTED = "The opposite of hot is", "The opposite of day is"
TRACER = [sys.executable, "-m", "tracer"]
CASES = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch and the model's module": [
        *(sys.executable, "-c", "import torch; import transformers.models.gpt2.modeling_gpt2"),
    ],
    "tracer --help": [*TRACER, "--help"],
    "tracer trace": [*TRACER, "trace", PROMPT, "-o", "dallas.graph"],
    "tracer intervene": [*TRACER, "intervene", PROMPT, "--set", "0/-2/0=0"],
    "tracer generate": [*TRACER, "generate", PROMPT, "--max-new-tokens", "8"],
    "tracer patch": [*TRACER, "patch", CLEAN, CORRUPTED, "--target", " cold"],
    "tracer show": [*TRACER, "show", "dallas.graph"],
    "tracer render": [*TRACER, "render", "dallas.graph", "-o", "dallas.svg"],
}


def seconds(call: Sequence[str], folder: str) -> float:
    """CPU time of one process and those it starts."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    before = os.times()
    subprocess.run(call, cwd=folder, env=environment, check=True, capture_output=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "start_up.json")
    options = parser.parse_args()
    found = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.runs):  # in turn, so that a busy moment hits them alike
            for name, call in CASES.items():
                found[name].append(seconds(call, folder))
    least = {name: round(min(times), 2) for name, times in found.items()}
    for name, time in least.items():
        print(f"{name:40} {time:6.2f}")
    result = {"processor": processor_name(), "runs": options.runs, "cpu_seconds": least}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
