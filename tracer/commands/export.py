"""`tracer export`: a graph for other programs."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import graph_at, pruned
from tracer.commands.group import Failure
from tracer.commands.options import (
    EXISTING,
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

NO_FEATURES = (
    "The page will show no examples, tokens or histograms of features: write them with tracer "
    "features export STORE -o FOLDER --to self-hosted, put FOLDER on the web and export again with "
    "--feature-url https://ITS/ADDRESS"
)


@click.command(
    epilog=examples(
        "tracer export dallas.graph -o dallas.html",
        "tracer export dallas.graph -o dallas.graphml",
        "tracer export dallas.graph -o all.json --nodes 1 --edges 1",
        "tracer export dallas.graph -o dallas.json --to circuit-tracer",
    )
)
@folder
@of_dataset
@prune_options
@attention_option
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
    help="The model's id at Neuronpedia; for circuit-tracer the repository at Hugging Face from "
    "which its page fetches features.",
    show_default="the graph's model; circuit-tracer's own server, so that nobody else is asked",
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
    help="Where self-hosted features lie, https: what tracer features export --to self-hosted "
    "writes.",
    show_default="none",
)
@click.option(
    "--store",
    type=EXISTING,
    help="Feature store to show examples from in the .html page, of the 300 most influential "
    "features.",
    show_default="the embedded default's own for its graphs, of as many features as keep the "
    "page's data within 1.2 times the graph's gzipped JSON",
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
@output("File to write: .html (the viewer), .json, .graphml, .csv or .parquet.", required=True)
def export(folder: Path, nodes: float, edges: float, to: str, output: Path, **options: Any) -> None:
    """Write what matters most of a graph for other tools, or a page to look at it.

    The .html page holds the whole graph and opens at --nodes and --edges.
    """
    names = {name: options.pop(name) for name in ("scan", "source_set", "feature_url")}
    check_options(output, to, names, options)
    if output.suffix == ".html":
        write_page(folder, output, {"nodes": nodes, "edges": edges}, options)
    else:
        graph, kept = pruned(folder, (nodes, edges), options["keep_attention"], options["number"])
        if to == "tracer":
            graph.export(output)
        else:
            whole = graph_at(folder, options["number"]) if graph.tables else None
            pins = pins_at(folder, options["number"])
            export_json((graph, whole), pins, output, (to, names))
        say(kept, err=True)
    say(f"Saved {output}")
    if to == "circuit-tracer":
        print_how_to_see(graph, pins_at(folder, options["number"]), output, names["scan"])
    if to == "self-hosted" and names["feature_url"] is None:
        say(NO_FEATURES, err=True)


def check_options(
    output: Path, to: str, names: dict[str, str | None], page: dict[str, Any]
) -> None:
    """Refuse options that the file to write has no use for."""
    context = click.get_current_context()
    if to == "tracer" and any(names.values()):
        raise click.UsageError(
            "--scan, --source-set and --feature-url go with --to neuronpedia, self-hosted or "
            "circuit-tracer",
            context,
        )
    if to != "tracer" and output.suffix != ".json":
        raise Failure(f"cannot export {output}: --to {to} writes .json")
    if output.suffix != ".html" and (page["store"] or page["compare"]):
        raise click.UsageError("--store and --compare go with a file that ends in .html", context)


def pins_at(folder: Path, number: int | None) -> list[str]:
    """Ids of nodes that were pinned in the viewer; a graph of a dataset has none."""
    from graphs.exchange.arrow import VIEW, read
    from graphs.exchange.views import pins_of

    return pins_of(None if number is not None else read(folder).beside.get(VIEW))


def export_json(
    traced: "tuple[AttributionGraph, AttributionGraph | None]",
    pins: list[str],
    output: Path,
    asked: tuple[str, dict[str, str | None]],
) -> None:
    """Write the JSON of a front end, and for circuit-tracer's the list of graphs beside it.

    Args:
        traced: the graph as pruned, and whole where attention was explained.
        pins: ids of nodes.
        output: the file.
        asked: the front end, and the names it wants.
    """
    from graphs.exchange.attribution_json import About
    from graphs.exchange.graph_list import write_json, write_with_list

    (graph, whole), (to, names) = traced, asked
    about = About(re.sub(r"[^A-Za-z0-9_.-]+", "-", output.stem) or "graph", **names)
    if to == "circuit-tracer" and about.slug != output.stem:
        raise Failure(
            f"cannot export {output}: circuit-tracer finds graphs by the file's name: expected "
            f"letters, digits and _ . - only, as in {about.slug}.json"
        )
    content = graph.to_attribution_json(to, about, pins, whole)
    if to == "circuit-tracer":
        write_with_list(output, content)
    else:
        write_json(output, content)


def print_how_to_see(
    graph: "AttributionGraph", pins: list[str], output: Path, scan: str | None
) -> None:
    """Say how circuit-tracer shows the file; its groups it takes from the address alone.

    Of a group it draws the pinned members only, and pins in the address win over the file's. It
    takes the address apart twice, so a per cent sign in a name is quoted twice.
    """
    import json
    from urllib.parse import quote

    command = ["circuit-tracer", "start-server", "--graph_file_dir", str(output.parent)]
    if scan is None:
        dictionary = str(graph.metadata.get("transcoders") or "")
        named = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"-{dictionary}") if dictionary else ""
        features = output.parent / f"features{named}"
        print_how_to_export_features(graph, features)
        command += ["--features_dir", str(features)]
    say(f"To see it: {shlex.join(command)}")
    if graph.groups:
        groups = [[one.name, *one.members] for one in graph.groups]
        text = quote(json.dumps(groups, separators=(",", ":")).replace("%", "%25"))
        members = [member for one in graph.groups for member in one.members]
        pinned = ",".join(dict.fromkeys([*pins, *members]))
        address = f"slug={output.stem}&pinnedIds={pinned}&supernodes={text}"
        say(f"with its groups: /index.html?{address}")


def print_how_to_export_features(graph: "AttributionGraph", features: Path) -> None:
    """Say how the files come about that circuit-tracer's server shows features from."""
    from tracer.features.export import INDEX
    from tracer.features.packaged import store_of_graph

    if (features / INDEX).is_file():
        return
    store = store_of_graph(graph)
    named = "STORE" if store is None else shlex.quote(str(store.path))
    where = " (STORE: what tracer features build made of its dictionary)" if store is None else ""
    say(
        f"Its features first: tracer features export {named} -o {shlex.quote(str(features))} "
        f"--to circuit-tracer{where}"
    )


def write_page(
    folder: Path, output: Path, opening: dict[str, float], options: dict[str, Any]
) -> None:
    """Write the viewer, and say what of the graph it holds."""
    from graphs.viewer.beside import read_beside
    from tracer.features import packaged

    graph = graph_at(folder, options["number"])
    others = [tracer.AttributionGraph.load(other) for other in options["compare"]]
    named = None if options["store"] is None else tracer.FeatureStore.load(options["store"])
    known = packaged.shown(graph, named)
    most: int = options["max_edges"]
    beside = read_beside(folder)
    if options["number"] is not None:
        beside = replace(beside, name=f"{beside.name}, prompt {options['number']}")
    if options["keep_attention"] is not None:
        graph.prune(1, 1, options["keep_attention"])  # refuses where nothing is known of it
        beside = replace(beside, view={**beside.view, "steered": options["keep_attention"]})
    graph.to_html(output, known, compare=others, beside=beside, max_edges=most, **opening)
    for one in (graph, *others):
        say(held(one, most), err=True)
    if examples_shown := packaged.said(graph, known, named is not None):
        say(examples_shown, err=True)
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
