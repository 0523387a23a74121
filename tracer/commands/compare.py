"""`tracer compare`: two graphs beside each other."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.options import COUNT, EXISTING, examples, json_option, output, prune_options
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Comparison

LISTS = {"nodes": ("name",), "edges": ("source", "target")}
"""What the tables of a comparison name a row by."""


@click.command(
    epilog=examples(
        "tracer compare dallas.graph oakland.graph -o both.svg",
        "tracer compare one.graph other.graph --align anywhere --json",
    )
)
@click.argument("a", metavar="A", type=EXISTING)
@click.argument("b", metavar="B", type=EXISTING)
@click.option(
    "--align",
    type=click.Choice(["text", "end", "anywhere"]),
    default="text",
    help="Positions go together by token text, counted from the end, or features wherever they "
    "fire.",
)
@prune_options
@click.option(
    "--change",
    type=click.FloatRange(0, 1),
    default=0.01,
    help="Part of the answer by which influence must differ to have changed.",
)
@click.option("--top", type=COUNT, default=10, help="Rows of each table.")
@json_option
@output("Picture to draw, .svg, .png, .pdf or .dot.", show_default="none")
def compare(a: Path, b: Path, top: int, as_json: bool, output: Path | None, **options: Any) -> None:
    """Print what two graphs share, what one lacks and what changed, by influence."""
    one, other = (tracer.AttributionGraph.load(path) for path in (a, b))
    found = tracer.compare(one, other, **options)
    if as_json:
        say(json.dumps(found.to_json()))
    else:
        print_comparison(found, top)
    if output is not None:
        found.render(output)
        say(f"Drew {output}", err=as_json)


def print_comparison(found: "Comparison", top: int) -> None:
    """Print a comparison in words and as two tables."""
    for note in found.notes:
        say(note, err=True)
    print_table((), [(line,) for line in found.sentences()])
    for name, named in LISTS.items():
        rows = getattr(found, name).slice(0, top).to_pylist()
        columns = (*named, "status", "A", "B", "change")
        print_table(
            columns,
            [
                (
                    *(row[part] for part in named),
                    row["status"].replace("_", " "),
                    *(_share(row, letter) for letter in "ab"),
                    f"{100 * row['change']:+.1f}%",
                )
                for row in rows
            ],
        )


def _share(row: dict[str, Any], letter: str) -> str:
    """What a node or edge carries of the answer; nothing where it is not."""
    held = row.get(f"nodes_{letter}", row.get(f"edges_{letter}"))
    return f"{100 * row[f'influence_{letter}']:.1f}%" if held else ""
