"""Automatic groups by either measure: how many, how pure, and what they cost in scores.

    python -m benchmarks.grouping [FILE.json] [--prompts 5]

The embedded default, some prompts of each behaviour drawn from a seed, graphs pruned at 0.8 and
0.98. `likeness` is ours, of labels and neighbours, with decoders where said; `profiles` is the
cosine of signed inputs and outputs with complete link of Neuronpedia's draft (pull request 229).
"""

import json
import random
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tracer
from benchmarks.validation import embedded_source
from graphs import AttributionGraph
from graphs.similarity import label_words
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.behaviours import behaviours

LEAST = (0.2, 0.3, 0.4, 0.5)


def figures(graph: AttributionGraph) -> dict[str, float]:
    """Counts, purity of labels, and scores of one grouped graph."""
    labels = dict(zip(*(graph.nodes[name].to_pylist() for name in ("id", "label")), strict=True))
    pairs = [
        bool(label_words(labels[one]) & label_words(labels[other]))
        for group in graph.groups
        for at, one in enumerate(group.members)
        for other in group.members[:at]
    ]
    grouped, alone = graph.grouped_scores(), graph.grouped_scores(alone=True)
    return {
        "groups": len(graph.groups),
        "features in groups": sum(len(group.members) for group in graph.groups),
        "pairs that share a word of their labels": float(np.mean(pairs)) if pairs else 0.0,
        "replacement lost": graph.scores.replacement - grouped.replacement,
        "completeness lost": graph.scores.completeness - grouped.completeness,
        "completeness of groups alone": alone.completeness,
    }


def main(arguments: list[str]) -> None:
    """Print medians and quartiles over prompts, and write them where a file is named."""
    count = int(arguments[arguments.index("--prompts") + 1]) if "--prompts" in arguments else 5
    model, rng = ReplacementModel.load(), random.Random(0)
    found: dict[str, list[dict[str, float]]] = {}
    for prompts in behaviours(embedded_source(model)).values():
        for prompt in rng.sample(prompts, count):
            graph = tracer.trace(model, prompt.text).prune()
            cosines = tracer.decoder_cosines(model, graph)
            for least in LEAST:
                for name, options in (
                    ("likeness", {}),
                    ("likeness with decoders", {"decoders": cosines}),
                    ("profiles", {"by": "profiles"}),
                ):
                    grouped = graph.group_features(least, **options)
                    found.setdefault(f"{name}, {least}", []).append(figures(grouped))
    result: dict[str, Any] = {
        name: {
            key: [
                round(float(q), 3)
                for q in np.quantile([one[key] for one in some], (0.25, 0.5, 0.75))
            ]
            for key in some[0]
        }
        for name, some in found.items()
    }
    for name, some in result.items():
        print(name, {key: values[1] for key, values in some.items()})
    if arguments and not arguments[0].startswith("--"):
        about = {"prompts": median(len(some) for some in found.values()), "quartiles": result}
        Path(arguments[0]).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
