"""Circuits that are known, beside those that tracer finds in the models they were compiled into.

    python -m benchmarks.ground_truth [--parts neurons dictionaries planted]

Sixteen causal programs compiled by Tracr (benchmarks/tracr): on each prompt the compiler's labels
and RASP's own values say which variable at which position the output comes from, and over which
edges. tracer finds circuits with the model's own neurons, unpruned but for what reaches no output
and pruned twice; nodes are merged by the variable that the compiler's label says a neuron computes.
Beside it as many edges drawn at random among all that go up and not back, by seeds. Then the same
with per-layer and cross-layer dictionaries trained here, on programs with several MLPs one after
the other: there a feature belongs to the variable it writes most of.

Precision and recall are over all prompts of a program together. An edge is missed as `flat` where
no effect of it leads to the output even unpruned: rectified units that are off, or a step function
between its steps; the output then stands on constants. A skip is an edge found that the program has
as a way over other nodes only. Early is the share of what MLPs write of their variables that the
dictionary lets features of earlier layers write. Steps are `graph.steps`: features passed between a
token and the output. At last the same on models with planted features (`planted.py`).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import tracer
from benchmarks import planted
from benchmarks.brief_training import KINDS, SEEDS, STARTS, Brief
from benchmarks.found_circuits import DRAWS, Tally, edges_at_random, merged
from benchmarks.output import RESULTS, output_file
from benchmarks.tracr.truth import OUTPUT, TOKENS, Circuit, Edge, Program, programs
from graphs import AttributionGraph
from replacement_models import ReplacementModel

PARTS = ("neurons", "dictionaries", "planted")
PRUNINGS = {"all": (1.0, 1.0), "kept": (0.8, 0.98), "wide": (0.95, 0.99)}
TRAINED = ("map_shift_map", "pattern_ab", "pattern_abc", "three_maps")
"""Programs of letters with MLPs that read what MLPs before them wrote."""


@dataclass(frozen=True)
class Case:
    """A prompt of a program, the truth, and the graph of the output."""

    program: Program
    model: ReplacementModel
    prompt: dict[str, Any]
    position: int
    token: int
    true: Circuit

    def graph(self, skip_positions: int) -> AttributionGraph:
        """Traced from the output's own direction."""
        row = self.model.host.unembedding[self.token]
        return tracer.trace(
            self.model,
            self.prompt["tokens"],
            position=self.position,
            targets=[tracer.Direction(row, OUTPUT)],
            skip_positions=skip_positions,
        )


def cases(program: Program, model: ReplacementModel) -> list[Case]:
    """The prompts of a program that have an output."""
    found = []
    for prompt in program.prompts:
        target = program.target(prompt)
        if target is not None:
            true = program.circuit(prompt, target[0])
            found.append(Case(program, model, prompt, *target, true))
    return found


def at_random(case: Case, count: int, generator: np.random.Generator) -> dict[Edge, float]:
    """As many edges, of all that go up a layer or more and to no earlier position."""
    program, last = case.program, case.position
    variables = {
        program.of_dimension(name)
        for part in program.known["layers"]
        for name in part["neurons"]
        if not name.startswith("_hidden_clean_bos_")
    }
    layers = {name: program.layer_of(name) for name in variables}
    return edges_at_random(layers, last, count, generator)


def with_neurons(program: Program) -> dict[str, Any]:
    """One program, found by the model's neurons, and at random."""
    model = ReplacementModel.load(program.folder, "neurons", dtype="float64")
    names = {
        (layer, feature): program.of_dimension(name)
        for layer, part in enumerate(program.known["layers"])
        for feature, name in enumerate(part["neurons"])
    }
    tallies = {name: Tally() for name in (*PRUNINGS, "random")}
    flat = worst = 0.0
    passed = []
    for case in cases(program, model):
        graph = case.graph(skip_positions=0)
        worst = max(worst, graph.metadata["conservation"]["relative"])
        passed.append(graph.steps)
        for name, pruning in PRUNINGS.items():
            edges = merged(graph.prune(*pruning), names)
            tallies[name].add(edges, case.true)
            if name == "all":
                flat += len(case.true.edges - set(edges))
            if name == "kept":
                for seed in range(DRAWS):
                    generator = np.random.default_rng([seed, *case.prompt["tokens"]])
                    tallies["random"].add(at_random(case, len(edges), generator), case.true)
    true = tallies["all"].edges.true
    return {
        "program": program.name,
        "layers": len(model.host.blocks),
        "prompts": len(passed),
        "edges": true,
        "flat": flat / true,
        "law": worst,
        "steps": float(np.mean(passed)),
        **{name: tally.figures() for name, tally in tallies.items()},
    }


