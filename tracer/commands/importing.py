"""`tracer import`: a graph of another tool as a graph of ours."""

from pathlib import Path

import click

import tracer
from tracer.commands.graph_files import refuse_unwritable_graph
from tracer.commands.group import Failure
from tracer.commands.options import EXISTING, examples, output
from tracer.commands.say import say


@click.command(
    "import",
    epilog=examples(
        "tracer import gemma-fact.json -o fact.graph", "tracer import theirs.pt -o theirs.graph"
    ),
)
@click.argument("file", type=EXISTING)
@output("Folder or .zip to write.", required=True)
def import_(file: Path, output: Path) -> None:
    """Read a graph of Neuronpedia or circuit-tracer: .json, or .pt.

    Labels, groups and pins come along. A .pt is read without running anything in it. What a file
    holds that is in no graph is left out and said.
    """
    refuse_unwritable_graph(output)
    if file.suffix not in (".json", ".pt"):
        raise Failure(f"{file}: expected a .json or .pt file of a graph")
    content = file.read_bytes()
    try:
        if file.suffix == ".pt":
            graph, read = tracer.AttributionGraph.from_circuit_tracer_pt(content)
        else:
            graph, read = tracer.AttributionGraph.from_attribution_json(content)
    except tracer.GraphError as error:
        raise Failure(f"{file}: {error}") from error
    graph.save(output, read.pins)
    for note in read.notes:
        say(note, err=True)
    groups = f", {len(graph.groups)} groups" if graph.groups else ""
    say(f"{graph.nodes.num_rows} nodes, {graph.effect.nnz} edges{groups}, {len(read.pins)} pins")
    say(f"Saved {output}. To draw it: tracer render {output} -o {output.stem}.svg")
