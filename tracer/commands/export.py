"""`tracer export`: a graph for other programs."""

from pathlib import Path

import click

from tracer.commands.graph_files import pruned
from tracer.commands.options import examples, folder, output, prune_options
from tracer.commands.say import say


@click.command(
    epilog=examples(
        "tracer export dallas.graph -o dallas.graphml",
        "tracer export dallas.graph -o all.json --nodes 1 --edges 1",
    )
)
@folder
@prune_options
@output("File to write: .json, .graphml or .csv.", required=True)
def export(folder: Path, nodes: float, edges: float, output: Path) -> None:
    """Write what matters most of a graph for other tools."""
    graph, kept = pruned(folder, nodes, edges)
    graph.export(output)
    say(kept, err=True)
    say(f"Saved {output}")
