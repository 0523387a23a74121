"""`tracer validate`: how far to believe a graph."""

from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.lean import lean_gradients
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, examples, folder, model_options
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_validation, print_verdict


@click.command(
    epilog=examples(
        "tracer validate dallas.graph", "tracer validate my.graph --model M --transcoders T"
    )
)
@folder
@model_options
@click.option(
    "--corpus",
    type=EXISTING,
    help="Text file, a prompt a line, to take the means from that ablation puts in.",
    show_default="the embedded model's own, none for others",
)
@click.option(
    "--draws", type=click.IntRange(1, 10_000), default=10, help="Random circuits at each threshold."
)
@click.option("--seed", type=COUNT, default=0, help="Of what is drawn at random.")
def validate(folder: Path, corpus: Path | None, draws: int, seed: int, **options: Any) -> None:
    """Test an unpruned graph by interventions; print and store with it what comes out.

    A verdict stands first: whether the pruned circuit gives the answer alone. Tables and plots are
    written into the FOLDER; a .zip keeps only the figures.
    """
    graph = tracer.AttributionGraph.load(folder)
    prompts = None if corpus is None else lines_of(corpus)
    model = load_model(options)
    with progress("Zeroing every feature"), lean_gradients():
        found = tracer.validate(
            model,
            graph,
            prompts,
            draws=draws,
            seed=seed,
        )
    written = found.save(folder)
    print_verdict(found.graph.metadata)
    print_validation(found.summary)
    say(f"Saved {', '.join(str(path) for path in written)}")


def lines_of(corpus: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        Failure: it is not UTF-8.
    """
    try:
        lines = corpus.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Failure(f"--corpus: {corpus} is no UTF-8 text ({error.reason})") from error
    return [line for line in lines if line.strip()]
