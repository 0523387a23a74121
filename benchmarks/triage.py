"""How well triage predicts a validation: `python -m benchmarks.triage [FILE.json] [--quick]`.

Of each of the embedded default's 17 behaviours two prompts, drawn at random whether it answers them
right or not, are traced, triaged and validated in full (`tracer.validate`). Triage's usefulness and
each of its parts stand beside what validation measures as rank correlations, with intervals from
prompts drawn anew. Then twelve prompts a behaviour that it answers right are traced and put into 17
clusters, which are held against the behaviours (adjusted Rand index). Some six minutes of one
core; `--quick` takes fewer and writes no result.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import tracer
from benchmarks.consensus import answered, every_behaviour
from benchmarks.output import RESULTS, output_file
from replacement_models import ReplacementModel
from tracer.datasets.triage import PARTS
from tracer.validation.correlation import ranks

VALIDATED, CLUSTERED, SEED, DRAWS = 2, 12, 0, 2000
MEASURED = ("all of it", "circuit keeps", "responses", "spearman")
"""What a validation says: the mean of the others; what the circuit alone keeps of the target's lead
above nothing kept, from 0 to 1; mean cosine of predicted and measured responses one layer on; rank
correlation of influence with the effect of zeroing, over all features."""


def measured(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of a full validation that a graph is judged by, each from -1 or 0 to 1."""
    near = summary["responses"]["nothing"].get("1")
    parts = {
        "circuit keeps": min(1.0, max(0.0, summary["faithfulness"]["above_empty"] or 0.0)),
        "responses": 0.0 if near is None else near["cosine"],
        "spearman": summary["spearman"]["influence"] or 0.0,
    }
    return {"all of it": float(np.mean(list(parts.values()))), **parts}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def with_interval(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """A rank correlation, and the middle 95 % of it over prompts drawn anew."""
    left, right = np.array(a, float), np.array(b, float)
    rng = np.random.default_rng(SEED)
    drawn = [
        correlation(left[some], right[some])
        for some in rng.integers(0, len(left), (DRAWS, len(left)))
    ]
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return [round(one, 3) for one in (correlation(left, right), low, high)]


def halves(usefulness: Sequence[float], found: Sequence[float]) -> dict[str, float]:
    """Mean of what was measured, in the half that triage puts first and in the other."""
    order = np.argsort(-np.array(usefulness), kind="stable")
    values, middle = np.array(found)[order], len(order) // 2
    first, second = values[:middle], values[middle:]
    return {"first half": round(float(first.mean()), 3), "rest": round(float(second.mean()), 3)}


def prediction(model: ReplacementModel, count: int, folder: Path) -> dict[str, Any]:
    """Triage beside validations."""
    rng = random.Random(SEED)
    asked = [
        {"prompt": one.text, "behaviour": name}
        for name, prompts in every_behaviour(model).items()
        for one in rng.sample(prompts, count)
    ]
    dataset = tracer.trace_many(model, asked, folder)
    start = time.process_time()
    rows = {row["prompt"]: row for row in tracer.triage(dataset, model).to_pylist()}
    between = time.process_time()
    assert model.corpus is not None
    means = tracer.corpus_means(model, model.corpus())
    found = {}
    for number in sorted(rows):
        graph = tracer.trace(model, asked[number]["prompt"])
        found[number] = measured(tracer.validate(model, graph, means).summary)
    end = time.process_time()
    numbers = sorted(rows)
    names = ["usefulness", *(n for n in PARTS if all(rows[at][n] is not None for at in numbers))]
    return {
        "prompts": len(numbers),
        "CPU seconds a graph": {
            "triage": round((between - start) / len(numbers), 3),
            "validation": round((end - between) / len(numbers), 3),
        },
        "rank correlation, low, high": {
            name: {
                what: with_interval(
                    [rows[at][name] for at in numbers], [found[at][what] for at in numbers]
                )
                for what in MEASURED
            }
            for name in names
        },
        "mean by triage": {
            what: halves(
                [rows[at]["usefulness"] for at in numbers], [found[at][what] for at in numbers]
            )
            for what in MEASURED
        },
        "by prompt": [
            {"text": rows[at]["text"], "behaviour": asked[at]["behaviour"]}
            | {name: round(float(rows[at][name]), 4) for name in names}
            | {what: round(found[at][what], 4) for what in MEASURED}
            for at in numbers
        ],
    }


def clustering(model: ReplacementModel, count: int, folder: Path) -> dict[str, Any]:
    """Clusters beside behaviours."""
    asked = [
        {"prompt": one.text, "behaviour": name}
        for name, prompts in every_behaviour(model).items()
        for one in answered(model, prompts, count)
    ]
    dataset = tracer.trace_many(model, asked, folder)
    behaviours = len({one["behaviour"] for one in asked})
    found: dict[str, Any] = {"prompts": len(asked), "clusters": behaviours}
    for by in ("influence", "features"):
        one = tracer.clusters(dataset, behaviours, by, "behaviour")
        found[by] = {
            "adjusted Rand index": round(float(one.agreement or 0.0), 3),
            "silhouette": round(one.silhouette, 3),
            "sizes": list(one.sizes),
        }
    return found


def measure(validated: int, clustered: int) -> dict[str, Any]:
    """Everything that is written."""
    model = ReplacementModel.load()
    with TemporaryDirectory() as folder:
        return {
            "triage": prediction(model, validated, Path(folder) / "validated"),
            "clusters": clustering(model, clustered, Path(folder) / "clustered"),
        }


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", nargs="?", type=output_file)
    arguments.add_argument("--quick", action="store_true", help="Few prompts; writes no result.")
    given = arguments.parse_args()
    start = time.process_time()
    found = measure(*((1, 3) if given.quick else (VALIDATED, CLUSTERED)))
    shown = {name: value for name, value in found["triage"].items() if name != "by prompt"}
    print(json.dumps({"triage": shown, "clusters": found["clusters"]}, indent=1))
    print(f"{time.process_time() - start:.0f} CPU seconds")
    file = given.file or (None if given.quick else RESULTS / "triage.json")
    if file is not None:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
