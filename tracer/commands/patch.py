"""`tracer patch`: what one prompt's parts do in another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.models import load_model
from tracer.commands.options import examples, model_options, output
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table


@click.command(
    epilog=examples(
        'tracer patch "The opposite of hot is" "The opposite of day is" --target " cold"',
        'tracer patch A B --target " cold" --minus " night" --sites head -o heads.svg',
    )
)
@click.argument("clean")
@click.argument("corrupted")
@model_options
@click.option("--target", metavar="TOKEN", required=True, help="Measure its probability.")
@click.option(
    "--minus",
    metavar="TOKEN",
    help="Measure the logit of --target less this one's.",
    show_default="the probability of --target",
)
@click.option(
    "--sites",
    type=click.Choice(["residual", "attention", "mlp", "head", "feature"]),
    default="residual",
    help="What to patch, layer by layer and position by position.",
)
@click.option(
    "--method",
    type=click.Choice(["exact", "attribution"]),
    default="exact",
    help="Run every patch, or estimate all from one gradient.",
)
@output("Heat map to write: .svg.", show_default="none")
def patch(clean: str, corrupted: str, target: str, minus: str | None, **options: Any) -> None:
    """Run CORRUPTED with what CLEAN holds at one site after the other."""
    output: Path | None = options.pop("output")
    if output is not None and output.suffix != ".svg":
        raise Failure(f"cannot write {output}: expected a suffix of .svg")
    model = load_model(options)
    patching = tracer.patching
    metric = (
        patching.probability(model, target)
        if minus is None
        else patching.logit_difference(model, target, minus)
    )
    with progress("Patching"):
        table = patching.patch(model, clean, corrupted, metric, **options)
    print_patches(table.to_pylist())
    if output is not None:
        from graphs.exchange.files import writing

        words = [model.token_string(token) for token in model.tokenize(corrupted)]
        with writing(output) as partial:
            partial.write_text(patching.heat_map(table, labels=words), encoding="utf-8")
        say(f"Saved {output}")


def print_patches(rows: Sequence[dict[str, Any]], count: int = 15) -> None:
    """Print the sites whose patch does most."""
    names = ("layer", "position", "index", "before", "after", "effect", "recovered")
    best = sorted(rows, key=lambda row: -abs(row["effect"]))[:count]
    shown = [["-" if row[name] is None else row[name] for name in names] for row in best]
    print_table(names, shown)
