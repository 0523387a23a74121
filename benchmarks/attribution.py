"""Attribution, side by side with circuit-tracer: equality of the graphs and ratios of the times.

    python -m benchmarks.attribution [--quick] [--peer PYTHON]

PYTHON is the interpreter of an environment with circuit-tracer (its TransformerLens backend). Both
sides load the same files, trace the same prompt with the same cap and ranking schedule, one after
the other in one run; the peer at each of its batch sizes, of which the best counts. Ours is timed
end to end (`tracer.trace`, the model loaded); what is done once per model is reported apart. Prints
a table and writes JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

import tracer
from benchmarks.random_shapes import VOCABULARY, write_case
from graphs import AttributionGraph
from replacement_models import ReplacementModel

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    shape: str
    kind: str
    positions: int
    cap: int
    active: int = 40
    features: int = 4096
    batches: tuple[int, ...] = (8, 16)


QUICK = [Case("gpt2", "per_layer", 16, 256), Case("gpt2", "cross_layer", 8, 256)]
FULL = [
    Case("gpt2", "per_layer", 16, 1000),
    Case("gpt2", "cross_layer", 16, 512, batches=(8,)),
    Case("gpt2", "per_layer", 8, 1000),
    Case("gpt2", "cross_layer", 8, 512),
    Case("gpt2", "per_layer", 32, 1000),
    Case("gpt2", "per_layer", 64, 512, batches=(8,)),
    Case("llama", "per_layer", 16, 512),
    Case("llama", "cross_layer", 16, 256, features=2048, batches=(8,)),
]
RANK_EVERY = 512


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A call's result, its wall-clock seconds and the process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def run_ours(folder: Path, case: Case, repeats: int) -> tuple[AttributionGraph, dict[str, Any]]:
    """Trace the case `repeats` times; the fastest run counts, as for the peer."""
    model = ReplacementModel.load(folder / "model", folder / "transcoders")
    _, once = timed(lambda: (model.folded, model.mean_unembedding))
    tokens = json.loads((folder / "case.json").read_text())["tokens"]
    runs = []
    for _ in range(repeats):
        graph, seconds = timed(
            lambda: tracer.trace(model, tokens, max_features=case.cap, rank_every=RANK_EVERY)
        )
        runs.append(seconds)
    return graph, {"runs": runs, "once_per_model": once, **least(runs)}


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """The smallest wall and the smallest CPU time of some runs."""
    return {unit: min(run[unit] for run in runs) for unit in ("wall", "cpu")}


def run_peer(
    python: str, folder: Path, case: Case, repeats: int, repaired: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Time the peer in its own environment."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, str(HERE / "peer.py"), str(folder), out, "--cap", str(case.cap)]
        command += ["--rank-every", str(RANK_EVERY), "--repeats", str(repeats)]
        command += [word for batch in case.batches for word in ("--batch", str(batch))]
        command += ["--repaired"] if repaired else []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        timings = json.loads((Path(out) / "timings.json").read_text())
        graph = load_file(Path(out) / "graph.safetensors")
    return graph, timings | least(timings["runs"])


def difference(graph: AttributionGraph, peer: dict[str, np.ndarray], positions: int) -> float:
    """Largest difference of effects, relative to the largest effect; inf if the nodes differ."""
    nodes = graph.nodes.to_pydict()
    row = {name: index for index, name in enumerate(nodes["id"])}
    layers = graph.metadata["layers"]
    tokens = graph.metadata["token_ids"]
    ids = [
        *(f"{layer}_{feature}_{position}" for layer, position, feature in peer["features"]),
        *(f"{layer}_-1_{p}" for layer in range(layers) for p in range(positions)),
        *(f"E_{token}_{p}" for p, token in enumerate(tokens)),
        *(f"{layers + 1}_{token}_{positions - 1}" for token in peer["logits"]),
    ]
    at = np.array([row.get(name, -1) for name in ids])
    known = at >= 0
    if known.sum() != len(row):
        return float("inf")
    ours = graph.effect.tocsr()[at[known]][:, at[known]].toarray()
    theirs = peer["adjacency"][np.ix_(known, known)]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(case: Case, peer: str | None, repeats: int) -> dict[str, Any]:
    """One case, all sides."""
    tokens = np.random.default_rng(case.positions).integers(1, VOCABULARY, case.positions)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_case(
            folder, case.shape, case.kind, [0, *tokens[1:].tolist()], case.active, case.features
        )
        graph, ours = run_ours(folder, case, repeats)
        result: dict[str, Any] = {**asdict(case), "ours": ours}
        result["active_features"] = graph.metadata["active_features"]
        result["conservation"] = graph.metadata["conservation"]["relative"]
        if peer is not None:
            for name, repaired in (("peer", False), ("repaired_peer", True)):
                found, theirs = run_peer(peer, folder, case, repeats, repaired)
                theirs["difference"] = difference(graph, found, case.positions)
                theirs["ratio"] = {unit: theirs[unit] / ours[unit] for unit in ("wall", "cpu")}
                result[name] = theirs
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | dictionary | tokens | rows | active | ours CPU s | peer / ours CPU (wall) "
        "| repaired peer / ours | largest difference | conservation |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        ratios = [
            f"{one[side]['ratio']['cpu']:.1f} ({one[side]['ratio']['wall']:.1f})"
            if side in one
            else "-"
            for side in ("peer", "repaired_peer")
        ]
        deviation = f"{one['peer']['difference']:.1e}" if "peer" in one else "-"
        lines.append(
            f"| {one['shape']} | {one['kind'].replace('_', '-')} | {one['positions']} "
            f"| {one['cap']} | {one['active_features']} | {one['ours']['cpu']:.2f} "
            f"| {ratios[0]} | {ratios[1]} | {deviation} | {one['conservation']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that can import circuit_tracer")
    parser.add_argument("--quick", action="store_true", help="two small cases")
    parser.add_argument("--shape", choices=["gpt2", "llama"], help="only cases of this shape")
    parser.add_argument("--repeats", type=int, default=2, help="runs a side; the fastest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, default=HERE / "attribution.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    results = []
    for case in QUICK if args.quick else FULL:
        if args.shape not in (None, case.shape):
            continue
        results.append(measure(case, args.peer, args.repeats))
        print(table(results).splitlines()[-1], flush=True)
        found = {"machine": machine, "results": results}
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
