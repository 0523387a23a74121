"""`tracer render`: a graph as a picture."""

from inspect import signature
from pathlib import Path

import click

from tracer.commands.graph_files import pruned
from tracer.commands.group import Failure
from tracer.commands.options import (
    POSITIVE,
    attention_option,
    examples,
    folder,
    output,
    prune_options,
)
from tracer.commands.say import say


@click.command(
    epilog=examples(
        "tracer render dallas.graph -o dallas.svg",
        "tracer render dallas.graph -o figure.pdf --summary",
    )
)
@folder
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
@output("Picture to write: .svg, .png, .pdf or .dot.", required=True)
def render(
    folder: Path,
    nodes: float,
    edges: float,
    keep_attention: bool | None,
    max_edges: int | None,
    summary: bool,
    output: Path,
) -> None:
    """Draw what matters most of a graph.

    A summary shows the graph's groups (`tracer group`), or groups found for it, and what a
    validation measured, where `tracer validate` left its tables in the FOLDER.
    """
    graph, kept = pruned(folder, nodes, edges, keep_attention)
    if summary:
        if max_edges is not None:
            raise click.UsageError(
                "--max-edges goes with the whole picture, not with --summary",
                click.get_current_context(),
            )
        graph.render_summary(output, measured_effects(folder))
        say(kept, err=True)
        say(f"Saved {output}")
        return
    usual: int = signature(graph.render).parameters["edges"].default
    most = max_edges or (None if nodes == edges == 1 else usual)
    graph.render(output, edges=most)
    say(kept, err=True)
    if most is not None and most < graph.effect.nnz:
        say(f"Drew the {most} most influential edges (--max-edges)", err=True)
    say(f"Saved {output}")


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
