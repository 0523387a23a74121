"""L0 against what it buys, a point for each dictionary, as charts."""

from collections.abc import Mapping, Sequence
from typing import Any

from graphs.pictures.charts import named_points

Point = tuple[float, float]


def pareto_charts(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Charts of dictionaries: error, KL and replacement score by active features a token.

    Args:
        entries: dictionaries as an evaluation holds them.

    Returns:
        SVG texts; a chart whose figure no dictionary has is left out. A line joins those that none
        beats in both.
    """
    charts = []
    for title, label, path, sign in (
        ("Error", "error without the top 1 %", ("mean", "error", "rest"), 1),
        ("All replaced", "KL, nats a token", ("replaced", "kl"), 1),
        ("Graphs", "replacement score", ("graphs", "graph", "replacement", "mean"), -1),
    ):
        places: dict[str, Point] = {}
        for entry in entries:
            value = at_path(entry, path)
            if value is not None:
                places[_free(entry["name"], places)] = entry["mean"]["l0_total"], value
        if places:
            across = "active features a token, all layers"
            charts.append(named_points(title, across, label, places, front(places, sign)))
    return charts


def front(places: Mapping[str, Point], sign: int) -> list[str]:
    """Names of those that no other beats in both, by rising L0.

    Args:
        places: (L0, value) by name; a smaller L0 is better.
        sign: 1 where smaller values are better, -1 where larger ones are.
    """
    found, best = [], float("inf")
    for name, (_, value) in sorted(places.items(), key=lambda one: (one[1][0], sign * one[1][1])):
        if sign * value < best:
            found.append(name)
            best = sign * value
    return found


def at_path(entry: Any, path: Sequence[str]) -> float | None:
    """A figure inside figures; None where it, or what it would be in, is not there."""
    for name in path:
        entry = entry.get(name) if isinstance(entry, Mapping) else None
    return float(entry) if isinstance(entry, int | float) else None


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number behind it where it is taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
