"""`tracer drive`: search for texts that drive a feature, a group or a direction."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.features import embedded_store, place
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, POSITIVE, examples, model_options
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table, quoted

if TYPE_CHECKING:
    from tracer import Driven, Watch

SEARCH = ("start", "length", "beam", "candidates", "budget", "seed")
"""Options that say how to search."""


@click.command(
    epilog=examples(
        "tracer drive 2/311 --store my.features",
        'tracer drive 2/311 --start "The capital of the state is" --budget 2000',
        "tracer drive --group hot.graph:opposites",
        "tracer drive --direction texas.safetensors",
    )
)
@click.argument("feature", metavar="[L/F]", required=False)
@click.option("--group", metavar="GRAPH:NAME", help="A group instead.", show_default="none")
@click.option(
    "--direction",
    metavar="FILE[:LABEL]",
    help="A saved direction or probe instead.",
    show_default="none",
)
@click.option(
    "--store",
    type=EXISTING,
    help="Compare with the largest activation it saw.",
    show_default="the embedded dictionary's",
)
@model_options
@click.option("--start", metavar="TEXT", help="Begin with it.", show_default="nothing")
@click.option("--length", type=POSITIVE, default=8, help="Tokens of what is found.")
@click.option("--beam", type=POSITIVE, default=4, help="Texts kept.")
@click.option("--candidates", type=POSITIVE, default=64, help="Texts each proposes a round.")
@click.option("--budget", type=POSITIVE, default=4000, help="Texts run at most.")
@click.option("--seed", type=COUNT, default=0, help="Of all draws.")
def drive(feature: str | None, group: str | None, direction: str | None, **options: Any) -> None:
    """Search for texts that drive feature F of layer L as high as can be."""
    wanted = watched(feature, group, direction)
    path: Path | None = options.pop("store")
    if path is None and options["name"] is None and embedded_store().is_dir():
        path = embedded_store()
    store = None if path is None else tracer.FeatureStore.load(path)
    search = {name: options.pop(name) for name in SEARCH}
    model = load_model(options)
    with progress("Searching") as advance:
        found = tracer.drive(model, wanted, store=store, **search, progress=advance)
    print_driven(found)


def watched(feature: str | None, group: str | None, direction: str | None) -> "Watch":
    """What is to be driven: exactly one of three."""
    given = [one for one in (feature, group, direction) if one is not None]
    if len(given) != 1:
        raise click.UsageError(
            f"expected one of L/F, --group and --direction, got {len(given)}",
            click.get_current_context(),
        )
    if feature is not None:
        return tracer.Watch.feature(*place(feature))
    if direction is not None:
        return tracer.Watch.direction(direction)
    graph, _, name = (group or "").rpartition(":")
    if not graph:
        raise click.UsageError(f"{group!r} is not GRAPH:NAME", click.get_current_context())
    return tracer.Watch.group(graph, name)


def print_driven(found: "Driven") -> None:
    """Print the texts, the strongest first, and how they compare with the corpus."""
    rows = [
        (one.activation, "" if one.as_text is None else one.as_text, one.position, quoted(one.text))
        for one in found.found
    ]
    print_table((found.name, "as text", "at", "text"), rows)
    summary: list[tuple[str, object]] = [("texts run", found.evaluated)]
    if found.start:
        summary.append(("the text begun with", found.start))
    if found.corpus is not None:
        summary.append(("largest on the corpus", found.corpus))
    if found.ratio is not None:
        summary.append(("of it", f"{found.ratio:.0%}"))
    print_table((), summary)
    best = found.found[0]
    if best.as_text is not None and best.as_text < best.activation / 2:
        say("The tokenizer reads this text as other tokens, which drive it less than half as far.")
