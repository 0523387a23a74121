"""`tracer view`: graphs in the browser, with what one makes of them saved beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.models import load_model
from tracer.commands.options import EXISTING, examples, model_options, prune_options
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import FeatureStore
    from tracer.serving.what_if import WhatIf

EMBEDDED = "embedded/"
"""How graphs of the embedded default name their model."""


@click.command(
    epilog=examples(
        "tracer view dallas.graph",
        "tracer view one.graph other.graph --model M --transcoders T --no-browser",
    )
)
@click.argument("folders", metavar="FOLDER...", type=EXISTING, nargs=-1, required=True)
@prune_options
@model_options
@click.option(
    "--store",
    type=EXISTING,
    help="Feature store to show examples from.",
    show_default="the one beside the dictionary of --model, or beside the embedded default for "
    "its graphs",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where to listen; 0 takes a free one."
)
@click.option(
    "--no-browser", is_flag=True, help="Only print the address.", show_default="open the page"
)
def view(
    folders: tuple[Path, ...],
    nodes: float,
    edges: float,
    port: int,
    no_browser: bool,
    **options: Any,
) -> None:
    """Look at graphs in a browser, and save labels, groups, pins and the view beside them.

    Listens on this machine only, under an address with a secret token. "What if" asks the model of
    --model; graphs of the embedded default need none. Ctrl-C ends it.
    """
    from tracer.serving.served import Served
    from tracer.serving.server import Server, Viewing

    store = options.pop("store")
    opened = None if store is None else tracer.FeatureStore.load(store)
    # refuses what is no graph, before all else
    about = [Served(path).graph().metadata for path in folders]
    named = options["name"] is not None or options["transcoders"] is not None
    asked = what_if(options, all(str(one.get("model")).startswith(EMBEDDED) for one in about))
    if opened is None and named and asked is not None:
        opened = beside(asked)
    graphs = [Served(path, opened) for path in folders]
    opening = {"nodes": nodes, "edges": edges}
    with Server(Viewing(graphs, opening, asked), port) as server:
        say(f"Open {server.access.url}")
        say("Ctrl-C ends it", err=True)
        if not no_browser:
            import webbrowser

            webbrowser.open(server.access.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("Ended", err=True)


def beside(asked: "WhatIf") -> "FeatureStore | None":
    """The store that stands beside the model's dictionary; say why one is not used."""
    from tracer.features.beside import store_of

    store, why = store_of(asked.model)
    if why is not None:
        say(why, err=True)
    return store


def what_if(options: dict[str, Any], embedded: bool) -> "WhatIf | None":
    """The model that answers: the one named, the embedded one for its own graphs, or none."""
    from tracer.serving.what_if import WhatIf

    if options["name"] is not None or options["transcoders"] is not None:
        model = load_model(options)
        return WhatIf(lambda: model)
    return WhatIf(tracer.ReplacementModel.load) if embedded else None
