"""`tracer import`: a graph of another tool as a graph of ours."""

from collections.abc import Callable
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
        "tracer import gemma-fact.json -o fact.graph",
        "tracer import theirs.pt -o theirs.graph --model FOLDER",
    ),
)
@click.argument("file", type=EXISTING)
@click.option(
    "--model",
    metavar="M",
    help="Folder or hub id of the model, whose tokenizer names the tokens of a .pt.",
    show_default="name them by their ids",
)
@output("Folder or .zip to write.", required=True)
def import_(file: Path, output: Path, model: str | None) -> None:
    """Read a graph of Neuronpedia or circuit-tracer: .json, or .pt.

    Labels, groups and pins come along. A .pt is read without running anything in it. What a file
    holds that is in no graph is left out and said.
    """
    refuse_unwritable_graph(output)
    if file.suffix not in (".json", ".pt"):
        raise Failure(f"{file}: expected a .json or .pt file of a graph")
    if model is not None and file.suffix != ".pt":
        raise Failure("--model names the tokens of a .pt file, and a .json has their text: omit it")
    text = None if model is None else token_text(model)
    content = file.read_bytes()
    try:
        if file.suffix == ".pt":
            graph, read = tracer.AttributionGraph.from_circuit_tracer_pt(content, text)
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


def token_text(model: str) -> Callable[[int], str]:
    """The text of a vocabulary id, by the tokenizer of a model that is not loaded itself."""
    from replacement_models.checkpoint import load_tokenizer
    from replacement_models.hub import folder_of
    from replacement_models.replacement import TOKENIZER_FILES, vocabulary_text

    tokenizer = load_tokenizer(folder_of(model, TOKENIZER_FILES)[0])
    if tokenizer is None:
        raise Failure(f"--model {model}: it has no tokenizer: omit --model, or name one that has")
    return lambda token: vocabulary_text(tokenizer, token)
