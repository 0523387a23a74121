"""A loop of circuit-tracer over many prompts, run by `many_prompts` in an environment of its own.

    PEER_PYTHON benchmarks/peer_loop.py CASE_FOLDER OUT_FOLDER

Loads the case's files as `peer.py` does, finds the batch size that is quickest on the first prompts
from 1 up, then traces every prompt of `prompts.json` (token ids), saves each graph as its own files
and finds what its own pruning would keep; timed without that and with it. Prints JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import attribute
from circuit_tracer.graph import prune_graph
from peer import PATIENCE, load

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TRIED = 5
"""Prompts on which batch sizes are tried."""


def traced(
    model: Any, prompts: list[list[int]], batch: int, out: Path
) -> tuple[float, float, list[int]]:
    """CPU seconds of tracing and saving all, of pruning them, and how many features each has."""
    saved, pruned, features = 0.0, 0.0, []
    for number, tokens in enumerate(prompts):
        begin = time.process_time()
        graph = attribute(torch.tensor(tokens), model, batch_size=batch)
        graph.to_pt(str(out / f"{number}.pt"))
        saved += time.process_time() - begin
        begin = time.process_time()
        prune_graph(graph)
        pruned += time.process_time() - begin
        features.append(len(graph.selected_features))
    return saved, pruned, features


def main() -> None:
    """Find the batch size, trace and tell."""
    folder, out = map(Path, sys.argv[1:])
    case = json.loads((folder / "case.json").read_text())
    prompts = json.loads((folder / "prompts.json").read_text())
    model = load(folder, case, torch.device("cpu"))
    traced(model, prompts[:TRIED], 8, out)
    took: dict[int, float] = {}
    worse = 0
    for batch in BATCHES:
        took[batch] = traced(model, prompts[:TRIED], batch, out)[0]
        worse = worse + 1 if took[batch] > min(took.values()) else 0
        if worse == PATIENCE:
            break
    batch = min(took, key=lambda one: took[one])
    saved, pruned, features = traced(model, prompts, batch, out)
    found = {"batch": batch, "saved": saved, "pruned": pruned, "features": features}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
