"""`tracer render`: a graph as a picture."""

from inspect import signature
from pathlib import Path

import click

from tracer.commands.graph_files import pruned
from tracer.commands.options import POSITIVE, examples, folder, output, prune_options
from tracer.commands.say import say


@click.command(epilog=examples("tracer render dallas.graph -o dallas.svg"))
@folder
@prune_options
@click.option(
    "--max-edges",
    type=POSITIVE,
    help="Draw at most so many edges, the most influential.",
    show_default="300, or all with --nodes 1 --edges 1",
)
@output("Picture to write: .svg, .png, .pdf or .dot.", required=True)
def render(folder: Path, nodes: float, edges: float, max_edges: int | None, output: Path) -> None:
    """Draw what matters most of a graph."""
    graph, kept = pruned(folder, nodes, edges)
    usual: int = signature(graph.render).parameters["edges"].default
    most = max_edges or (None if nodes == edges == 1 else usual)
    graph.render(output, edges=most)
    say(kept, err=True)
    if most is not None and most < graph.effect.nnz:
        say(f"Drew the {most} most influential edges (--max-edges)", err=True)
    say(f"Saved {output}")
