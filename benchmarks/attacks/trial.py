"""One attack: what came of it, and what counts as failed."""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from graphs import GraphError
from replacement_models import ModelError
from tracer.commands import main
from tracer.errors import TraceError

REFUSALS = (GraphError, ModelError, TraceError, click.ClickException)
LIMIT = 30.0
"""Seconds after which an attack counts as a hang, on the clock."""

Attack = Callable[[], None]
"""Raises a refusal, or `WrongError` where something was accepted that should not have been."""
Attacks = Callable[[np.random.Generator, Path], Iterator[Attack]]
"""Endless attacks of one class, drawn from a generator, in a folder of their own."""


class WrongError(Exception):
    """Something was accepted that is not right, or left in part."""


class HangError(BaseException):
    """The time was up; no handler of the code under attack stops it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `HangError` when the time is up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(attack: Attack) -> tuple[str, str]:
    """What came of an attack.

    Returns:
        "refused", "accepted" or "failed", and in the last case why.
    """
    try:
        with limited(LIMIT):
            attack()
    except REFUSALS as refusal:
        lines = str(refusal).splitlines()
        return ("refused", "") if len(lines) == 1 else ("failed", f"{len(lines)} lines: {refusal}")
    except HangError:
        return "failed", "hang"
    except WrongError as wrong:
        return "failed", str(wrong)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return "failed", f"{type(error).__name__} at {where}: {error}"[:300]
    return "accepted", ""


def command(*arguments: str) -> str:
    """Run a command line in this process.

    Returns:
        What it printed.

    Raises:
        ClickException: it was refused in one line with exit code 2.
        WrongError: another exit code, or a refusal of several lines.
    """
    found = CliRunner().invoke(main, list(arguments))
    error = found.exception
    if error is not None and not isinstance(error, SystemExit):
        raise error
    if found.exit_code == 0:
        return found.output
    lines = found.stderr.rstrip("\n").split("\n")
    said = [line for line in lines if line.startswith("Error: ")]
    if found.exit_code != 2 or len(said) != 1:
        raise WrongError(f"exit code {found.exit_code}: {found.stderr[:200]!r}")
    raise click.ClickException(said[0].removeprefix("Error: "))


def require(holds: Any, what: str) -> None:
    """Fail unless something holds."""
    if not holds:
        raise WrongError(what)


def mutated_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes cut short, flipped, overwritten, put in or taken out, or a number made extreme."""
    held, size = bytearray(content), max(1, len(content))
    begin = int(rng.integers(size))
    end = min(size, begin + int(rng.integers(1, 64)))
    kind = int(rng.integers(7))
    if kind == 0:
        return bytes(held[:begin])
    if kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            held[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        held[begin:end] = rng.bytes(end - begin)
    elif kind == 3:
        held[begin:end] = bytes(end - begin)
    elif kind == 4:
        held[begin:begin] = rng.bytes(end - begin)
    elif kind == 5:
        del held[begin:end]
    else:
        at = begin // 8 * 8
        number = int(rng.choice([0, -1, 1, 2**31 - 1, 2**62, -(2**63), size, size * 8]))
        held[at : at + 8] = number.to_bytes(8, "little", signed=True)
    return bytes(held)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e308, -1e308, 5e-324, 10**30, 2**63, -(2**63)),
    *("", "x", "0", "nan", "\u202e", "\x1b[2J", "=1+1", "\ud800", "a" * 3000, "../../x", "<b>&"),
    *([], {}, [None], [1, 2], ["a"], {"a": 1}, {"": None}, [[]], [{}], float("nan"), float("inf")),
)
"""What no field expects."""


def deep(depth: int) -> Any:
    """Lists within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def odd(rng: np.random.Generator) -> Any:
    """A value that no field expects."""
    if rng.random() < 0.04:
        return deep(int(rng.choice([70, 500])))
    return ODD[int(rng.integers(len(ODD)))]


def mutated_json(rng: np.random.Generator, value: Any) -> Any:
    """A copy of a JSON value with one part of it changed, dropped, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = list(value)[int(rng.integers(len(value)))]
        kind = rng.random()
        if kind < 0.1:
            return {key: one for key, one in value.items() if key != name}
        if kind < 0.15:
            return {(f"{key}x" if key == name else key): one for key, one in value.items()}
        if kind < 0.2:
            return {**value, str(odd(rng))[:50]: odd(rng)}
        return {**value, name: mutated_json(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(len(value)))
        kind = rng.random()
        if kind < 0.15:
            return [one for index, one in enumerate(value) if index != at]
        if kind < 0.3:
            return [*value, value[at]]
        return [mutated_json(rng, one) if index == at else one for index, one in enumerate(value)]
    return odd(rng)
