"""Learning curves of a run, as one SVG of small charts."""

from collections.abc import Sequence
from typing import Any

from graphs.exchange.files import writing
from graphs.pictures.charts import HEIGHT, WIDTH, lines
from replacement_models.training.journal import FILE, entries
from replacement_models.training.train import Run

NAME = "curves.svg"
POINTS = 60
"""Most points of a line."""
SERIES = (
    ("error", "share of variance", ("error", "error_unweighted")),
    ("active features a token", "L0", ("l0",)),
    ("dead features", "share", ("dead",)),
    ("speed", "tokens a second", ("tokens_per_second",)),
    ("all MLPs replaced", "nats a token", ("divergence",)),
)


def write_curves(run: Run) -> None:
    """Draw what log.jsonl of a run holds into its folder."""
    found = thinned(entries(run.folder / FILE))
    charts = [
        lines(title, ("tokens", [line["tokens"] for line in found]), label, series)
        for title, label, names in SERIES
        if (series := _series(found, names))
    ]
    with writing(run.folder / NAME) as partial:
        partial.write_text(beside(charts), encoding="utf-8")


def thinned(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a log, few enough to be told apart, the last one among them."""
    every = max(1, -(-len(found) // POINTS))
    return list(found[::-1][::every][::-1])


def beside(charts: Sequence[str]) -> str:
    """Charts in one row."""
    placed = [
        chart.replace("<svg ", f'<svg x="{WIDTH * number}" ', 1)
        for number, chart in enumerate(charts)
    ]
    size = f'width="{WIDTH * len(charts)}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(placed) + "\n</svg>\n"


def _series(found: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, list[float | None]]:
    """Values of some fields, those that are there at all."""
    return {
        name: [line.get(name) for line in found]
        for name in names
        if any(name in line for line in found)
    }
