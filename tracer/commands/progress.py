"""What a terminal shows while something takes time."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tracer.commands.say import shown


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """Show on a terminal what takes time.

    Yields what to call with how much of how much is done, and with other words for it.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, what=None: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(described(what), total=None)
        yield lambda done, total, what=None: bar.update(
            task, completed=done, total=total, description=what and described(what)
        )


def described(what: str) -> str:
    """Words for what takes time, none of which rich takes for markup."""
    from rich.markup import escape

    return escape(shown(what))
