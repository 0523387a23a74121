"""`tracer heads`: which heads carried a graph's edges, and what kind of head each is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.models import load_model
from tracer.commands.options import EXISTING, POSITIVE, examples, model_options, output
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import AttributionGraph, ReplacementModel

KINDS = ("previous", "induction", "duplicate", "successor", "name_mover")


@click.command(
    epilog=examples(
        "tracer heads dallas.graph",
        "tracer heads dallas.graph --edge 0_242_7:5_483_8 --chains",
        "tracer heads --model M",
    )
)
@click.argument("folder", type=EXISTING, required=False)
@model_options
@click.option(
    "--edge",
    "edges",
    metavar="S:T",
    multiple=True,
    help="Split the edge from node S to node T (ids as tracer show and the tables have them).",
    show_default="all of the pruned graph",
)
@click.option(
    "--chains", is_flag=True, help="Follow edges through several layers.", show_default="off"
)
@click.option("--top", type=POSITIVE, default=20, help="How many rows, and chains of an edge.")
@click.option(
    "--checkpoint",
    "checkpoints",
    metavar="M",
    multiple=True,
    help="Score the heads of this model too, in the order given; -o plots them.",
    show_default="none",
)
@output("Plot of scores over checkpoints to write: .svg.", show_default="none")
def heads(folder: Path | None, **options: Any) -> None:
    """Split the edges of the graph in FOLDER over heads and store that with it.

    Without FOLDER, say of every head of a model what it does: previous tokens, induction, duplicate
    tokens, successors, names; and which heads read what others write.
    """
    own = {name: options.pop(name) for name in ("edges", "chains", "top", "checkpoints", "output")}
    if folder is None:
        score(own, options)
        return
    if own["checkpoints"] or own["output"] is not None:
        raise click.UsageError(
            "--checkpoint and -o score models, without FOLDER", click.get_current_context()
        )
    graph = tracer.AttributionGraph.load(folder)
    edges = [ends(edge) for edge in own["edges"]] or None
    model = load_model(options)
    with progress("Splitting edges over heads"):
        found = tracer.head_loadings(model, graph, edges)
    found.save(folder)
    print_targets(model, found, own["top"])
    print_loadings(found, own["top"], edges is not None)
    if own["chains"]:
        for source, target in edges or strongest_edge(found):
            print_chains(tracer.head_chains(model, graph, source, target, own["top"]), found)
    said = found.metadata["heads"]
    say(
        f"heads, what stays and what is written above add up to {said['edges']} edges within "
        f"{max(said['conservation'], said['stay']):.1e} of the largest"
    )
    say(f"Saved {folder}")


def ends(edge: str) -> tuple[str, str]:
    """Read `0_242_7:5_483_8` as two node ids."""
    source, colon, target = edge.partition(":")
    if not (source and colon and target):
        raise Failure(f"--edge {edge!r} is not S:T, as in 0_242_7:5_483_8")
    return source, target


def names_of(graph: "AttributionGraph") -> Any:
    """Node ids in words."""
    from graphs.attention_words import Names

    return Names(graph.nodes, graph.metadata.get("tokens", []))


def print_targets(model: "ReplacementModel", graph: "AttributionGraph", count: int) -> None:
    """Print what heads carry into the likeliest target."""
    try:
        rows = tracer.head_logits(model, graph).to_pylist()
    except tracer.TraceError:  # a direction, which no graph stores
        return
    names, first = names_of(graph), rows[0]["target"]
    shown = [
        (f"{row['layer']}.{row['head']}", row["through"], row["direct"])
        for row in rows
        if row["target"] == first
    ]
    print_table(
        (f"head, into {names(first)}", "carries", "of it straight from the end"), shown[:count]
    )


def print_loadings(graph: "AttributionGraph", count: int, chosen: bool) -> None:
    """Print the heads that carried most, or how the chosen edges split at every layer."""
    from graphs.attention_tables import ABOVE, REST, STAY, edge_ends
    from graphs.attention_words import edges_by_name

    assert graph.heads is not None
    names, edges = names_of(graph), edges_by_name(graph.nodes, graph.edges)
    others = {STAY: "stays", ABOVE: "written above", REST: "other heads"}
    rows = [row for row in graph.heads.to_pylist() if row["query"] is None]
    if not chosen:
        rows = [row for row in rows if row["head"] >= 0]
        rows.sort(key=lambda row: -abs(row["loading"] / edges[row["edge"]][0])
                  * edges[row["edge"]][1])  # fmt: skip
    shown = []
    for row in rows if chosen else rows[:count]:
        weight = edges[row["edge"]][0]
        who = others.get(row["head"], f"{row['layer']}.{row['head']}")
        ends = " → ".join(names(end) for end in edge_ends(row["edge"]))
        shown.append((ends, row["layer"], who, row["loading"], f"{row['loading'] / weight:.0%}"))
    print_table(("edge", "layer", "head", "carries", "of the edge"), shown)


def strongest_edge(graph: "AttributionGraph") -> list[tuple[str, str]]:
    """The edge with most influence between two positions."""
    from graphs.attention_tables import edge_ends
    from graphs.attention_words import edges_by_name

    assert graph.heads is not None
    edges = edges_by_name(graph.nodes, graph.edges)
    moved = {row["edge"] for row in graph.heads.to_pylist() if row["query"] != row["key"]}
    return [edge_ends(max(moved, key=lambda edge: edges[edge][1]))] if moved else []


def print_chains(chains: "tracer.Chains", graph: "AttributionGraph") -> None:
    """Print the chains of heads of one edge."""
    from graphs.attention_tables import edge_ends

    source, target = (names_of(graph)(end) for end in edge_ends(chains.edge))
    rows = [
        (
            row["heads"] or "no head",
            "the token" if row["written"] < 0 else f"layer {row['written']}",
            row["loading"],
        )
        for row in chains.table.to_pylist()
    ]
    rows.append(("all other chains", "", chains.remainder))
    print_table((f"{source} → {target} {chains.weight:.4g}", "written at", "carries"), rows)


def score(own: dict[str, Any], options: dict[str, Any]) -> None:
    """Score the heads of one model or of several checkpoints."""
    path: Path | None = own["output"]
    if own["edges"] or own["chains"]:
        raise click.UsageError("--edge and --chains need FOLDER", click.get_current_context())
    if path is not None and (path.suffix != ".svg" or not own["checkpoints"]):
        raise Failure(f"cannot write {path}: -o takes a .svg, of scores over --checkpoint models")
    found = []
    for name in own["checkpoints"] or [options["name"]]:
        mine = {**options, "name": name}
        if name is not None and mine["transcoders"] is None:
            mine["transcoders"] = "neurons"  # the dictionary takes no part
        model = load_model(mine)
        with progress(f"Scoring heads of {model.name}"):
            found.append((model.name, tracer.head_scores(model).to_pylist()))
    for name, rows in found:
        print_scores(name, rows, own["top"])
    if not own["checkpoints"]:
        print_composition(tracer.head_composition(model).to_pylist(), own["top"])
    if path is not None:
        plot(path, found)
        say(f"Saved {path}")


def print_scores(name: str, rows: Sequence[dict[str, Any]], count: int) -> None:
    """Print the heads with the highest scores."""
    best = sorted(rows, key=lambda row: -max(row[kind] or 0 for kind in KINDS))[:count]
    shown = [
        (
            f"{row['layer']}.{row['head']}",
            *("-" if row[kind] is None else f"{row[kind]:.2f}" for kind in KINDS),
        )
        for row in best
    ]
    print_table((f"head of {name}", *(kind.replace("_", " ") for kind in KINDS)), shown)


def print_composition(rows: Sequence[dict[str, Any]], count: int) -> None:
    """Print the pairs of heads of which one reads most of what the other writes."""
    shown = [
        (
            f"{row['from_layer']}.{row['from_head']} → {row['to_layer']}.{row['to_head']}",
            {"q": "query", "k": "key", "v": "value"}[row["kind"]],
            row["score"],
        )
        for row in rows[:count]
    ]
    print_table(("composition", "as", "score"), shown)


def plot(path: Path, found: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> None:
    """Write the highest score of each kind over the checkpoints."""
    from graphs.exchange.files import writing
    from graphs.pictures import charts

    series = {kind.replace("_", " "): [_best(rows, kind) for _, rows in found] for kind in KINDS}
    known = {name: values for name, values in series.items() if any(v is not None for v in values)}
    axis = ("checkpoint", [float(number) for number in range(len(found))])
    text = charts.lines("Heads over checkpoints", axis, "highest score of a head", known)
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _best(rows: Sequence[dict[str, Any]], kind: str) -> float | None:
    known = [row[kind] for row in rows if row[kind] is not None]
    return max(known, default=None)
