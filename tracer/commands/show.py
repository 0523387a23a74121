"""`tracer show`: what a graph says, in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import graph_at
from tracer.commands.options import COUNT, examples, folder, of_dataset
from tracer.commands.say import say
from tracer.commands.stability import print_stability
from tracer.commands.tables import (
    nodes_of,
    print_paths,
    print_summary,
    print_table,
    print_validation,
    print_verdict,
    quoted,
)

if TYPE_CHECKING:
    from tracer import AttributionGraph, GraphDataset


@click.command(
    epilog=examples(
        "tracer show dallas.graph",
        "tracer show dallas.graph --paths 30",
        "tracer show many.graphs",
        "tracer show many.graphs --prompt 3",
    )
)
@folder
@of_dataset
@click.option("--features", type=COUNT, default=10, help="How many of the strongest features.")
@click.option("--paths", type=COUNT, default=10, help="How many of the strongest paths.")
@click.option("--prompts", type=COUNT, default=50, help="How many prompts of a dataset to list.")
def show(folder: Path, number: int | None, features: int, paths: int, prompts: int) -> None:
    """Print what was found of a graph's circuit, its scores, strongest features and paths.

    Of a dataset of graphs, list its prompts; with --prompt, show the graph of one.
    """
    if number is None and is_dataset(folder):
        print_prompts(tracer.GraphDataset.load(folder), prompts)
        return
    graph = graph_at(folder, number)
    stable = "stability" in graph.metadata and graph.edge_stability is not None
    print_verdict(graph.metadata)
    print_origin(graph)
    print_summary(graph)
    print_features(graph, features)
    print_paths(graph, paths)
    if stable:
        print_stability(graph, paths)
    print_carried(graph, folder, paths)
    if "validation" in graph.metadata:
        print_validation(graph.metadata["validation"])


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset of graphs, or was meant to be one."""
    from graphs.collections.columns import ABOUT

    return (folder / ABOUT).is_file()


def print_prompts(dataset: "GraphDataset", count: int) -> None:
    """List the prompts of a dataset."""
    from graphs import words
    from graphs.collections.columns import FAILED

    columns = ("replacement", "completeness", "uncovered")
    names = ["prompt", "text", "answer", "probability", *columns, "status", "reason"]
    held = dataset.prompts.to_table(columns=names).sort_by("prompt").slice(0, count)
    say(f"{len(dataset)} of {dataset.about['prompts']} prompts are done, {held.num_rows} listed")
    print_table(
        ("prompt", "text", "answer", *columns),
        [
            (
                row["prompt"],
                words.clipped(words.visible(row["text"] or ""), 60),
                f"failed: {row['reason']}"
                if row["status"] == FAILED
                else f"{quoted(row['answer'] or '')} {words.percent(row['probability'] or 0)}",
                *("" if row[name] is None else f"{row[name]:.3f}" for name in columns),
            )
            for row in held.to_pylist()
        ],
    )


def print_carried(graph: "AttributionGraph", folder: Path, count: int) -> None:
    """Print which heads carried the strongest paths, and why they looked there, where known."""
    from graphs.attention_words import Names, carried, unexplained

    if not graph.tables or not count:
        return
    ids = graph.nodes["id"].to_pylist()
    routes = [[ids[row] for row in path.nodes] for path in graph.paths(count)]
    names = Names(graph.nodes, graph.metadata.get("tokens", []))
    lines = carried(graph.tables, names, routes)
    if not lines:
        return
    if places := unexplained(graph.tables, names, routes):
        options = zip(("layer", "head", "query", "key"), places[0], strict=True)
        place = " ".join(f"--{name} {value}" for name, value in options)
        lines.append(
            f"(why of {len(places)} places is not known: tracer attention {folder} {place})"
        )
    print_table(("heads that carried them",), [(line,) for line in lines])


def print_origin(graph: "AttributionGraph") -> None:
    """Print what was traced and how."""
    about = graph.metadata
    names = ("prompt", "model", "model_revision", "transcoders", "transcoders_hash")
    rows = [(name.replace("_", " "), about[name]) for name in names if about.get(name)]
    settings = about.get("settings", {}).items()
    shown = " ".join(f"{name}={value}" for name, value in settings if value is not None)
    if "partial" in about:
        rows.append(("partial", "interrupted before every feature was explained"))
    print_table((), [*rows, ("settings", shown)])


def print_features(graph: "AttributionGraph", count: int) -> None:
    """Print the features with the largest influence."""
    tokens = {node["position"]: node["text"] for node in nodes_of(graph, "embedding")}
    features = sorted(nodes_of(graph, "feature"), key=lambda node: -node["influence"])
    known = graph.metadata.get("labels")
    rows = [
        (
            f"{node['layer']}/{node['position']}/{node['feature']}",
            quoted(tokens.get(node["position"]) or ""),
            *(node[column] for column in ("activation", "influence", "label")),
            *measured(known, node),
        )
        for node in features[:count]
    ]
    columns = ("feature", "at", "activation", "influence", "label")
    print_table((*columns, "F1", "mixed") if isinstance(known, dict) else columns, rows)


def measured(known: object, node: dict[str, Any]) -> tuple[object, ...]:
    """How true a node's label is, and how mixed its feature; nothing where no store told."""
    if not isinstance(known, dict):
        return ()
    found = known.get(f"{node['layer']}/{node['feature']}")
    found = found if isinstance(found, dict) else {}
    f1, mixed = (found.get(name) for name in ("f1", "mixed"))
    source = found.get("source")
    said = f"{f1:.2f}" if isinstance(f1, float) else source if isinstance(source, str) else ""
    return said, f"{mixed:.1f}" if isinstance(mixed, float) else ""
