"""`tracer match`: features of one dictionary found again in another, and streams of two models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.models import load_dictionary, load_model
from tracer.commands.options import COUNT, EXISTING, SHARE, examples, json_option, model_options
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Matching


@click.command(
    epilog=examples(
        "tracer match texts.txt --other-transcoders second-seed",
        "tracer match texts.txt --model one --transcoders neurons "
        "--other-model two --other-transcoders neurons",
    )
)
@click.argument("corpus", metavar="FILE", type=EXISTING)
@model_options
@click.option(
    "--other-model", metavar="M", help="Folder or hub id.", show_default="the same as --model"
)
@click.option(
    "--other-transcoders",
    metavar="T",
    help="Folder, hub id, or neurons: the dictionary to find features in.",
    show_default="the same as --transcoders",
)
@click.option(
    "--across/--same-depth", default=True, help="Match features of any layers, or at one depth."
)
@click.option("--skip-positions", type=COUNT, default=1, help="First positions that do not count.")
@click.option(
    "--least", type=SHARE, default=0.7, help="Correlation from which a mutual match is shared."
)
@click.option("--top", type=COUNT, default=10, help="Matches to print, the closest.")
@json_option
def match(
    corpus: Path,
    other_model: str | None,
    other_transcoders: str | None,
    least: float,
    top: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Match features of two dictionaries by what they do on the texts of a FILE.

    Texts are parted by blank lines, or are lines. A feature's match is the one whose activation
    correlates most; streams are compared by CKA and by the best rotation of one onto the other.
    """
    from tracer.lenses.corpus import texts_of

    texts = texts_of(corpus)
    how = {name: options.pop(name) for name in ("across", "skip_positions")}
    second = options | {
        "name": other_model or options["name"],
        "transcoders": other_transcoders or options["transcoders"],
    }
    if other_model is not None and second["transcoders"] is None:
        raise click.UsageError(
            f"--other-model {other_model} needs --other-transcoders: the folder or hub id of a "
            "set, or neurons for the model's own",
            click.get_current_context(),
        )
    model = load_model(dict(options))
    if second["name"] != options["name"]:
        other = load_model(second)
    else:
        other = model if second == options else load_dictionary(model, second)
    with progress("Matching features"):
        found = tracer.match(model, other, texts, **how)
    if as_json:
        tables = {name: getattr(found, name).to_pylist() for name in ("features", "streams")}
        say(json.dumps(tables | {"positions": found.positions, "shared": found.shared(least)}))
        return
    print_matching(found, least, top)


def print_matching(found: "Matching", least: float, top: int) -> None:
    """Print how much is shared, the closest matches and the streams."""
    from graphs import words

    rows = found.features.to_pylist()
    share = words.percent(found.shared(least))
    what = f"of {len(rows)} features that fired on {found.positions} positions"
    said = f"have a mutual match that correlates by {least:g} or more"
    print_table((), [("shared", f"{share} {what} {said}")])
    known = [row for row in rows if row["correlation"] is not None]
    known.sort(key=lambda row: (-row["mutual"], -row["correlation"]))
    print_table(
        ("feature", "other's", "correlation", "mutual"),
        [
            (
                f"L{row['layer']}/{row['feature']}",
                f"L{row['other_layer']}/{row['other_feature']}",
                row["correlation"],
                "yes" if row["mutual"] else "no",
            )
            for row in known[:top]
        ],
    )
    print_table(
        ("stream entering layer", "other's", "CKA", "aligned"),
        [
            (row["layer"], row["other_layer"], row["cka"], row["aligned"])
            for row in found.streams.to_pylist()
        ],
    )
