"""`tracer render`: a graph as a picture."""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracer.commands.graph_files import pruned
from tracer.commands.group import Failure
from tracer.commands.options import (
    POSITIVE,
    attention_option,
    examples,
    folder,
    of_dataset,
    output,
    prune_options,
)
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import AttributionGraph


@click.command(
    epilog=examples(
        "tracer render dallas.graph -o dallas.svg",
        "tracer render dallas.graph -o figure.pdf --summary",
        "tracer render dallas.graph -o heads.svg --heads",
    )
)
@folder
@of_dataset
@prune_options
@attention_option
@click.option(
    "--max-edges",
    type=POSITIVE,
    help="Draw at most so many edges, the most influential.",
    show_default="300, or all with --nodes 1 --edges 1",
)
@click.option(
    "--summary/--whole",
    default=False,
    help="At most 12 boxes and 20 edges, 8 cm wide: groups of features instead of features.",
)
@click.option(
    "--heads/--signs",
    default=False,
    help="Colour edges by the head that carried them, once tracer heads has said so; by sign.",
)
@output("Picture to write: .svg, .png, .pdf or .dot.", required=True)
def render(folder: Path, nodes: float, edges: float, output: Path, **options: Any) -> None:
    """Draw what matters most of a graph.

    A summary shows the graph's groups (`tracer group`), or groups found for it, and what a
    validation measured, where `tracer validate` left its tables in the FOLDER.
    """
    max_edges, heads = options["max_edges"], options["heads"]
    if options["summary"] and (max_edges is not None or heads):
        raise click.UsageError(
            "--max-edges and --heads go with the whole picture, not with --summary",
            click.get_current_context(),
        )
    graph, kept = pruned(folder, (nodes, edges), options["keep_attention"], options["number"])
    if heads and graph.heads is None:
        if options["number"] is not None:
            raise Failure(
                f"{folder} does not say which heads carried edges: take the graph out (tracer "
                f"prune {folder} --prompt {options['number']} --nodes 1 --edges 1 -o one.graph) "
                "and run tracer heads on it"
            )
        raise Failure(
            f"{folder} does not say which heads carried its edges: run tracer heads {folder} first"
        )
    if options["summary"]:
        graph.render_summary(output, measured_effects(folder))
        say(kept, err=True)
        say(f"Saved {output}")
        return
    usual: int = signature(graph.render).parameters["edges"].default
    most = max_edges or (None if nodes == edges == 1 else usual)
    graph.render(output, edges=most, heads=heads)
    say(kept, err=True)
    if heads and (unsplit := edges_unsplit(graph)):
        say(
            f"{unsplit} edges between positions are not split over heads: tracer heads splits "
            "those of the graph as pruned by default",
            err=True,
        )
    if most is not None and most < graph.effect.nnz:
        say(f"Drew the {most} most influential edges (--max-edges)", err=True)
    say(f"Saved {output}")


def edges_unsplit(graph: "AttributionGraph") -> int:
    """How many edges between positions the table of heads says nothing of."""
    from graphs.attention_tables import edge_name

    assert graph.heads is not None
    ids, position = (graph.nodes[name].to_pylist() for name in ("id", "position"))
    known = set(graph.heads["edge"].to_pylist())
    ends = zip(*(graph.edges[name].to_pylist() for name in ("source", "target")), strict=True)
    moved = {edge_name(ids[s], ids[t]) for s, t in ends if position[s] != position[t]}
    return len(moved - known)


def measured_effects(folder: Path) -> dict[str, float] | None:
    """Effects of zeroing single features, as a validation measured them; None without one.

    Raises:
        Failure: the table is none.
    """
    import pyarrow as pa

    path = folder / "validation_features.arrow"
    if not path.is_file():
        return None
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        found = zip(table["id"].to_pylist(), table["measured"].to_pylist(), strict=True)
        return {str(name): float(effect) for name, effect in found if effect is not None}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Failure(
            f"{path} is torn or no validation's: {reason:.100}: validate again or remove it"
        ) from error
