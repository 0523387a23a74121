"""The command group: loads the command asked for, and says in one line what a user can mend."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from keyword import iskeyword
from types import FrameType
from typing import Any

import click

from tracer.commands.say import shown
from tracer.interrupts import StoppedError
from tracer.namesakes import namesake

OURS = {"graphs", "replacement_models", "tracer"}


class Failure(click.ClickException):
    """Bad input: one line for the terminal, whatever names it quotes, and exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(shown(" ".join(message.splitlines())))


class Interrupted(Failure):
    """Ctrl-C or SIGTERM, with the exit code that shells expect."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code


@contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does; in other threads signals are none of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def explain(error: Exception) -> str | None:
    """Say in one line what the user can mend; None for a bug, which keeps its traceback."""
    if isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return error.format_message() + hint
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if type(error).__module__.partition(".")[0] not in OURS:
        return None
    said = getattr(error, "for_command_line", None)  # options where Python has parameters
    return str(said() if said else error)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into a `Failure`; let everything else through."""
    try:
        yield
    except (Failure, click.exceptions.NoArgsIsHelpError, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", getattr(error, "exit_code", 130)) from error
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise Failure(message) from error


def refuse_unwritable(word: str) -> None:
    """Refuse a word that no shell can pass on and no file can be called by.

    Raises:
        Failure: it holds a NUL, or half of a character.
    """
    try:
        os.fsencode(word)
    except UnicodeEncodeError as error:
        raise Failure(f"{word!r:.80} is no text ({error.reason})") from error
    if "\0" in word:
        raise Failure(f"{word!r:.80} holds a NUL, which no argument can")


class Group(click.Group):
    """Shows bad input as one line with exit code 2; any other exception is a bug."""

    def __init__(
        self, *args: Any, modules: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        """Take, beside what click takes, commands by name and the module that has each."""
        super().__init__(*args, **settings)
        self.modules = dict(modules or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, loaded or not, as the help lists them."""
        return sorted({*super().list_commands(ctx), *self.modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command.

        Raises:
            Failure: a module of the user's own hides one of our packages.
        """
        if cmd_name not in self.modules:
            return super().get_command(ctx, cmd_name)
        if why := namesake():
            raise Failure(why)
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(import_module(self.modules[cmd_name]), name)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options of the group itself."""
        with one_line_errors():
            for word in args[1] if len(args) > 1 else ():
                refuse_unwritable(word)
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the command."""
        with one_line_errors(), tidy_when_terminated():
            return super().invoke(ctx)
