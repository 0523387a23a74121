"""Whether figures are right, on many prompts: `python -m benchmarks.figures [--draw FOLDER]`.

Prompts of every behaviour of the embedded default drawn at random, and those that people try first,
are traced, pruned and laid out, the full picture and the summary. Counted, of each, are edges that
pass behind a box at which they do not end, steps of the gold path past a node that carries more,
boxes that overlap, boxes and edges of the summary. With a folder both pictures of each are drawn
there, to be looked at.
"""

import argparse
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.validation import embedded_source
from graphs import AttributionGraph
from graphs.edges import share_matrix
from graphs.pictures import placement
from graphs.pictures.routing import behind
from graphs.pictures.scene import Style, compose
from graphs.pictures.summary import summarise
from graphs.pictures.summary_places import placed
from replacement_models.tiny.recipe.behaviours import behaviours, two_hop_behaviour

TRIED_FIRST = [
    "The capital of the state containing Dallas is",
    "The capital of the state containing Seattle is",
    "The day after Monday is",
    "The opposite of hot is",
    "When Mary and John went to the store, John gave a drink to",
]


def prompts(model: tracer.ReplacementModel, each: int) -> dict[str, str]:
    """Name -> prompt, the same for the same model."""
    source, rng = embedded_source(model), random.Random(7)
    found = behaviours(source) | {"two hops apart": two_hop_behaviour(source, source.cities.test)}
    named = {f"tried first {at}": text for at, text in enumerate(TRIED_FIRST)}
    for name, asked in found.items():
        for at, prompt in enumerate(rng.sample(list(asked), each)):
            named[f"{name} {at}"] = prompt.text
    return {re.sub("[^a-z0-9]+", "-", name.lower()): text for name, text in named.items()}


def full(graph: AttributionGraph) -> dict[str, int]:
    """What is wrong with the full picture, counted, and how many edges it draws."""
    scene = compose(graph._content, Style())
    streets = placement.Streets.of(scene.grid, scene.places)
    place = {int(row): at for at, row in enumerate(np.flatnonzero(streets.boxed))}
    routes = placement.routes(scene.grid, scene.places, curved=True)
    ends = zip(*(scene.grid.links[side].tolist() for side in (0, 1)), strict=True)
    own = [{place[end] for end in pair if end in place} for pair in ends]
    hidden = int(behind(routes, streets.box[streets.boxed], own).sum()) if routes else 0
    return {"edges": len(routes), "behind": hidden, "skipped": skipped(graph, sorted(scene.marked))}


def skipped(graph: AttributionGraph, path: list[int]) -> int:
    """Steps of a path past a node through which more flows than along the step itself."""
    share = share_matrix(graph.edges, graph.nodes.num_rows).toarray()
    total = np.linalg.inv(np.eye(len(share)) - share)
    found = 0
    for low, high in pairwise(path):
        by_way = total[high] * total[:, low]
        by_way[[low, high]] = 0
        found += int(by_way.max() > share[high, low] * (1 + 1e-6))
    return found


def summary(graph: AttributionGraph) -> dict[str, int]:
    """The same of the summary, with the boxes and edges it has."""
    found = summarise(graph._content, graph._summary_groups)
    places = placed(found)
    own = [{link.source, link.target} for link in found.links]
    left, low, right, high = places.box.T
    both = (left[:, None] < right) & (left < right[:, None])
    both &= (low[:, None] < high) & (low < high[:, None])
    return {
        "boxes": len(found.boxes),
        "edges": len(found.links),
        "behind": int(behind(places.routes, places.box, own).sum()) if found.links else 0,
        "overlapping": int(both.sum() - len(found.boxes)) // 2,
    }


def totals(rows: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    """Of each count the sum and the largest."""
    return {
        name: {"sum": sum(row[name] for row in rows), "most": max(row[name] for row in rows)}
        for name in rows[0]
    }


def main() -> None:
    """Trace, lay out, count, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=5, help="Prompts of each behaviour.")
    parser.add_argument("--draw", type=Path, help="Folder for the pictures.")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "figures.json")
    options = parser.parse_args()
    if options.draw:
        options.draw.mkdir(parents=True, exist_ok=True)
    model = tracer.ReplacementModel.load()
    pictures, summaries, wrong = [], [], []
    for name, text in prompts(model, options.each).items():
        graph = tracer.trace(model, text).prune()
        pictures.append(full(graph))
        summaries.append(summary(graph))
        if any(pictures[-1][one] for one in ("behind", "skipped")) or summaries[-1]["behind"]:
            wrong.append(text)
        if options.draw:
            graph.render(options.draw / f"{name}.svg")
            graph.render_summary(options.draw / f"{name}-summary.svg")
    result: dict[str, Any] = {
        "prompts": len(pictures),
        "full": totals(pictures),
        "summary": totals(summaries),
        "wrong": wrong,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
