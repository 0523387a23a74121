"""`tracer generate`: the prompt continued, as it is and under changed features."""

from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import (
    COUNT,
    POSITIVE,
    change_options,
    changes_of,
    examples,
    model_options,
    only_one,
    prompt_options,
    steer_options,
    steering_of,
)
from tracer.commands.progress import progress
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Intervention, Steering


@click.command(
    epilog=examples(
        'tracer generate "The opposite of hot is" --scale 0/4/414=-1',
        'tracer generate "One two three" --max-new-tokens 8 --temperature 0.7 --seed 3',
    )
)
@prompt_options
@model_options
@change_options
@steer_options
@click.option("--max-new-tokens", type=POSITIVE, default=20, help="At most so many.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, help="0 takes the likeliest."
)
@click.option("--seed", type=COUNT, default=0, help="Of the sampling.")
def generate(prompt: str | None, tokens: list[int] | None, **options: Any) -> None:
    """Continue PROMPT as it is and under changed features.

    A slice without an end (2:) goes on through the new tokens.
    """
    text = only_one(prompt, tokens)
    interventions: list[Intervention | Steering] = [*changes_of(options), *steering_of(options)]
    model = load_model(options)
    with progress("Running the model"):
        [found] = tracer.generate(model, [text], interventions, **options)
    print_table((), [("as it is", found.plain.text), ("changed", found.steered.text)])
