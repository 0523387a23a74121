"""`tracer validate`: how far to believe a graph."""

from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, POSITIVE, examples, folder, model_options
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
@click.option("--draws", type=POSITIVE, default=10, help="Random circuits at each threshold.")
@click.option("--seed", type=COUNT, default=0, help="Of what is drawn at random.")
def validate(folder: Path, corpus: Path | None, draws: int, seed: int, **options: Any) -> None:
    """Test an unpruned graph by interventions; print and store with it what comes out.

    A verdict stands first: whether the pruned circuit gives the answer alone. Tables and plots are
    written into the FOLDER; a .zip keeps only the figures.
    """
    graph = tracer.AttributionGraph.load(folder)
    prompts = None if corpus is None else corpus.read_text(encoding="utf-8").split("\n")
    model = load_model(options)
    with progress("Zeroing every feature"):
        found = tracer.validate(
            model,
            graph,
            None if prompts is None else [line for line in prompts if line.strip()],
            draws=draws,
            seed=seed,
        )
    written = found.save(folder)
    print_verdict(found.graph.metadata)
    print_validation(found.summary)
    say(f"Saved {', '.join(str(path) for path in written)}")
