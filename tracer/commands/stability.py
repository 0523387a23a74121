"""`tracer stability`: how far the nodes and edges of a graph are those of other graphs."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import graph_at, refuse_unwritable_graph
from tracer.commands.group import Failure
from tracer.commands.many import rated_progress
from tracer.commands.models import load_model
from tracer.commands.options import (
    COUNT,
    EXISTING,
    POSITIVE,
    SHARE,
    examples,
    folder,
    model_options,
    of_dataset,
    output,
)
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import AttributionGraph, GraphDataset

EDGES = 0.98
"""Share of edge influence where a threshold names that of nodes alone."""
KEPT_SETTINGS = ("max_features", "rank_every", "max_logits", "logit_mass", "skip_positions")
"""Of the graph's trace, that its rephrasings are traced with."""


def thresholds_of(value: str) -> list[tuple[float, float]]:
    """Read `0.6,0.8/0.9` as [(0.6, 0.98), (0.8, 0.9)]."""
    number = r" *([0-9.eE-]+) *"
    found = []
    for part in value.split(","):
        pair = re.fullmatch(f"{number}(?:/{number})?", part)
        try:
            nodes, edges = (float(pair[1]), float(pair[2] or EDGES)) if pair else (0.0, 0.0)
        except ValueError:
            nodes = edges = 0.0
        if not (0 < nodes <= 1 and 0 < edges <= 1):
            raise click.BadParameter(
                f"{value!r} is no list of shares such as 0.6,0.7,0.8 or 0.8/0.98 (nodes/edges)"
            )
        found.append((nodes, edges))
    return found


def only_of(value: str) -> tuple[str, str]:
    """Read `language=en` as the column and the value."""
    column, _, wanted = value.partition("=")
    if not column or not wanted:
        raise click.BadParameter(f"{value!r} is not COLUMN=VALUE, as in language=en")
    return column, wanted


@click.command(
    epilog=examples(
        "tracer stability dallas.graph",
        "tracer stability dallas.graph --prompts rephrased.txt",
        "tracer stability dallas.graph --with many.graphs --only group=capitals --draws 1000",
    )
)
@folder
@of_dataset
@click.option(
    "--prompts",
    type=EXISTING,
    metavar="FILE",
    help="Compare with these prompts, traced as FOLDER was: rephrasings, in any file that "
    "trace --prompts takes.",
    show_default="none",
)
@click.option(
    "--with",
    "dataset",
    type=EXISTING,
    metavar="DATASET",
    help="Compare with the graphs of a dataset.",
    show_default="none",
)
@click.option(
    "--only",
    type=only_of,
    metavar="COLUMN=VALUE",
    help="Prompts of --with that have this value.",
    show_default="all",
)
@click.option(
    "--thresholds",
    type=thresholds_of,
    metavar="N[/E],...",
    help="Shares of node influence to prune at, or of node/edge influence.",
    show_default="0.5,0.6,0.7,0.8,0.9; 0.8 with other prompts",
)
@click.option(
    "--align",
    type=click.Choice(["anywhere", "text", "end"]),
    default="anywhere",
    help="A feature is the same wherever it fires, or where positions go together.",
)
@click.option(
    "--draws",
    type=POSITIVE,
    help="Draw the other prompts anew so often, and count circuits instead of prompts.",
    show_default="count prompts",
)
@click.option(
    "--frequency",
    type=SHARE,
    default=0.5,
    help="With --draws: share of prompts that hold what a circuit does.",
)
@click.option("--seed", type=COUNT, default=0, help="Of the draws.")
@click.option("--top", type=COUNT, default=10, help="Rows of each table.")
@model_options
@output("Folder or .zip to write.", show_default="FOLDER")
def stability(
    folder: Path,
    number: int | None,
    prompts: Path | None,
    dataset: Path | None,
    only: tuple[str, str] | None,
    top: int,
    output: Path | None,
    **options: Any,
) -> None:
    """Write how stable the nodes and edges of a graph are into it, from 0 to 1.

    Without other prompts: at how many of several thresholds pruning keeps them. With other prompts:
    how many of their graphs, pruned, hold them. `show`, pictures and the viewer then say so.
    """
    if (prompts is None) + (dataset is None) == 0 or (only and dataset is None):
        raise click.UsageError(
            "expected --prompts or --with, and --only with the latter", click.get_current_context()
        )
    if output is None and number is not None:
        raise click.UsageError("--prompt needs -o", click.get_current_context())
    place = output or folder
    refuse_unwritable_graph(place)
    graph = graph_at(folder, number)
    how = ("thresholds", "align", "draws", "frequency", "seed")
    given = {name: options.pop(name) for name in how}
    with TemporaryDirectory() as traced:
        others: Any = None
        if prompts is not None:
            others = rephrased(graph, prompts, Path(traced) / "graphs", given, options)
        elif dataset is not None:
            known = tracer.GraphDataset.load(dataset)
            same = number if dataset.resolve() == folder.resolve() else None
            others = [one for _, one in known.graphs(numbers_of(known, only, same))]
        found = tracer.stability(graph, others, **given)
    found.save(place, view=view_beside(folder, number))
    print_stability(found, top)
    say(f"Saved {place}")


