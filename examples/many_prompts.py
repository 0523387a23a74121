"""Trace several prompts and compare how much one feature matters in each.

    python examples/many_prompts.py

The feature "a city in Texas" fires on about half of the Texan cities and on no other; rarer cities
have features of their own, and Houston, whose answer is the same, goes another way.
"""

import tracer
from tracer import AttributionGraph, ReplacementModel

CITIES = ("Dallas", "Lubbock", "Laredo", "Houston", "Oakland", "Seattle", "Chicago")
LAYER, FEATURE = 0, 242
"""Layer and number of the embedded default's feature "a city in Texas"."""


def influence(graph: AttributionGraph, layer: int, feature: int) -> float:
    """The share of the answer that passes through a feature, at all positions."""
    return sum(
        row["influence"]
        for row in graph.nodes.to_pylist()
        if (row["kind"], row["layer"], row["feature"]) == ("feature", layer, feature)
    )


def main() -> None:
    """Print a line a city."""
    model = ReplacementModel.load()
    print("city      answer      influence of “a city in Texas”   replacement score")
    for city in CITIES:
        graph = tracer.trace(model, f"The capital of the state containing {city} is")
        answer = next(row["text"] for row in graph.nodes.to_pylist() if row["kind"] == "logit")
        share = influence(graph, LAYER, FEATURE)
        print(f"{city:9} {answer:12}{share:20.3f} {graph.scores.replacement:26.3f}")


if __name__ == "__main__":
    main()
