"""`tracer aggregate`: what the graphs of a dataset have in common."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.options import COUNT, EXISTING, POSITIVE, SHARE, examples, json_option, output
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Aggregate


@click.command(
    epilog=examples(
        "tracer aggregate many.graphs -o common.svg",
        "tracer aggregate many.graphs --group-by language --frequency 0.8",
    )
)
@click.argument("dataset", metavar="DATASET", type=EXISTING)
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="Column of the table of prompts whose values are groups of their own.",
    show_default="one group",
)
@click.option(
    "--group",
    "groups",
    metavar="NAME",
    multiple=True,
    help="Groups to print and draw; may be repeated.",
    show_default="all",
)
@click.option(
    "--align",
    type=click.Choice(["anywhere", "end"]),
    default="anywhere",
    help="A feature is the same wherever it fires, or only as far from the end.",
)
@click.option(
    "--frequency", type=SHARE, default=0.5, help="Share of the graphs that hold what is common."
)
@click.option(
    "--least", type=SHARE, default=0.1, help="Share below which nodes and edges are left out."
)
@click.option("--draws", type=POSITIVE, default=1000, help="Of prompts, for the 95 % intervals.")
@click.option("--seed", type=COUNT, default=0, help="Of the draws.")
@click.option("--top", type=COUNT, default=10, help="Rows of each table.")
@json_option
@output("Picture to draw, .svg, .png, .pdf or .dot; at most four groups.", show_default="none")
def aggregate(
    dataset: Path, groups: tuple[str, ...], frequency: float, top: int, as_json: bool,
    output: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Print how often features and edges appear in the graphs of a DATASET, and what they carry.

    Shares are of the answer, summed over positions; in brackets 95 % intervals from prompts drawn
    anew. What pruning took from a graph does not appear in it.
    """
    found = tracer.aggregate(dataset, **options)
    names = list(groups) or found.groups["group"].to_pylist()
    for name in names:
        found.consensus(name, frequency)  # refused before anything is printed
    if as_json:
        say(json.dumps(found.to_json(frequency)))
    else:
        drawn = {name: options[name] for name in ("draws", "seed")}
        print_aggregate(found, names, frequency, top, drawn)
    if output is not None:
        found.render(output, frequency, names)
        say(f"Drew {output}", err=as_json)


def print_aggregate(
    found: "Aggregate",
    groups: Sequence[str],
    frequency: float,
    count: int,
    drawn: Mapping[str, int],
) -> None:
    """Print the consensus circuit of every group, then what several groups share."""
    from graphs import words
    from graphs.collections.aggregate_words import in_words, summary

    sizes = dict(zip(*(found.groups[c].to_pylist() for c in ("group", "prompts")), strict=True))
    for group in groups:
        nodes, edges = (table.to_pylist() for table in found.consensus(group, frequency))
        say(summary(group, sizes[group], frequency, nodes, edges))
        shares = found.stability(group, frequency, **drawn)
        middle, low, high = (words.percent(one) for one in shares)
        say(f"circuits of prompts drawn anew share {middle} ({low} to {high}) of its features")
        features = [row for row in nodes if row["kind"] == "feature"]
        print_rows("feature", [(in_words(row), row) for row in features[:count]])
        print_rows(
            "edge",
            [
                (f"{row['source']} {'→' if row['sign'] > 0 else '⊣'} {row['target']}", row)
                for row in edges[:count]
            ],
        )
    if len(groups) > 1:
        print_shared(found, frequency, count)


def print_rows(what: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print nodes or edges with how often they appear and what they carry."""
    from graphs.collections.aggregate_words import interval

    print_table(
        (what, "in of the graphs", "carries of the answer"),
        [
            (
                name,
                interval(row, "frequency", "frequency_low", "frequency_high"),
                interval(row, "influence", "low", "high"),
            )
            for name, row in rows
        ],
    )


def print_shared(found: "Aggregate", frequency: float, count: int) -> None:
    """Print features that stand in the consensus circuits of several groups."""
    from graphs import words

    rows = [row for row in found.shared(frequency).to_pylist() if len(row["groups"]) > 1]
    say(f"{len(rows)} features are common to several groups")
    print_table(
        ("feature", "label", "groups"),
        [
            (
                f"L{row['layer']}/{row['feature']}",
                row["label"] or "",
                ", ".join(
                    f"{group} {words.percent(share)}"
                    for group, share in zip(row["groups"], row["frequencies"], strict=True)
                ),
            )
            for row in rows[:count]
        ],
    )
