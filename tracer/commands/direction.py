"""`tracer direction`: a direction of the stream from contrast pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, examples, model_options, output
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Directions


@click.command(
    epilog=examples(
        "tracer direction pairs.jsonl --layer 2 --label texas -o texas.safetensors",
        'tracer trace "The capital of the state containing Dallas is" '
        "--target-direction texas.safetensors",
        'tracer intervene "The capital of the state containing Dallas is" '
        "--remove texas.safetensors --mode free",
    )
)
@click.argument("pairs", type=EXISTING)
@model_options
@click.option(
    "--layer",
    type=COUNT,
    help="Read and steer the stream entering this layer.",
    show_default="the middle one",
)
@click.option("--position", type=int, default=-1, help="At this token of every prompt.")
@click.option(
    "--method",
    type=click.Choice(["mean", "pca"]),
    default="mean",
    help="Mean difference, or first principal component of the differences.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.3,
    help="Share of the pairs that is only measured on.",
)
@click.option("--seed", type=COUNT, default=0, help="Of the draw of these pairs.")
@click.option("--label", default="direction", help="What graphs call it.")
@output("File to write: .safetensors.", required=True)
def direction(pairs: Path, output: Path, **options: Any) -> None:
    """Make a direction from PAIRS of prompts and say how well it reads and steers.

    PAIRS has a pair a line, first what has it: a .csv of two columns without a header, or JSONL,
    ["with", "without"] or {"positive": "with", "negative": "without"}.
    """
    from tracer.lenses.contrasts import read_pairs
    from tracer.lenses.stored import check_path

    check_path(output, "direction")
    listed = read_pairs(pairs)
    model = load_model(options)
    with progress("Running the pairs") as advance:
        found = tracer.direction(model, listed, progress=advance, **options)
    found.save(output)
    print_measured(found)
    say(f"Saved {output}")


def print_measured(found: "Directions") -> None:
    """Print what a direction does on pairs held out."""
    held = found.about["held_out"]
    rows = [
        ("pairs fitted on, held out", f"{found.about['pairs']}, {held['pairs']}"),
        ("AUROC on pairs held out", f"{held['auroc']:.3f}"),
        ("accuracy on pairs held out", f"{held['accuracy']:.3f}"),
    ]
    steering = held["steering"]
    if steering is None:
        rows.append(("steering", "not measured: both prompts of every pair have one answer"))
    else:
        moved = " → ".join(f"{steering[name]:.3f}" for name in ("before", "after"))
        rows += [
            ("second prompts, steered", f"{moved}; the first prompts' own: {steering['goal']:.3f}"),
            ("first prompts, steered away", f"{steering['goal']:.3f} → {steering['away']:.3f}"),
            ("answers that become the first's", f"{steering['flipped']:.0%}"),
            ("pairs steered", f"{steering['pairs']}"),
        ]
    print_table((), rows)
