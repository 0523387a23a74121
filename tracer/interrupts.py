"""Ctrl-C and SIGTERM where what is finished is to be kept: the first stops, the next ones wait."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5
"""Signals after which saving is given up: nobody has to kill what hangs."""


class StoppedError(KeyboardInterrupt):
    """What a signal raises."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """What shells expect of a process that the signal stopped."""


class Stopping:
    """What the signals call."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Interrupt at the first signal, and at the last that patience allows."""
        self.signals.append(number)
        if len(self.signals) in (1, PATIENCE):
            raise StoppedError(number)

    @property
    def exit_code(self) -> int:
        """That of the first signal."""
        return 128 + (self.signals[0] if self.signals else signal.SIGINT)


@contextmanager
def stopped_once() -> Iterator[Stopping]:
    """Raise `StoppedError` at the first signal only, so that what follows it can finish.

    Inside another one, and outside the main thread, signals are none of ours.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    outer = before[signal.SIGINT]
    if isinstance(outer, Stopping):
        yield outer
        return
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    try:
        for number in STOPS:
            signal.signal(number, stopping)
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