@dataclass(frozen=True)
class Trained:
    """A program's model with a dictionary trained for it, and the error that is left of MLPs."""

    program: Program
    model: ReplacementModel
    error: float

    def named(self, graph: AttributionGraph) -> dict[tuple[int, int], str]:
        """The variable that each feature of a graph writes most of, wherever it writes."""
        found = {}
        for layer, feature, _, rows in self._features(graph):
            written = {
                name: float(rows[:, dimensions].square().sum())
                for name, dimensions in self._dimensions.items()
            }
            found[layer, feature] = max(written, key=lambda name: written[name])
        return found

    def early(self, graph: AttributionGraph) -> tuple[float, float]:
        """What features write of variables that a later layer computes, and what they write."""
        early = whole = 0.0
        for layer, _, activation, rows in self._features(graph):
            for row, target in zip(rows, self.model.transcoder.targets(layer), strict=True):
                for name, dimensions in self._dimensions.items():
                    if self.program.layer_of(name) == target:
                        amount = abs(activation) * float(row[dimensions].abs().sum())
                        early += amount * (target > layer)
                        whole += amount
        return early, whole

    @property
    def _dimensions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for at, label in enumerate(self.program.known["residual"]):
            name = self.program.of_dimension(label)
            if name != TOKENS and self.program.layer_of(name) >= 0:
                found.setdefault(name, []).append(at)
        return found

    def _features(self, graph: AttributionGraph) -> Iterator[tuple[int, int, float, torch.Tensor]]:
        """Layer, number, activation and decoder rows (targets, D) of a graph's features."""
        columns = ("kind", "layer", "feature", "activation")
        rows = zip(*(graph.nodes[name].to_pylist() for name in columns), strict=True)
        for kind, layer, feature, activation in rows:
            if kind == "feature":
                wanted = torch.tensor([feature])
                yield (
                    layer,
                    feature,
                    activation,
                    self.model.transcoder.decoder_rows(layer, wanted)[0],
                )


def trained(
    program: Program, kind: str, seed: int, scratch: Path, start: str = "neurons"
) -> Trained:
    """Train a dictionary of a kind; its L0 is the number of variables that a layer computes."""
    known = program.known["layers"]
    layers = [layer for layer, part in enumerate(known) if part["neurons"]]
    computed = [{program.of_dimension(name) for name in part["neurons"]} for part in known]
    names = program.known["tokens"]
    letters = [at for at, name in enumerate(names) if name not in ("bos", "pad")]
    longest = max(len(prompt["tokens"]) for prompt in program.prompts) - 1
    l0 = [float(len(computed[layer] & {*program.known["variables"]})) for layer in layers]
    briefly = Brief(program.folder, letters, longest, layers, l0)
    return Trained(program, *briefly.trained(kind, start, seed, scratch))


def with_dictionary(found: Trained) -> dict[str, Any]:
    """One program, found by a dictionary."""
    tally, passed, early, whole = Tally(), [], 0.0, 0.0
    for case in cases(found.program, found.model):
        graph = case.graph(skip_positions=1)
        tally.add(merged(graph.prune(), found.named(graph)), case.true)
        passed.append(graph.steps)
        more = found.early(graph)
        early, whole = early + more[0], whole + more[1]
    return {
        **tally.figures(),
        "early": early / whole if whole else 0.0,
        "steps": float(np.mean(passed)),
        "error": found.error,
    }


def dictionaries(start: str, seed: int) -> Iterator[dict[str, Any]]:
    """Every program that dictionaries are trained for, with every kind."""
    for program in programs():
        for kind in KINDS if program.name in TRAINED else ():
            with TemporaryDirectory() as scratch:
                figures = with_dictionary(trained(program, kind, seed, Path(scratch), start))
            yield {"program": program.name, "kind": kind, "start": start, "seed": seed, **figures}


def measured(part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part of the result."""
    if part == "neurons":
        yield from map(with_neurons, programs())
    elif part == "dictionaries":
        for start, seed in product(STARTS, SEEDS):
            yield from dictionaries(start, seed)
    else:
        yield from planted.rows()


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "ground_truth.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    for part in args.parts:
        found[part] = []
        for row in measured(part):
            print(row, flush=True)
            found[part].append(row)
            args.out.write_text(f"{json.dumps(found, indent=1)}\n", "utf-8")


if __name__ == "__main__":
    main()
