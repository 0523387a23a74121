"""`tracer label`: users' own labels, which win over all others."""

from pathlib import Path

import click

from tracer.commands.features import place
from tracer.commands.group import Failure
from tracer.commands.options import EXISTING, examples
from tracer.commands.say import say


@click.command(
    epilog=examples(
        'tracer label my.features 2/311 "capitals of states"',
        "tracer label my.features --export mine.json",
        "tracer label dallas.graph --import mine.json",
    )
)
@click.argument("where", metavar="FOLDER|STORE", type=EXISTING)
@click.argument("feature", metavar="[L/F]", required=False)
@click.argument("text", required=False)
@click.option("--remove", is_flag=True, help="Take the label of L/F away.", show_default="off")
@click.option(
    "--export",
    "exported",
    type=EXISTING,
    help="Write all own labels to a file: .json.",
    show_default="none",
)
@click.option(
    "--import", "imported", type=EXISTING, help="Take labels from such a file.", show_default="none"
)
def label(
    where: Path,
    feature: str | None,
    text: str | None,
    remove: bool,
    exported: Path | None,
    imported: Path | None,
) -> None:
    """Name feature F of layer L in words of your own, in a graph or in a feature store.

    They win over all other labels, stay where they are, and can be shared as a file. A file belongs
    to one dictionary, and is refused with any other.
    """
    ways = [feature is not None, exported is not None, imported is not None]
    if sum(ways) != 1 or (feature is not None and (text is None) != remove):
        raise click.UsageError(
            "expected L/F with a text or --remove, or --export, or --import",
            click.get_current_context(),
        )
    if text is not None and not text.strip():
        raise Failure("the label is empty; --remove takes one away")
    from tracer.features.labels.users import export_labels, import_labels, set_label

    if feature is not None:
        set_label(where, place(feature), text)
        said = f"Named {feature}: {text}" if text is not None else f"Took the label of {feature}"
        say(f"{said} ({where})")
    elif exported is not None:
        count = export_labels(where, exported)
        say(f"Saved {exported}: {count} labels")
    elif imported is not None:
        count = import_labels(where, imported)
        say(f"Took {count} labels into {where}")
