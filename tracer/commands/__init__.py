"""The command line: parse, call one function, print. No mathematics here.

A file a command, imported when the command is asked for. None imports torch before it runs.
"""

import sys

import click

from tracer.commands.group import Group
from tracer.commands.lean import OWN_PROCESS
from tracer.commands.options import examples

COMMANDS = (
    *("trace", "show", "prune", "group", "render", "export", "import", "validate"),
    *("intervene", "generate", "patch", "lens", "direction", "convert", "features"),
    *("compare", "aggregate", "cluster", "triage", "stability", "why"),
    "train",
    *("evaluate", "match"),
    *("heads", "attention"),
    "label",
    *("monitor", "drive", "view", "mcp"),
)
"""Each is a function in the module of its name, but for `MODULES`' exception."""
MODULES = {
    **{name: f"{__name__}.{name}" for name in COMMANDS},
    "group": f"{__name__}.grouping",
    "import": f"{__name__}.importing",
}
"""The command's name -> its module; `group.py` holds the click group they are all in, and `import`
is a word of Python's."""


@click.group(
    cls=Group,
    modules=MODULES,
    context_settings={"show_default": True, "max_content_width": 100},
    epilog=examples(
        'tracer trace "The capital of the state containing Dallas is" -o dallas.graph',
        "tracer render dallas.graph -o dallas.svg",
    ),
)
@click.version_option(package_name="tracer")
def main() -> None:
    """Trace circuits in language models."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal's encoding may lack a token's letters
            stream.reconfigure(errors="backslashreplace")


def run() -> None:
    """The command line as a process of its own, which loads less (`tracer.commands.lean`)."""
    main(obj=OWN_PROCESS)
