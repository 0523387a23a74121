"""One side of `benchmarks/against.py`: traces a case as often as it is told to.

A process of its own for every checkout, which it imports from its PYTHONPATH, so it asks for
nothing but what all of them have. Reads a word a line: `trace`, which answers with the CPU seconds
and wall-clock seconds of one trace, or a file, into which it writes the effects of the last one.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import tracer
from replacement_models import ReplacementModel

WARM = 1000
"""Rows of the untimed trace at most."""


def main(folder: Path, cap: int, rank_every: int) -> None:
    """Load, trace a little, then do as told."""
    model = ReplacementModel.load(folder / "model", folder / "transcoders")
    tokens = json.loads((folder / "case.json").read_text())["tokens"]
    graph = tracer.trace(model, tokens, max_features=min(cap, WARM), rank_every=rank_every)
    print("ready", flush=True)
    for line in sys.stdin:
        if (word := line.strip()) != "trace":
            effect = graph.effect.tocoo()
            ids = np.array(graph.nodes["id"].to_pylist())
            np.savez(word, ids=ids, row=effect.row, column=effect.col, value=effect.data)
            print("written", flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        graph = tracer.trace(model, tokens, max_features=cap, rank_every=rank_every)
        print(time.process_time() - cpu, time.perf_counter() - wall, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
