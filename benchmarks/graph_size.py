"""Seconds that a large graph takes: `python -m benchmarks.graph_size [nodes] [edges]`.

A graph of random effects over 26 layers and 30 tokens is built, saved, loaded, pruned and drawn,
and its influence is solved both ways.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

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


def timed(name: str, call: Callable[[], Any], repeats: int = 1) -> Any:
    """What `call` returns; prints the seconds it took, the best of `repeats`."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - start)
    print(f"{name:32} {min(seconds):8.3f} s", flush=True)
    return value


def main(count: int = 10_000, edges: int = 5_000_000) -> None:
    """Print a line a step for a graph of `count` nodes and about `edges` edges."""
    rng = np.random.default_rng(0)
    nodes = columns(count, rng)
    effect = effects(nodes, edges, rng)
    graph = timed("build", lambda: AttributionGraph.build(nodes, effect, {}))
    print(graph)
    with tempfile.TemporaryDirectory() as folder:
        timed("save", lambda: graph.save(Path(folder) / "g"))
        loaded = timed("load", lambda: AttributionGraph.load(Path(folder) / "g"))
        small = timed("prune", loaded.prune)
        timed("draw, 300 edges, SVG", lambda: small.render(Path(folder) / "g.svg"))
        timed("draw, 10,000 edges, SVG", lambda: small.render(Path(folder) / "g.svg", edges=10_000))
    timed("10 strongest paths", lambda: graph.paths(10))
    share = shares(graph.effect, input_absolute(graph.effect))
    weight = np.array(nodes["probability"])
    ours = timed("influence", lambda: influence(share, weight), 5)
    system = (sparse.eye_array(count, format="csr") - share).T.tocsr()
    other = timed(
        "influence, scipy's solver", lambda: spsolve_triangular(system, weight, lower=False), 5
    )
    print(f"largest difference {np.abs(ours + weight - other).max():.1e}")


if __name__ == "__main__":
    main(*(int(float(value)) for value in sys.argv[1:]))
