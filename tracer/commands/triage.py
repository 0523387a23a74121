"""`tracer triage`: which graphs of a dataset are worth a look."""

import json
from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, examples, json_option, model_options
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table, quoted


@click.command(
    epilog=examples("tracer triage many.graphs", "tracer triage many.graphs --checks 0 --top 5")
)
@click.argument("dataset", metavar="DATASET", type=EXISTING)
@click.option(
    "--checks",
    type=COUNT,
    default=24,
    help="Features of each graph to zero, in one forward pass; 0 loads no model.",
)
@click.option("--top", type=COUNT, default=50, help="Graphs to list.")
@model_options
@json_option
def triage(dataset: Path, checks: int, top: int, as_json: bool, **options: Any) -> None:
    """Sort the graphs of a DATASET by how useful they promise to be, the best first.

    Usefulness is the mean of what is known of four shares: completeness as traced, what a cap did
    not leave uncovered, how stable the features are over thresholds, and how far the influence of a
    few features agrees with what zeroing them does.
    """
    held = tracer.GraphDataset.load(dataset)
    model = load_model(options) if checks else None
    with progress("Checking graphs") as advance:
        how = {"checks": checks} if checks else {}
        rows = tracer.triage(held, model, progress=advance, **how).to_pylist()
    if as_json:
        say(json.dumps(rows))
        return
    shares = ("usefulness", "completeness", "covered", "stability", "agreement")
    from graphs import words

    say(f"{len(rows)} graphs, {min(top, len(rows))} listed, the most useful first")
    print_table(
        ("prompt", "text", "answer", *shares),
        [
            (
                row["prompt"],
                words.clipped(words.visible(row["text"] or ""), 60),
                f"{quoted(row['answer'] or '')} {words.percent(row['probability'] or 0)}",
                *("" if row[name] is None else f"{row[name]:.3f}" for name in shares),
            )
            for row in rows[:top]
        ],
    )
