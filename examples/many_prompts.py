"""Trace several prompts and compare how much one feature matters in each.

    python examples/many_prompts.py

The feature is the one that matters most at "Dallas": "a city in Texas". It fires on some of the
Texan cities and on no other; rarer cities have features of their own.
"""

import tracer
from tracer import AttributionGraph, ReplacementModel

CITIES = ("Dallas", "Lubbock", "Laredo", "Houston", "Oakland", "Seattle", "Chicago")
PROMPT = "The capital of the state containing {} is"
CITY_AT = 7
"""Position of the city's token."""


def strongest(graph: AttributionGraph) -> tuple[int, int]:
    """Layer and number of the feature that matters most at the city."""
    rows = graph.nodes.to_pylist()
    there = [row for row in rows if (row["kind"], row["position"]) == ("feature", CITY_AT)]
    best = max(there, key=lambda row: row["influence"])
    return best["layer"], best["feature"]


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
    place = strongest(tracer.trace(model, PROMPT.format(CITIES[0])))
    print("city      answer      influence of “a city in Texas”   replacement score")
    for city in CITIES:
        graph = tracer.trace(model, PROMPT.format(city))
        answer = next(row["text"] for row in graph.nodes.to_pylist() if row["kind"] == "logit")
        share = influence(graph, *place)
        print(f"{city:9} {answer:12}{share:20.3f} {graph.scores.replacement:26.3f}")


if __name__ == "__main__":
    main()
