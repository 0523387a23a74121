"""`tracer export`: a graph for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import pruned
from tracer.commands.options import EXISTING, POSITIVE, examples, folder, output, prune_options
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import AttributionGraph


@click.command(
    epilog=examples(
        "tracer export dallas.graph -o dallas.html",
        "tracer export dallas.graph -o dallas.graphml",
        "tracer export dallas.graph -o all.json --nodes 1 --edges 1",
    )
)
@folder
@prune_options
@click.option(
    "--store", type=EXISTING, help="Feature store for the .html page.", show_default="none"
)
@click.option(
    "--compare",
    type=EXISTING,
    multiple=True,
    help="Another graph for the .html page, to show beside this one.",
    show_default="none",
)
@click.option(
    "--max-edges",
    type=POSITIVE,
    default=100_000,
    help="Edges that the .html page holds at most, the most influential.",
)
@output("File to write: .html (the viewer), .json, .graphml or .csv.", required=True)
def export(folder: Path, nodes: float, edges: float, output: Path, **for_page: Any) -> None:
    """Write what matters most of a graph for other tools, or a page to look at it.

    The .html page holds the whole graph and opens at --nodes and --edges.
    """
    if output.suffix == ".html":
        write_page(folder, output, {"nodes": nodes, "edges": edges}, for_page)
    else:
        if for_page["store"] or for_page["compare"]:
            raise click.UsageError("--store and --compare go with a file that ends in .html")
        graph, kept = pruned(folder, nodes, edges)
        graph.export(output)
        say(kept, err=True)
    say(f"Saved {output}")


def write_page(
    folder: Path, output: Path, opening: dict[str, float], options: dict[str, Any]
) -> None:
    """Write the viewer, and say what of the graph it holds."""
    from graphs.viewer.beside import read_beside

    graph = tracer.AttributionGraph.load(folder)
    others = [tracer.AttributionGraph.load(other) for other in options["compare"]]
    known = None
    if options["store"]:
        from tracer.features.panel import panels

        known = panels(tracer.FeatureStore.load(options["store"]), graph)
    most: int = options["max_edges"]
    graph.to_html(
        output, known, compare=others, beside=read_beside(folder), max_edges=most, **opening
    )
    for one in (graph, *others):
        say(held(one, most), err=True)
    say("It opens at --nodes {nodes:g} --edges {edges:g}".format(**opening), err=True)


def held(graph: "AttributionGraph", most: int) -> str:
    """How much of a graph a page holds, in words."""
    from graphs.viewer.thresholds import strongest_edges

    nodes, edges, left = strongest_edges(graph.nodes, graph.edges, most)
    if not left:
        return f"The page holds all {nodes.num_rows} nodes and {edges.num_rows} edges"
    return (
        f"The page holds {nodes.num_rows} of {left['total_nodes']} nodes and the strongest "
        f"{edges.num_rows} of {left['total_edges']} edges, {left['influence']:.1%} of their "
        "influence (--max-edges)"
    )
