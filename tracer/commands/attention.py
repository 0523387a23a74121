"""`tracer attention`: why heads looked where they did."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.heads import names_of
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, POSITIVE, examples, folder, model_options, output
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import AttentionExplanation, AttributionGraph, ReplacementModel

CELLS = 3
"""Heads explained where none is named."""


@click.command(
    epilog=examples(
        "tracer attention dallas.graph",
        "tracer attention dallas.graph --layer 3 --head 4 --query 8 --key 7 -o pattern.svg",
    )
)
@folder
@model_options
@click.option("--layer", type=COUNT, help="Of the head.", show_default="where it mattered most")
@click.option("--head", type=COUNT, help="Its number.", show_default="where it mattered most")
@click.option("--query", type=int, default=-1, help="Position that looks, with --layer.")
@click.option("--key", type=int, help="Position looked at.", show_default="the most attended")
@click.option(
    "--contrast",
    type=click.Choice(["odds", "plain", "score"]),
    default="odds",
    help="Log-odds against the other keys, the score less the mean of all, or the score alone.",
)
@click.option("--top", type=POSITIVE, default=10, help="Nodes listed a side.")
@click.option("--pairs/--no-pairs", default=False, help="Also form pairs of nodes.")
@output(
    "The head's pattern: .svg; those of all heads: .json, or a new folder with a file a head.",
    show_default="none",
)
def attention(folder: Path, layer: int | None, head: int | None, **options: Any) -> None:
    """Explain why heads looked where they did, by nodes, and store it with the graph in FOLDER.

    Without --layer and --head the places are taken that the pruned graph's edges went through most.
    """
    path: Path | None = options.pop("output")
    how = {name: options.pop(name) for name in ("contrast", "top", "pairs")}
    query, key = options.pop("query"), options.pop("key")
    if (layer is None) != (head is None) or (layer is None and key is not None):
        raise click.UsageError("give --layer and --head together", click.get_current_context())
    if path is not None and path.suffix not in (".svg", ".json", ""):
        raise Failure(f"cannot write {path}: expected a suffix of .svg or .json, or a new folder")
    if path is not None and not path.suffix and path.exists():
        raise Failure(f"cannot write {path}: it exists already; name a new folder")
    graph = tracer.AttributionGraph.load(folder)
    model = load_model(options)
    with progress("Explaining attention"):
        if layer is None or head is None:
            graph, places = strongest(model, graph)
        else:
            places = [(layer, head, query, key)]
        found = [
            tracer.explain_attention(model, graph, layer=one, head=two, query=at, key=to, **how)
            for one, two, at, to in places
        ]
    for explanation in found:
        graph = explanation.joined(graph)
        print_explanation(explanation, graph)
    graph.save(folder)
    if path is not None and found:
        write(path, model, graph, (found[0].layer, found[0].head))
        say(f"Saved {path}")
    say(f"Saved {folder}")


def strongest(
    model: "ReplacementModel", graph: "AttributionGraph"
) -> "tuple[AttributionGraph, list[Any]]":
    """Where attention mattered most to a graph, and the graph with its edges split over heads."""
    from graphs.attention_words import edges_by_name, strongest_cells

    if graph.heads is None or not graph.heads.num_rows:
        graph = tracer.head_loadings(model, graph)
    assert graph.heads is not None
    cells = strongest_cells(graph.heads, edges_by_name(graph.nodes, graph.edges), 4 * CELLS)
    return graph, [place for place, _ in cells if place[2] > 0][:CELLS]


def print_explanation(found: "AttentionExplanation", graph: "AttributionGraph") -> None:
    """Print one head at one query and key."""
    names = names_of(graph)
    print_table(
        (),
        [
            (
                f"head {found.layer}.{found.head}",
                f"from {names.token(found.query)} ({found.query}) to {names.token(found.key)} "
                f"({found.key})",
            ),
            ("attention", f"{found.pattern:.3g}"),
            ("score", f"{found.score:.4g}" + ("" if found.score == found.capped
                                              else f", capped {found.capped:.4g}")),
            ("log-odds against the other keys", f"{found.log_odds:.4g}"),
            ("explained", f"{found.explained:.4g} ({found.contrast})"),
            ("cancellation", f"{found.cancellation:.3g}"
             + (": parts cancel, a few of them say little" if found.loud else "")),
            ("missed", f"{found.residual:.1e} of the largest score"),
        ],
    )  # fmt: skip
    for title, table in (("what looks", found.q), ("what is looked at", found.k)):
        rows = [(names(row["node"]), row["weight"]) for row in table.to_pylist()]
        print_table((title, "contributes"), rows)
    writers = [
        (row["side"], f"{row['layer']}.{row['head']}", row["weight"])
        for side in "qk"
        for row in [row for row in found.heads.to_pylist() if row["side"] == side][:3]
    ]
    print_table(("side", "written by head", "contributes"), writers)
    where = [
        (row["side"], names.at(row["position"]), row["weight"])
        for row in found.by_position.to_pylist()
        if row["position"] is not None and row["weight"]
    ]
    where.sort(key=lambda row: (row[0] != "q", -abs(row[2])))
    print_table(("side", "nodes at", "contribute"), where)
    if found.pairs is not None:
        pairs = [
            (names(row["node_q"]), names(row["node_k"]), row["weight"])
            for row in found.pairs.to_pylist()
        ]
        print_table(("what looks", "what is looked at", "contribute"), pairs[:20])


def write(
    path: Path, model: "ReplacementModel", graph: "AttributionGraph", head: tuple[int, int]
) -> None:
    """Write a pattern as a heat map, all as JSON, or a folder with a file a head."""
    from graphs.exchange.files import writing
    from tracer.attention.patterns import pattern_files, pattern_svg, patterns_json

    files: dict[str, bytes] = {}
    if path.suffix == ".svg":
        text = pattern_svg(model, graph, *head)
    elif path.suffix == ".json":
        text = patterns_json(model, graph)
    else:
        files = pattern_files(model, graph)
    with writing(path) as partial:
        if files:
            partial.mkdir()
        else:
            partial.write_text(text, encoding="utf-8")
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
