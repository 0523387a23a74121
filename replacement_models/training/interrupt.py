"""Ctrl-C between steps: what runs is finished and saved first; a second one ends it at once."""

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
    """Take Ctrl-C for a wish; outside the main thread signals are none of ours."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, asked)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
