"""Attack everything that tracer reads, writes and is asked, and count what does not hold.

    python -m benchmarks.faults                         # 700 attacks of each class
    python -m benchmarks.faults --each 30 --classes "graph bytes" --seed 7

An attack fails where it ends in a traceback, takes more than 30 seconds, leaves part of an output,
says no in more than one line, or is accepted although what came of it is wrong; `attacks/` says for
each class how that is known. Attacks are drawn from the seed; a failed one is listed with its
number, and `--only N` repeats it alone. fsync is left out: nothing here cuts the power.
"""

import argparse
import json
import os
import platform
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.attacks import (
    beside_files,
    command_lines,
    graph_files,
    interrupted,
    model_files,
    other_files,
    requests,
)
from benchmarks.attacks.trial import Attacks, outcome
from benchmarks.output import output_file

CLASSES: dict[str, tuple[Attacks, str]] = {
    "command lines": (
        command_lines.odd_lines,
        "exit code 0, and every graph written loads; nothing half-written is left",
    ),
    "graph bytes": (graph_files.spoiled_bytes, "the graph loaded is the one that was saved"),
    "graph values": (
        graph_files.strange_values,
        "scores are shares, the graph has no cycle; pruned, described, drawn and exported",
    ),
    "graph metadata": (
        graph_files.strange_metadata,
        "pruned, described, drawn, exported and shown without an error",
    ),
    "zips": (graph_files.strange_zips, "the graph loaded is the one that was saved"),
    "hostile text": (
        graph_files.hostile_text,
        "no control, script, formula or broken markup in picture, table, page or terminal",
    ),
    "random graphs": (
        graph_files.random_dags,
        "equal after disk and networkx; pruned, described, drawn and exported",
    ),
    "groups, views, attention tables": (
        beside_files.spoiled_beside,
        "the graph is the one saved; its groups name nodes of it",
    ),
    "dictionaries": (
        model_files.spoiled_dictionaries,
        "all that it computes is finite (one weight for another is beyond finding)",
    ),
    "models": (
        model_files.spoiled_models,
        "traced, and the conservation law holds to 1e-3 (another finite weight is beyond finding)",
    ),
    "labels": (model_files.spoiled_labels, "texts by layer and feature"),
    "imports": (other_files.spoiled_imports, "the graph can be used like any other"),
    "training configurations": (other_files.spoiled_configurations, "fields of their types"),
    "checkpoints": (other_files.spoiled_checkpoints, "the tensors that were saved"),
    "lenses and directions": (other_files.spoiled_lenses, "finite tensors"),
    "feature stores": (other_files.spoiled_stores, "features can be read and searched"),
    "serving requests": (requests.odd_requests, "what is then on disk loads"),
    "kill -9": (interrupted.killed, "the old graph or the new one loads"),
    "disk full and exceptions": (
        interrupted.failing,
        "the old graph or the new one loads, nothing else is left",
    ),
    "writers and readers at once": (interrupted.crowded, "one of the graphs written loads"),
    "threads on one model": (interrupted.threaded, "each thread's graph is the one made alone"),
}
"""What is attacked, and how it is known that what was accepted is right."""
COUNTED = ("tried", "refused", "accepted rightly", "failed")


def attacked(name: str, seed: int, each: int, only: int | None = None) -> dict[str, Any]:
    """Attack one class.

    Args:
        name: of `CLASSES`.
        seed: of all attacks.
        each: how many.
        only: run this one alone.

    Returns:
        Numbers of attacks tried, refused, accepted and failed, and the first failures.
    """
    attacks, rightly = CLASSES[name]
    counts: Counter[str] = Counter()
    failures = []
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = attacks(rng, Path(folder).resolve())
        for number in range(each) if only is None else [only]:
            drawn = np.random.default_rng([seed, number])
            attack = next(made)
            rng.bit_generator.state = drawn.bit_generator.state
            result, why = outcome(attack)
            counts[result] += 1
            if result == "failed":
                failures.append({"attack": number, "why": why})
        made.close()
    return {
        "tried": sum(counts.values()),
        "refused": counts["refused"],
        "accepted rightly": counts["accepted"],
        "rightly": rightly,
        "failed": counts["failed"],
        "failures": failures[:20],
    }


def main() -> None:
    """Attack, print a line a class, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=700, help="attacks of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--only", type=int, help="one attack of each class, by its number")
    parser.add_argument("-o", "--output", type=output_file, help="JSON to write or add classes to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    found: dict[str, Any] = {}
    for name in given.classes:
        found[name] = attacked(name, given.seed, given.each, given.only)
        counts = {key: found[name][key] for key in COUNTED}
        print(name, *(f"{key} {value}" for key, value in counts.items()), sep="\t", flush=True)
        for failure in found[name]["failures"]:
            print("", failure["attack"], failure["why"], sep="\t", flush=True)
        if given.output is not None:
            write(given.output, found, given.seed)


def write(path: Path, found: dict[str, Any], seed: int) -> None:
    """Write classes beside those that a file holds of the same seed."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    classes = {**held.get("classes", {}), **found} if held.get("seed") == seed else found
    classes = {name: classes[name] for name in CLASSES if name in classes}
    sums = {key: sum(one[key] for one in classes.values()) for key in COUNTED}
    about = {"seed": seed, "python": platform.python_version(), "torch": torch.__version__}
    path.write_text(json.dumps({**about, "sums": sums, "classes": classes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
