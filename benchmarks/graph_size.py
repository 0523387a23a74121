"""Seconds that a large graph takes: `python -m benchmarks.graph_size [--nodes N] [--edges N]`.

A graph of random effects over 26 layers and 30 tokens is built, saved, loaded, pruned, drawn and
turned into a networkx graph, and its influence is solved both ways; one of 1,000 nodes and 10,000
edges is drawn whole. Wall-clock seconds and CPU seconds, those of Graphviz included; prints a table
and writes JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

from benchmarks.output import RESULTS, output_file
from graphs import AttributionGraph
from graphs.influence import influence, input_absolute, shares
from graphs.schema import GIVEN

LAYERS, TOKENS, LOGITS = 26, 30, 10


def columns(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Nodes in computation order: tokens, features spread over layers and positions, logits."""
    features = count - TOKENS - LOGITS
    layer = np.sort(rng.integers(0, LAYERS, features))
    nodes: dict[str, Any] = {name: [None] * count for name in GIVEN}
    nodes["kind"] = ["embedding"] * TOKENS + ["feature"] * features + ["logit"] * LOGITS
    nodes["layer"] = np.concatenate([np.full(TOKENS, -1), layer, np.full(LOGITS, LAYERS)])
    nodes["position"] = np.concatenate(
        [np.arange(TOKENS), rng.integers(0, TOKENS, features), np.full(LOGITS, TOKENS - 1)]
    )
    nodes["id"] = [f"{layer}_{at}" if layer >= 0 else f"E_{at}"
                   for at, layer in enumerate(nodes["layer"])]  # fmt: skip
    nodes["probability"] = [0.0] * (count - LOGITS) + [0.9 / LOGITS] * LOGITS
    return nodes


def effects(nodes: dict[str, Any], edges: int, rng: np.random.Generator) -> sparse.csr_array:
    """About `edges` causal effects with heavy tails."""
    count = len(nodes["id"])
    target, source = rng.integers(0, count, (2, 4 * edges))
    layer, position = nodes["layer"], nodes["position"]
    causal = (layer[source] < layer[target]) & (position[source] <= position[target])
    causal = np.flatnonzero(causal)[:edges]
    size = rng.standard_t(1.5, len(causal)).astype(np.float32)
    return sparse.csr_array((size, (target[causal], source[causal])), shape=(count, count))


class Timings:
    """Seconds by step."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.steps: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, call: Callable[[], Any], repeats: int = 1) -> Any:
        """What `call` returns; prints the seconds it took, the fastest of `repeats`."""
        runs = []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), sum(os.times()[:4])
            value = call()
            runs.append((time.perf_counter() - wall, sum(os.times()[:4]) - cpu))
        wall, cpu = min(runs)
        self.steps[name] = {"wall": wall, "cpu": cpu}
        print(f"{name:40} {wall:8.3f} s   {cpu:8.2f} s of CPU", flush=True)
        return value


def large(timed: Timings, count: int, edges: int) -> int:
    """Everything but drawing whole; returns the number of edges."""
    rng = np.random.default_rng(0)
    nodes = columns(count, rng)
    effect = effects(nodes, edges, rng)
    graph = timed("build", lambda: AttributionGraph.build(nodes, effect, {}))
    with tempfile.TemporaryDirectory() as folder:
        timed("save", lambda: graph.save(Path(folder) / "g"))
        loaded = timed("load", lambda: AttributionGraph.load(Path(folder) / "g"))
        small = timed("prune, influence included", loaded.prune)
        timed(
            "draw 300 edges of the pruned graph, SVG", lambda: small.render(Path(folder) / "g.svg")
        )
    timed("pruned graph to networkx", small.to_networkx)
    timed("whole graph to networkx", graph.to_networkx)
    timed("10 strongest paths", lambda: graph.paths(10))
    share = shares(graph.effect, input_absolute(graph.effect))
    weight = np.array(nodes["probability"])
    ours = timed("influence", lambda: influence(share, weight), 5)
    system = (sparse.eye_array(count, format="csr") - share).T.tocsr()
    other = timed(
        "influence, scipy's solver", lambda: spsolve_triangular(system, weight, lower=False), 5
    )
    print(f"largest difference {np.abs(ours + weight - other).max():.1e}")
    return graph.effect.nnz


def main() -> None:
    """Print a line a step, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=5_600_000, help="about so many are asked for")
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "graph_size.json")
    args = parser.parse_args()
    timed = Timings()
    rng = np.random.default_rng(1)
    nodes = columns(1_000, rng)
    whole = AttributionGraph.build(nodes, effects(nodes, 10_100, rng), {})
    print(whole)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "g.svg"
        timed(
            f"draw 1,000 nodes and {whole.effect.nnz} edges, SVG",
            lambda: whole.render(picture, edges=None),
            3,
        )
    edges = large(timed, args.nodes, args.edges)
    found = {"nodes": args.nodes, "edges": edges, "seconds": timed.steps}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
