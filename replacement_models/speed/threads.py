"""Work shared out among the processor's cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

Part = TypeVar("Part")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Make products on so many threads."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def one_thread(wanted: bool = True) -> AbstractContextManager[None]:
    """Keep products on one thread: where they are small, sharing one costs more than it saves."""
    return threads(1 if wanted else torch.get_num_threads())


def side_by_side(call: Callable[[Part], None], parts: Sequence[Part]) -> None:
    """Call with every part, as many at a time as torch has threads, each on a single one.

    Context variables are what they are here: which call this is part of, which kernel is entered.
    """
    quiet, contexts = torch.no_grad()(call), [copy_context() for _ in parts]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, one_thread():
        list(pool.map(lambda context, part: context.run(quiet, part), contexts, parts))
