"""`tracer prune`: a graph in less of it."""

from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.graph_files import dropped, graph_at, pins_left, refuse_unwritable_graph
from tracer.commands.models import load_model
from tracer.commands.options import (
    attention_option,
    examples,
    folder,
    model_options,
    of_dataset,
    output,
    prune_options,
)
from tracer.commands.progress import progress
from tracer.commands.say import say


@click.command(
    epilog=examples(
        "tracer prune dallas.graph -o small.graph --nodes 0.8 --edges 0.98",
        "tracer prune dallas.graph -o small.graph --keep-attention",
        "tracer prune many.graphs --prompt 3 --nodes 1 --edges 1 -o one.graph",
    )
)
@folder
@of_dataset
@prune_options
@attention_option
@model_options
@output("Folder or .zip to write.", required=True)
def prune(
    folder: Path,
    number: int | None,
    nodes: float,
    edges: float,
    keep_attention: bool | None,
    output: Path,
    **options: Any,
) -> None:
    """Write what matters most of a graph as a graph.

    The model is loaded only where attention is to be kept and the graph was not traced so.
    """
    refuse_unwritable_graph(output)
    graph = graph_at(folder, number)
    if keep_attention and "steering" not in graph.tables:
        model = load_model(options)
        with progress("Finding what steers attention"):
            graph = tracer.keep_attention(model, graph)
    small = graph.prune(nodes, edges, keep_attention)
    small.save(output, pins_left(folder, small) if number is None else [])
    say(dropped(graph, small, (nodes, edges)), err=True)
    say(f"Saved {output}")
