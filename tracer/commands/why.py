"""`tracer why`: why a model says one token and not another."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import refuse_unwritable_graph
from tracer.commands.models import load_model
from tracer.commands.options import (
    COUNT,
    examples,
    model_options,
    only_one,
    output,
    prompt_options,
)
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table, row_name

if TYPE_CHECKING:
    from tracer import Why


@click.command(
    epilog=examples(
        'tracer why "The opposite of hot is" --not " hot"',
        'tracer why "The capital of the state containing Dallas is" --not " Houston" -o why.graph',
    )
)
@prompt_options
@model_options
@click.option(
    "--not", "instead", metavar="TOKEN", required=True, help="The token it does not say (mind the "
    "space: ' hot').",
)  # fmt: skip
@click.option(
    "--rather", "said", metavar="TOKEN", help="The token to explain.", show_default="the likeliest"
)
@click.option("--position", type=int, default=-1, help="Ask for what comes after this position.")
@click.option(
    "--max-features",
    type=COUNT,
    help="Explain at most so many features, the most influential.",
    show_default="all",
)
@click.option("--top", type=COUNT, default=5, help="Paths and features of either kind.")
@output("Folder or .zip to write the graph to.", show_default="none")
def why(
    prompt: str | None, tokens: list[int] | None, top: int, output: Path | None, **options: Any
) -> None:
    """Say why the model answers PROMPT with one token and not with another.

    Traces the difference of the two logits: paths that excite it speak for the answer, paths that
    suppress it for the other token.
    """
    text = only_one(prompt, tokens)
    if output is not None:
        refuse_unwritable_graph(output)
    model = load_model(options)
    with progress("Explaining features") as advance:
        found = tracer.why(model, text, progress=advance, **options)
    print_table((), [(line,) for line in found.sentences(top)])
    print_speaking(found, top)
    if output is not None:
        found.graph.save(output)
        say(f"Saved {output}")


def print_speaking(found: "Why", top: int) -> None:
    """Print the features with the largest direct effects of either sign."""
    for sign, token in ((1, found.said), (-1, found.instead)):
        rows = [
            (row_name(found.graph, row["id"]), f"{row['effect']:+.3f}", row["influence"])
            for row in found.strongest(sign, top)
        ]
        print_table((f"features for {token!r}, directly", "logits", "influence"), rows)
