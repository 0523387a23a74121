"""The one place where commands write: what is spelled out there, no terminal acts on.

Prompts, tokens, the metadata of a stranger's graph, file names: none may move the cursor, reverse
the line, or end it. A test holds that no other module of the commands prints.
"""

from collections.abc import Iterable, Sequence

import click


def shown(value: object) -> str:
    """A value as one line of text that is all there to be seen; see `graphs.words.visible`."""
    text = str(value)
    if text.isascii() and text.isprintable():  # `visible` would come with large packages
        return text
    from graphs.words import visible

    return visible(text)


def say(*cells: object, err: bool = False) -> None:
    """Print one line, to stderr if `err`; tabs between cells."""
    click.echo("\t".join(map(shown, cells)), err=err)


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table and an empty line, aligned as a terminal shows it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=bool(columns))
    for name in columns:
        table.add_column(Text(shown(name)))
    for row in rows:  # as Text, because a token may look like markup
        table.add_row(*(Text(shown(value), overflow="fold") for value in row))
    Console().print(table, "")
