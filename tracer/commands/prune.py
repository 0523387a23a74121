"""`tracer prune`: a graph in less of it."""

from pathlib import Path

import click

from tracer.commands.graph_files import pruned, refuse_unwritable_graph
from tracer.commands.options import examples, folder, output, prune_options
from tracer.commands.say import say


@click.command(epilog=examples("tracer prune dallas.graph -o small.graph --nodes 0.8 --edges 0.98"))
@folder
@prune_options
@output("Folder or .zip to write.", required=True)
def prune(folder: Path, nodes: float, edges: float, output: Path) -> None:
    """Write what matters most of a graph as a graph."""
    refuse_unwritable_graph(output)
    graph, kept = pruned(folder, nodes, edges)
    graph.save(output)
    say(kept, err=True)
    say(f"Saved {output}")
