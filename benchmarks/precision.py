"""How far graphs in lower precision are from those in float64, on the same weights and prompts.

    python -m benchmarks.precision

The model that ships with the project on six prompts, and random models of real shapes. Weights are
stored in float32, rounded where a precision asks for it, and every precision traces on its own: its
forward pass, its choice of features, its sweep. Differences are over the nodes that both graphs
have, relative to the largest effect in float64. Prints a table and writes JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import VOCABULARY, write_case
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from tracer.attribution import native

PROMPTS = (
    "Fact: the capital of the state containing Dallas is",
    "She lives in Shakopee",
    "The opposite of hot is",
    "The currency of Morocco is the",
    "the language of Croatia is",
    "One cow, two",
)
SHAPES = (
    ("gpt2", 12, "per_layer", 4096),
    ("gpt2", 12, "cross_layer", 4096),
    ("llama", 4, "per_layer", 4096),
    ("gemma", 4, "cross_layer", 2048),
)
POSITIONS, ACTIVE, CAP = 16, 40, 256
PRECISIONS = {
    "float32": ("float32", False),
    "float32, split products": ("float32", True),
    "bfloat16": ("bfloat16", False),
}
COLUMNS = (
    ("largest", "largest difference"),
    ("whole", "all differences (Frobenius)"),
    ("nodes", "nodes in common"),
    ("kept", "pruned nodes in common"),
    ("replacement", "replacement score among nodes, difference"),
    ("completeness", "completeness score among nodes, difference"),
)


def compare(exact: AttributionGraph, other: AttributionGraph) -> dict[str, float]:
    """How far `other` is from `exact`."""
    left, right = _ids(exact), _ids(other)
    known = set(right)
    common = [name for name in left if name in known]
    expected, found = _among(exact, common), _among(other, common)
    gap = found - expected
    scores, others = exact.scores.among_nodes, other.scores.among_nodes
    return {
        "largest": float(abs(gap).max() / abs(expected).max()),
        "whole": float(np.linalg.norm(gap) / np.linalg.norm(expected)),
        "nodes": _shared(left, right),
        "kept": _shared(_ids(exact.prune()), _ids(other.prune())),
        "replacement": abs(scores.replacement - others.replacement),
        "completeness": abs(scores.completeness - others.completeness),
    }


def _ids(graph: AttributionGraph) -> list[str]:
    found: list[str] = graph.nodes["id"].to_pylist()
    return found


def _among(graph: AttributionGraph, names: list[str]) -> np.ndarray:
    """Effects between some nodes, dense."""
    at = {name: row for row, name in enumerate(_ids(graph))}
    rows = [at[name] for name in names]
    effects: np.ndarray = graph.effect.tocsr()[rows][:, rows].toarray().astype(np.float64)
    return effects


def _shared(left: list[str], right: list[str]) -> float:
    return len({*left} & {*right}) / len({*left} | {*right})


def measure(
    name: str, load: dict[str, Any], prompts: list[Any], cap: int | None
) -> list[dict[str, Any]]:
    """One model in every precision; the worst prompt counts."""
    options: dict[str, Any] = {} if cap is None else {"max_features": cap}
    model = ReplacementModel.load(**load, dtype="float64")
    exact = [tracer.trace(model, prompt, **options) for prompt in prompts]
    found = []
    for precision, (dtype, split) in PRECISIONS.items():
        if split and native.missing() is not None:
            continue
        model = ReplacementModel.load(**load, dtype=dtype)
        graphs = [
            tracer.trace(model, prompt, **options, split_products=split) for prompt in prompts
        ]
        each = [compare(*pair) for pair in zip(exact, graphs, strict=True)]
        worst = {
            key: (min if key in ("nodes", "kept") else max)(one[key] for one in each)
            for key, _ in COLUMNS
        }
        found.append({"model": name, "precision": precision, "prompts": len(prompts), **worst})
        print(line(found[-1]), flush=True)
    return found


def line(one: dict[str, Any]) -> str:
    """One row of the table."""
    cells = [
        f"{one[key]:.3f}" if key in ("nodes", "kept") else f"{one[key]:.1e}" for key, _ in COLUMNS
    ]
    return f"| {' | '.join([one['model'], one['precision'], *cells])} |"


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "precision.json")
    args = parser.parse_args()
    print(f"| {' | '.join(['model', 'precision', *(title for _, title in COLUMNS)])} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    results = measure("embedded", {}, list(PROMPTS), None)
    for shape, layers, kind, features in SHAPES:
        tokens = [0, *np.random.default_rng(0).integers(1, VOCABULARY, POSITIONS - 1).tolist()]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_case(folder, (shape, layers), kind, tokens, ACTIVE, features)
            load = {"name": folder / "model", "transcoders": folder / "transcoders"}
            name = f"{shape}, {layers} layers, {kind.replace('_', '-')}"
            results += measure(name, load, [tokens], CAP)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
