"""`tracer export`: a graph for other programs."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.commands.graph_files import pruned
from tracer.commands.group import Failure
from tracer.commands.options import examples, folder, output, prune_options
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import AttributionGraph


@click.command(
    epilog=examples(
        "tracer export dallas.graph -o dallas.graphml",
        "tracer export dallas.graph -o all.json --nodes 1 --edges 1",
        "tracer export dallas.graph -o files/dallas.json --to circuit-tracer",
    )
)
@folder
@prune_options
@click.option(
    "--to",
    type=click.Choice(["tracer", "neuronpedia", "self-hosted", "circuit-tracer"]),
    default="tracer",
    help="Who reads the .json: ourselves, or a front end of attribution graphs; self-hosted is "
    "Neuronpedia with features from --feature-url.",
)
@click.option(
    "--scan",
    metavar="NAME",
    help="The model's id at Neuronpedia; for circuit-tracer, where the transcoders are.",
    show_default="from the graph",
)
@click.option(
    "--source-set",
    metavar="NAME",
    help="The dictionaries' name at Neuronpedia.",
    show_default="none; --to neuronpedia needs it",
)
@click.option(
    "--feature-url",
    metavar="URL",
    help="Where self-hosted features lie, https.",
    show_default="none",
)
@output("File to write: .json, .graphml, .csv or .parquet.", required=True)
def export(
    folder: Path,
    nodes: float,
    edges: float,
    to: str,
    output: Path,
    **names: str | None,
) -> None:
    """Write what matters most of a graph for other tools."""
    graph, kept = pruned(folder, nodes, edges)
    if to == "tracer":
        if any(names.values()):
            raise click.UsageError(
                "--scan, --source-set and --feature-url go with --to neuronpedia, self-hosted or "
                "circuit-tracer",
                click.get_current_context(),
            )
        graph.export(output)
    else:
        export_json(graph, folder, output, to, names)
    say(kept, err=True)
    say(f"Saved {output}")
    if to == "circuit-tracer":
        print_how_to_see(graph, output)


def export_json(
    graph: "AttributionGraph",
    folder: Path,
    output: Path,
    to: str,
    names: dict[str, str | None],
) -> None:
    """Write the JSON of a front end, and for circuit-tracer's the list of graphs beside it."""
    from graphs.exchange.arrow import VIEW, read
    from graphs.exchange.attribution_json import About
    from graphs.exchange.graph_list import write_json, write_with_list
    from graphs.exchange.views import pins_of

    if output.suffix != ".json":
        raise Failure(f"cannot export {output}: --to {to} writes .json")
    about = About(re.sub(r"[^A-Za-z0-9_.-]+", "-", output.stem) or "graph", **names)
    if to == "circuit-tracer" and about.slug != output.stem:
        raise Failure(
            f"cannot export {output}: circuit-tracer finds graphs by the file's name: expected "
            f"letters, digits and _ . - only, as in {about.slug}.json"
        )
    pins = pins_of(read(folder).beside.get(VIEW))
    content = graph.to_attribution_json(to, about, pins)
    if to == "circuit-tracer":
        write_with_list(output, content)
    else:
        write_json(output, content)


def print_how_to_see(graph: "AttributionGraph", output: Path) -> None:
    """Say how circuit-tracer shows the file; its groups it takes from the address alone."""
    import json
    from urllib.parse import quote

    say(f"To see it: circuit-tracer start-server --graph_file_dir {output.parent}")
    if graph.groups:
        groups = [[one.name, *one.members] for one in graph.groups]
        text = quote(json.dumps(groups, separators=(",", ":")))
        say(f"with its groups: /index.html?slug={output.stem}&supernodes={text}")
