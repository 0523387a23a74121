"""Attribution, side by side with circuit-tracer: equality of the graphs and ratios of the times.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python -m benchmarks.attribution [--peer PYTHON]

PYTHON is the interpreter of an environment with circuit-tracer (its TransformerLens backend). Both
sides load the same files, trace the same prompt with the same cap and ranking schedule, one after
the other in one run, after a short untimed graph: the peer once a batch size, from 1 up until two
larger ones take longer than the best; ours three times before the peer, after it and after its
repaired variant, so that a machine's slow minutes touch both sides, and where there is AMX as often
with split products; the best counts. The repaired peer contracts with
one matrix product a position. Ours is timed end to end (`tracer.trace`, the model loaded); what is
done once per model is reported apart, and one more trace measures its stages (`stages.py`). Writes
JSON and Markdown after every case; `--resume` keeps the cases that are there already. `--drawn 4`
takes so many shapes that nobody chose, drawn by `--seed` (the clock's unless given; it is written).
"""

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import LAYERS, VOCABULARY, write_case
from benchmarks.stages import profile
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from tracer.attribution import native


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    shape: str
    kind: str
    positions: int
    cap: int
    active: int = 40
    features: int = 4096
    layers: int = 12
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


QUICK = [Case("gpt2", "per_layer", 16, 256), Case("gpt2", "cross_layer", 8, 256)]
FULL = [
    Case("gpt2", "per_layer", 16, 1000),
    Case("gpt2", "cross_layer", 8, 256),
    Case("llama", "per_layer", 16, 256, layers=8),
    Case("gemma", "per_layer", 16, 256, layers=6),
    Case("gpt2", "cross_layer", 16, 256),
    Case("gpt2", "per_layer", 8, 512),
    Case("gpt2", "per_layer", 64, 256),
    Case("gpt2", "cross_layer", 16, 512),
    Case("gpt2", "cross_layer", 16, 1000),
    Case("gpt2", "per_layer", 32, 256, active=60),
    Case("gpt2", "per_layer", 32, 512, active=20),
    Case("llama", "cross_layer", 8, 256, features=2048, layers=8),
    Case("gemma", "cross_layer", 8, 256, features=2048, layers=6),
    Case("gpt2", "cross_layer", 32, 256),
    Case("llama", "per_layer", 32, 256, layers=8),
    Case("gpt2", "cross_layer", 8, 512),
    Case("llama", "cross_layer", 16, 256, features=2048, layers=8),
    Case("gpt2", "cross_layer", 64, 256),
    Case("llama", "per_layer", 16, 256, layers=16),
]
RANK_EVERY, WARM = 512, 16
DEEPEST = {"gpt2": 12, "llama": 8, "gemma": 6}
"""Layers of shapes drawn at random, at most; four at least."""
SIDES = ("peer", "repaired_peer")


CASE = tuple(field.name for field in fields(Case))


def drawn(count: int, seed: int) -> list[Case]:
    """So many cases drawn at random, per-layer and cross-layer in turns."""
    rng, found = random.Random(seed), []
    for kind in ("per_layer", "cross_layer") * count:
        shape = rng.choice(list(DEEPEST))
        case = Case(
            shape,
            kind,
            positions=rng.randint(6, 48),
            cap=rng.randint(128, 900),
            active=rng.randint(15, 60),
            features=rng.choice((1024, 2048, 3072, 4096)),
            layers=rng.randint(4, DEEPEST[shape]),
        )
        found.append(case)
    return found[:count]


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A call's result, its wall-clock seconds and the process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def repeated(call: Callable[[], Any], times: int) -> tuple[Any, list[dict[str, float]]]:
    """A call's last result and the seconds of every time."""
    results = [timed(call) for _ in range(times)]
    return results[-1][0], [seconds for _, seconds in results]


