"""One call at a time, and nothing of a call outlives it.

While a call runs it changes what belongs to the whole process or to the whole model: how many
threads torch uses, what the C library does with freed memory, the attention implementation, the
hooks on a model's modules, transformers' logging, torch's default type while a model is loaded.
`one_call` lets one call do so at a time, whatever model it is of, and puts back what has no `with`
of its own. What belongs to a thread (grad mode, torch's function modes) or to a context
(`product.kernel`) needs no turn.

What is called back from inside a call (`progress`, `on_estimate`, a metric) may call again; it must
not wait for another thread that does. One thing is torch's: a new thread starts with the number of
threads set last, so one whose own first work with torch falls into another's call may keep 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock

import torch

from replacement_models.speed.allocator import freed_as_before

_turn = RLock()
_running: object | None = None
"""The call that has its turn."""
_mine: ContextVar[object | None] = ContextVar("call", default=None)
"""The call that this code is part of, if that one still runs. Its worker threads know it too."""


@contextmanager
def one_call() -> Iterator[None]:
    """Wait for one's turn, and leave the process as it was found, also after an exception.

    Inside another call, and in its worker threads, there is nothing to wait for. Decorates
    functions as well.
    """
    global _running  # as what it guards is
    if _running is not None and _mine.get() is _running:
        with threads_as_before(), freed_as_before():
            yield
        return
    with _turn, threads_as_before(), freed_as_before():
        outer, call = _running, object()
        token = _mine.set(call)
        try:
            _running = call
            yield
        finally:
            _running = outer
            _mine.reset(token)


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Put back how many threads torch uses."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence the bars that transformers draws."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence what transformers logs below errors, and its progress bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with without_progress_bars():
        try:
            logging.set_verbosity_error()
            yield
        finally:
            logging.set_verbosity(level)
