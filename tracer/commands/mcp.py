"""`tracer mcp`: graphs and a model for agents, over standard input and output."""

from pathlib import Path
from typing import Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.models import load_model
from tracer.commands.options import EXISTING, examples, model_options
from tracer.commands.say import say


@click.command(
    epilog=examples(
        "tracer mcp --root graphs", "tracer mcp --model M --transcoders T --answer 4000"
    )
)
@click.option(
    "--root",
    type=EXISTING,
    default=Path(),
    help="The only folder whose graphs are read and written.",
    show_default="the current folder",
)
@click.option(
    "--answer", type=click.IntRange(500, 100_000), default=6000, help="Characters of an answer."
)
@model_options
def mcp(root: Path, answer: int, **options: Any) -> None:
    """Offer trace, show, node, paths, heads, search, intervene and validate to an agent.

    Speaks the Model Context Protocol on standard input and output and opens no connection. The
    embedded default is loaded when it is first needed, a model that is named at once.
    """
    if not root.is_dir():
        raise Failure(f"--root: there is no folder {root}")
    try:
        from tracer.serving.agents import serve
    except ImportError as error:
        raise Failure(
            f"tracer mcp needs the package mcp ({error}): pip install 'tracer[mcp]'"
        ) from error
    from tracer.serving.confined import Root
    from tracer.serving.tools import Tools

    named = options["name"] is not None or options["transcoders"] is not None
    model = load_model(options) if named else None
    say(f"Serving the graphs in {root.resolve()} on standard input and output", err=True)
    serve(Tools(Root(root), lambda: model or tracer.ReplacementModel.load(), answer))
