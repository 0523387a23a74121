"""Ctrl-C or SIGTERM between steps: what runs is finished and saved first; the second ends it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.stop = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """What the signal calls."""
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True


@contextmanager
def between_steps() -> Iterator[Asked]:
    """Take Ctrl-C and SIGTERM for a wish; outside the main thread signals are none of ours."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    stops = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, asked) for number in stops}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
