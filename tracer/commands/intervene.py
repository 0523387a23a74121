"""`tracer intervene`: the answer under changed features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import (
    change_options,
    changes_of,
    examples,
    layer_range,
    model_options,
    only_one,
    prompt_options,
    steer_options,
    steering_of,
)
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_answers, print_table, quoted

if TYPE_CHECKING:
    from tracer import Change, Intervention, Steering

NOISE = 1e-6
"""What a pattern changes by at most where nothing has changed."""


@click.command(
    epilog=examples(
        'tracer intervene "The opposite of hot is" --set 0/4/414=0 --mode free',
        'tracer intervene "The opposite of hot is" --scale 1/2:5/42=-1 --add 0/3/7=2.5',
    )
)
@prompt_options
@model_options
@change_options
@steer_options
@click.option(
    "--mode",
    type=click.Choice(["direct", "constrained", "free"]),
    default="direct",
    help="Freeze all else, clamp the MLPs of --layers, or recompute everything downstream.",
)
@click.option(
    "--layers",
    type=layer_range,
    metavar="A:B",
    help="Clamped layers, B not included.",
    show_default="none; --mode constrained needs them",
)
@click.option(
    "--freeze-attention/--recompute-attention",
    default=None,
    help="Hold attention patterns.",
    show_default="held, but for --mode free",
)
@click.option(
    "--freeze-norms/--recompute-norms",
    default=None,
    help="Hold norm denominators.",
    show_default="held in --mode direct",
)
@click.option(
    "--patterns/--no-patterns",
    default=False,
    help="Also print where attention changes most, which it does where it is recomputed.",
)
def intervene(prompt: str | None, tokens: list[int] | None, mode: str, **options: Any) -> None:
    """Change features and print what becomes of the answer.

    P may count from the end (-1) or be a slice (2:5). Options may be repeated.
    """
    text = only_one(prompt, tokens)
    interventions: list[Intervention | Steering] = [*changes_of(options), *steering_of(options)]
    if not interventions:
        raise click.UsageError(
            "expected --set, --scale or --add, --steer or --remove", click.get_current_context()
        )
    model = load_model(options)
    with progress("Running the model"):
        result = tracer.intervene(model, text, interventions, mode, **options)
    print_answers(model, [("before", result.base.logits[-1]), ("after", result.logits[-1])])
    texts = [model.token_string(token) for token in model.tokenize(text)]
    print_responses(result, texts)
    if options["patterns"]:
        print_patterns(result, texts)


def print_responses(result: "Change", tokens: Sequence[str], count: int = 10) -> None:
    """Print the features that respond most; the changed ones themselves do not show."""
    before, after = result.base.activations, result.activations
    response = (after - before).abs()
    noise = 1e-6 * before.abs().max()
    places = sorted(
        zip(
            response[response > noise].tolist(), (response > noise).nonzero().tolist(), strict=True
        ),
        key=lambda pair: -pair[0],
    )
    rows = [
        (
            f"{layer}/{at}/{feature}",
            quoted(tokens[at]),
            before[layer, at, feature].item(),
            after[layer, at, feature].item(),
        )
        for _, (layer, at, feature) in places[:count]
    ]
    say(
        f"{len(places)} other features respond, most of all:"
        if rows
        else "no other feature responds"
    )
    print_table(("feature", "at", "before", "after"), rows)


def print_patterns(result: "Change", tokens: Sequence[str], count: int = 10) -> None:
    """Print where the attention of heads changes most."""
    assert result.patterns is not None
    assert result.base.patterns is not None
    rows = []
    for layer, (after, before) in enumerate(
        zip(result.patterns, result.base.patterns, strict=True)
    ):
        change = (after - before).abs()
        for flat in change.flatten().topk(min(count, change.numel())).indices.tolist():
            place, key = divmod(flat, change.shape[2])
            head, query = divmod(place, change.shape[1])
            was, now = (pattern[head, query, key].item() for pattern in (before, after))
            rows.append((f"{layer}.{head}", query, key, was, now))
    rows = [row for row in rows if abs(row[4] - row[3]) > NOISE]
    rows.sort(key=lambda row: -abs(row[4] - row[3]))
    shown = [
        (head, f"{quoted(tokens[query])} ({query})", f"{quoted(tokens[key])} ({key})", was, now)
        for head, query, key, was, now in rows[:count]
    ]
    if not shown:
        say("no attention changes")
    print_table(("head", "looks from", "at", "before", "after"), shown)
