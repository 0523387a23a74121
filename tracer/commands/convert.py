"""`tracer convert`: transcoders from one file format to another."""

from pathlib import Path

import click

import tracer
from replacement_models.formats.names import WRITTEN
from tracer.commands.options import EXISTING, examples
from tracer.commands.progress import progress
from tracer.commands.say import say

OURS = "tracer"


@click.command(
    epilog=examples(
        "tracer convert owner/clt my-clt", "tracer convert my-clt there --format circuit-tracer"
    )
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=EXISTING)
@click.option(
    "--format",
    type=click.Choice([OURS, *sorted({*WRITTEN} - {OURS})]),
    default=OURS,
    help="What to write.",
)
def convert(source: str, target: Path, format: str) -> None:
    """Rewrite transcoders, a folder or hub id in any known format, as another format."""
    with progress("Converting"):
        path = tracer.convert(source, target, format)
    say(f"Saved {path}")