class Ours:
    """Our side of a case: the model, loaded and warm, and the runs so far."""

    def __init__(self, folder: Path, case: Case) -> None:
        """Load a case's files and trace a little."""
        self._model = ReplacementModel.load(folder / "model", folder / "transcoders")
        self._cap = case.cap
        _, self.once = timed(lambda: (self._model.folded, self._model.mean_unembedding))
        self._tokens = json.loads((folder / "case.json").read_text())["tokens"]
        tracer.trace(self._model, self._tokens, max_features=WARM)
        self._kinds = [False, True] if native.missing() is None else [False]
        if True in self._kinds:
            native.kernel()  # compiled now, if it has not been yet
        self.runs: dict[bool, list[dict[str, float]]] = {split: [] for split in self._kinds}
        self.graphs: dict[bool, AttributionGraph] = {}

    def trace(self, split: bool = False) -> AttributionGraph:
        """The case's graph, with split products or without."""
        return tracer.trace(
            self._model,
            self._tokens,
            max_features=self._cap,
            rank_every=RANK_EVERY,
            split_products=split,
        )

    def run(self, times: int) -> None:
        """Trace so often, with each kind of products there is."""
        for split in self._kinds:
            self.graphs[split], runs = repeated(partial(self.trace, split), times)
            self.runs[split] += runs

    def found(self) -> dict[str, Any]:
        """All that was measured; the fastest runs count."""
        plain = self.runs[False]
        found = {"runs": plain, "once_per_model": self.once, **least(plain)}
        found["stages"] = profile(self.trace)
        if True in self._kinds:
            split, far = self.runs[True], deviation(self.graphs[False], self.graphs[True])
            found["split"] = {"runs": split, **least(split), "difference": far}
        return found


def deviation(graph: AttributionGraph, other: AttributionGraph) -> float:
    """Largest difference of effects, relative to the largest; inf if the nodes differ."""
    if graph.nodes["id"].to_pylist() != other.nodes["id"].to_pylist():
        return float("inf")
    return float(abs(graph.effect - other.effect).max() / abs(graph.effect).max())


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """The smallest wall and the smallest CPU time of some runs."""
    return {unit: min(run[unit] for run in runs) for unit in ("wall", "cpu")}


def run_peer(
    python: str, folder: Path, case: Case, repeats: int, repaired: bool, device: str = "cpu"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Time the peer in its own environment."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            python,
            str(Path(__file__).with_name("peer.py")),
            str(folder),
            out,
            "--cap",
            str(case.cap),
        ]
        command += ["--rank-every", str(RANK_EVERY), "--repeats", str(repeats), "--warm", str(WARM)]
        command += [word for batch in case.batches for word in ("--batch", str(batch))]
        command += ["--device", device, *(["--repaired"] if repaired else [])]
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
            folder,
            (case.shape, case.layers),
            case.kind,
            [0, *tokens[1:].tolist()],
            case.active,
            case.features,
        )
        side = Ours(folder, case)
        side.run(repeats + 2)
        theirs = {}
        if peer is not None:
            for name in SIDES:
                theirs[name] = run_peer(peer, folder, case, repeats, name == "repaired_peer")
                side.run(repeats + 2)
        graph, ours = side.graphs[False], side.found()
    result: dict[str, Any] = {**asdict(case), "ours": ours}
    result["active_features"] = graph.metadata["active_features"]
    result["conservation"] = graph.metadata["conservation"]["relative"]
    for name, (found, timings) in theirs.items():
        timings["difference"] = difference(graph, found, case.positions)
        timings["ratio"] = ratios(timings, ours)
        if "split" in ours:
            timings["ratio_split"] = ratios(timings, ours["split"])
        result[name] = timings
    return result


def ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Their wall and CPU seconds over ours."""
    return {unit: theirs[unit] / ours[unit] for unit in ("wall", "cpu")}


def table(results: list[dict[str, Any]]) -> str:
    """The ratios as Markdown."""
    head = (
        *("model", "layers", "dictionary", "tokens", "rows", "active a token"),
        *("ours CPU s (wall)", "peer / ours CPU (wall)", "repaired peer / ours CPU (wall)"),
        *("peer / ours, split products", "repaired peer / ours, split products"),
        *("largest difference", "of split products", "conservation"),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in results:
        sides = [one.get(side) for side in SIDES]
        split = one["ours"].get("split")
        cells = [
            one["shape"],
            f"{one['layers']} of {LAYERS[one['shape']]}",
            one["kind"].replace("_", "-"),
            *(str(one[name]) for name in ("positions", "cap", "active")),
            f"{one['ours']['cpu']:.2f} ({one['ours']['wall']:.2f})",
            *(ratio(side, "ratio") for side in sides),
            *(ratio(side, "ratio_split") for side in sides),
            f"{sides[0]['difference']:.1e}" if sides[0] else "-",
            f"{split['difference']:.1e}" if split else "-",
            f"{one['conservation']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(side: dict[str, Any] | None, name: str) -> str:
    """A ratio of CPU seconds and, in brackets, of wall time; a dash where there is none."""
    if side is None or name not in side:
        return "-"
    return f"{side[name]['cpu']:.1f} ({side[name]['wall']:.1f})"


def means(results: list[dict[str, Any]]) -> str:
    """Geometric mean and worst ratio of CPU seconds, as Markdown."""
    lines = [
        "| dictionary | against | geometric mean | worst | with split products | worst | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("per_layer", "cross_layer"):
        for side in SIDES:
            cases = [one[side] for one in results if one["kind"] == kind and side in one]
            if cases:
                cells = [kind.replace("_", "-"), side.replace("_", " ")]
                cells += [*mean_and_worst(cases, "ratio"), *mean_and_worst(cases, "ratio_split")]
                lines.append(f"| {' | '.join(cells)} | {len(cases)} |")
    return "\n".join(lines)


def mean_and_worst(cases: list[dict[str, Any]], name: str) -> list[str]:
    """Geometric mean and least of ratios of CPU seconds; dashes where there are none."""
    found = [case[name]["cpu"] for case in cases if name in case]
    if not found:
        return ["-", "-"]
    return [f"{float(np.exp(np.log(found).mean())):.1f}", f"{min(found):.1f}"]


def stages_table(results: list[dict[str, Any]]) -> str:
    """CPU seconds a stage in percent of the trace, and the parts of the peak, as Markdown."""
    names = list(results[0]["ours"]["stages"]["seconds"])
    parts = list(results[0]["ours"]["stages"]["of_peak"])
    head = ["", *(f"{r['shape']} {r['kind'][:5]} {r['positions']}/{r['cap']}" for r in results)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    found = [one["ours"]["stages"] for one in results]
    for name in names:
        cells = [f"{100 * one['seconds'][name] / one['whole']:.1f} %" for one in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for part in parts:
        cells = [f"{100 * one['of_peak'].get(part, 0):.0f} %" for one in found]
        lines.append(f"| {part}: part of the peak rate | " + " | ".join(cells) + " |")
    peaks = [f"{one['peak_gflop_per_cpu_second']:.0f}" for one in found]
    lines.append("| peak, GFLOP per CPU second | " + " | ".join(peaks) + " |")
    once = [f"{one['ours']['once_per_model']['cpu']:.2f}" for one in results]
    lines.append("| folding once per model, CPU s | " + " | ".join(once) + " |")
    return "\n".join(lines)


def page(machine: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Everything as a Markdown page."""
    return f"""# Attribution: tracer and circuit-tracer

Written by `{machine["command"]}`: {machine["processor"]}, {machine["threads"]} threads,
torch {machine["torch"]}, float32, random weights, vocabulary of {VOCABULARY}. Ratios are CPU
seconds of the peer at its best batch size over ours, of wall time in brackets. "Repaired" is the
peer with its contraction replaced by one matrix product a position. "Split products" is
`split_products=True`, the optional kernel for AMX. Layers are cut where the peer would take too
long. "Largest difference" is that of any effect, relative to the largest effect.

{table(results)}

{means(results)}

## Where our time goes

Percent of the CPU seconds of one trace, not among the timed ones, with every stage measured. "Of
it" is part of a line above. Scores, attention and join are products inside the sweep. The peak is
that of a large float32 product in the same process; part of the peak counts the products'
operations only, against all the time of the sweep (or of the kind), copies and bookkeeping
included.

{stages_table(results)}
"""


def main() -> None:
    """Run the cases, print the tables, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that can import circuit_tracer")
    parser.add_argument("--quick", action="store_true", help="two small cases")
    parser.add_argument("--resume", action="store_true", help="keep the cases already written")
    parser.add_argument("--limit", type=int, help="measure at most so many cases")
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="runs of the peer at a batch size; ours makes two more, thrice; the fastest counts",
    )
    parser.add_argument("--drawn", type=int, help="so many cases drawn at random instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9, help="of the draw")
    parser.add_argument("-o", "--out", type=output_file)
    args = parser.parse_args()
    args.out = args.out or RESULTS / f"attribution{'_drawn' if args.drawn else ''}.json"
    machine = {
        "command": f"OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS={torch.get_num_threads()} "
        "python -m benchmarks.attribution "
        "--peer PYTHON" + (f" --drawn {args.drawn} --seed {args.seed}" if args.drawn else ""),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    results = json.loads(args.out.read_text())["results"] if args.resume else []
    measured = [
        Case(**{name: one[name] for name in CASE} | {"batches": tuple(one["batches"])})
        for one in results
    ]
    chosen = drawn(args.drawn, args.seed) if args.drawn else QUICK if args.quick else FULL
    todo = [case for case in chosen if case not in measured]
    for case in todo[: args.limit]:
        results.append(measure(case, args.peer, args.repeats))
        print(table(results).splitlines()[-1], flush=True)
        found = {"machine": machine, "results": results}
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page(machine, results))
    print(table(results), means(results), sep="\n\n")


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(named)} cores of {named[0]}" if named else platform.machine()


if __name__ == "__main__":
    main()
