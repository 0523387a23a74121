"""What a terminal shows while something takes time."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
        task = bar.add_task(what, total=None)
        yield lambda done, total, what=None: bar.update(
            task, completed=done, total=total, description=what
        )
