"""`tracer group`: features of a graph in groups with a name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import refuse_unwritable_graph
from tracer.commands.models import load_model
from tracer.commands.options import SHARE, examples, folder, model_options, output, prune_options
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import AttributionGraph


def named_ids(value: str) -> tuple[str, list[str]]:
    """Read `say a capital=1_305_8,2_7_8` as the name and the ids."""
    name, _, ids = value.rpartition("=")
    if not name or not ids:
        raise click.BadParameter(f"{value!r} is not NAME=ID,ID, as in capital=1_305_8,2_7_8")
    return name, [one.strip() for one in ids.split(",")]


def two_names(value: str) -> tuple[str, str]:
    """Read `old=new` as both."""
    old, _, new = value.rpartition("=")
    if not old or not new:
        raise click.BadParameter(f"{value!r} is not OLD=NEW")
    return old, new


@click.command(
    epilog=examples(
        "tracer group dallas.graph -o dallas.graph",
        "tracer group dallas.graph -o dallas.graph --members capital=1_305_8,2_7_8",
    )
)
@folder
@prune_options
@click.option("--least", type=SHARE, default=0.3, help="How alike all features of a group are.")
@click.option(
    "--by",
    type=click.Choice(["likeness", "profiles"]),
    default="likeness",
    help="Labels and shared neighbours, or cosine of inputs and outputs.",
)
@click.option("--across/--at-one-position", default=False, help="Group over positions too.")
@click.option(
    "--decoders/--graph-alone",
    default=False,
    help="Compare what features write too: loads the model.",
)
@model_options
@click.option(
    "--members",
    type=named_ids,
    multiple=True,
    metavar="NAME=ID,ID",
    help="Make or replace this group instead of grouping.",
    show_default="none",
)
@click.option(
    "--ungroup", multiple=True, metavar="NAME", help="Take a group apart.", show_default="none"
)
@click.option(
    "--rename",
    type=two_names,
    multiple=True,
    metavar="OLD=NEW",
    help="Give a group another name.",
    show_default="none",
)
@output("Folder or .zip to write; may be the same.", required=True)
def group(
    folder: Path,
    output: Path,
    members: tuple[tuple[str, list[str]], ...],
    ungroup: tuple[str, ...],
    rename: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Group the features that matter most, or change groups by hand.

    The groups are saved with the whole graph; picture, viewer, `intervene` and `generate` know
    them. Scores of the grouped graph are printed beside those of the ungrouped.
    """
    refuse_unwritable_graph(output)
    graph = tracer.AttributionGraph.load(folder)
    share = {name: options.pop(name) for name in ("nodes", "edges")}
    if members or ungroup or rename:
        graph = edited(graph, members, ungroup, rename)
    else:
        graph = graph.with_groups(automatic(graph.prune(**share), **options).groups)
    graph.save(output)
    print_groups(graph.prune(**share))
    say(f"Saved {output}")


def edited(
    graph: "AttributionGraph",
    members: tuple[tuple[str, list[str]], ...],
    ungroup: tuple[str, ...],
    rename: tuple[tuple[str, str], ...],
) -> "AttributionGraph":
    """Groups taken apart, then renamed, then made."""
    for name in ungroup:
        graph = graph.ungroup(name)
    for old, new in rename:
        graph = graph.rename(old, new)
    for name, ids in members:
        graph = graph.group(name, ids)
    return graph


def automatic(
    graph: "AttributionGraph", least: float, by: str, across: bool, decoders: bool, **options: Any
) -> "AttributionGraph":
    """Groups by likeness, with the decoders where asked."""
    cosines = None
    if decoders:
        model = load_model(options)
        with progress("Comparing decoders"):
            cosines = tracer.decoder_cosines(model, graph)
    return graph.group_features(least, by, across, cosines)


def print_groups(graph: "AttributionGraph") -> None:
    """Print the groups of a pruned graph, and the scores with them and without."""
    labels = {row["id"]: row["label"] or row["id"] for row in graph.nodes.to_pylist()}
    rows = [
        (one.name, len(one.members), "; ".join(labels[name] for name in one.members))
        for one in graph.groups
    ]
    print_table(("group", "nodes", "labels"), rows)
    pairs = (
        ("features", graph.scores),
        ("groups and the features outside them", graph.grouped_scores()),
        ("groups alone, what is outside as error", graph.grouped_scores(alone=True)),
    )
    print_table(
        ("scores of", "replacement", "completeness"),
        [(name, pair.replacement, pair.completeness) for name, pair in pairs],
    )