def rephrased(
    graph: "AttributionGraph",
    prompts: Path,
    place: Path,
    given: dict[str, Any],
    options: dict[str, Any],
) -> "GraphDataset":
    """Trace prompts as a graph was traced, pruned no further than they are to be looked at."""
    from tracer.datasets.prompt_files import read_prompts
    from tracer.datasets.prompts import targets_of

    asked = read_prompts(prompts)
    told = graph.metadata.get("settings", {})
    settings = {name: told[name] for name in KEPT_SETTINGS if name in told}
    targets = targets_of({"targets": told.get("targets")})
    model = load_model(options)
    pairs = given["thresholds"] or [(0.8, EDGES)]
    share = {name: max(pair[at] for pair in pairs) for at, name in enumerate(("nodes", "edges"))}
    with rated_progress() as advance:
        found = tracer.trace_many(
            model, asked, place, targets=targets, progress=advance, **share, **settings
        )
    failed = [row for row in found.prompts.to_table().to_pylist() if row["status"] == "failed"]
    if failed:
        first = f"the first, prompt {failed[0]['prompt']}: {failed[0]['reason']}"
        if len(failed) == len(found):
            raise Failure(f"{prompts}: no prompt could be traced; {first}")
        say(f"{len(failed)} of {len(found)} prompts failed and are left out; {first}", err=True)
    return found


def numbers_of(
    dataset: "GraphDataset", only: tuple[str, str] | None, same: int | None
) -> list[int]:
    """Prompts of a dataset that are compared with: all but the graph's own, or one group of them.

    Raises:
        Failure: no such column, or no prompt has the value.
    """
    names = dataset.prompts.schema.names
    if only is not None and only[0] not in names:
        raise Failure(f"{dataset.path} has no column {only[0]!r}: expected one of "
                      f"{', '.join(names)}")  # fmt: skip
    columns = ["prompt", *([only[0]] if only and only[0] != "prompt" else [])]
    rows = dataset.prompts.to_table(columns=columns).to_pylist()
    found = [
        row["prompt"]
        for row in rows
        if row["prompt"] != same and (only is None or str(row[only[0]]) == only[1])
    ]
    if not found:
        what = "no other prompt" if only is None else f"no other prompt with {'='.join(only)}"
        raise Failure(f"{dataset.path} has {what}")
    return found


def view_beside(folder: Path, number: int | None) -> dict[str, Any] | None:
    """What a viewer saved beside a graph."""
    from graphs.exchange.arrow import VIEW, content_of
    from graphs.exchange.views import view_of

    if number is not None:
        return None
    return view_of(content_of(folder, VIEW), f"{folder}/{VIEW}") or None


def print_stability(graph: "AttributionGraph", top: int) -> None:
    """Print over what a graph's stability is, and that of its strongest features and edges."""
    from graphs import words
    from graphs.collections.stability import stable_share

    small = graph if "pruned" in graph.metadata else graph.prune()
    shares = stable_share(small)
    said = "unknown" if shares is None else f"{words.percent(shares)} in the mean by influence"
    print_table(
        (),
        [("stability", f"over {graph.metadata['stability']['over']}"), ("of its features", said)],
    )
    tokens = list(small.metadata.get("tokens", []))
    rows = small.nodes.to_pylist()
    features = sorted(
        (row for row in rows if row["kind"] == "feature"), key=lambda row: -row["influence"]
    )
    print_table(
        ("feature", "influence", "stability"),
        [
            (words.node(row, tokens), row["influence"], in_words(row.get("stability")))
            for row in features[:top]
        ],
    )
    print_edges(small, rows, top)


def print_edges(small: "AttributionGraph", rows: list[dict[str, Any]], top: int) -> None:
    """Print how stable the strongest edges of a pruned graph are."""
    from graphs import words

    tokens = list(small.metadata.get("tokens", []))
    edges = sorted(small.edges.to_pylist(), key=lambda edge: -edge["influence"])
    print_table(
        ("edge", "influence", "stability"),
        [
            (
                words.route(
                    [rows[edge[end]] for end in ("source", "target")], [edge["weight"]], tokens
                ),
                edge["influence"],
                in_words(edge.get("stability")),
            )
            for edge in edges[:top]
        ],
    )


def in_words(share: float | None) -> str:
    """A share, or that it is not known."""
    from graphs import words

    return "unknown" if share is None else words.percent(share)
