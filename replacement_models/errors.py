"""The one exception of this package, which says the same to a Python caller and to a terminal."""

from dataclasses import dataclass

AT_LOAD = {"lazy", "dtype"}
"""Parameters that `ReplacementModel.load` takes, named in errors of other calls."""


@dataclass(frozen=True)
class Setting:
    """A parameter named in an error, with the value it should have."""

    parameter: str
    value: float | str | None = None
    """None where only the parameter is meant."""

    def __str__(self) -> str:
        """As Python writes it: `max_features=40`, `lazy=True when loading`."""
        if self.value is None:
            return self.parameter
        value = f"{self.value:g}" if isinstance(self.value, float) else repr(self.value)
        place = " when loading" if self.parameter in AT_LOAD else ""
        return f"{self.parameter}={value}{place}"

    @property
    def as_option(self) -> str:
        """As the command line writes it: `--max-features 40`, `--lazy`, `without --lazy`."""
        flag = f"--{self.parameter.replace('_', '-')}"
        if self.value is None or self.value is True:
            return flag
        if self.value is False:
            return f"without {flag}"
        return f"{flag} {self.value:g}" if isinstance(self.value, float) else f"{flag} {self.value}"


class SettingsError(ValueError):
    """An error that names settings: as parameters to a Python caller, as options to a terminal.

    Args:
        parts: of the message, put together as they stand: text, and what has an `as_option`.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = parts

    def for_command_line(self) -> str:
        """The message with options in place of Python's parameters."""
        return "".join(str(getattr(part, "as_option", part)) for part in self.parts)


class ModelError(SettingsError):
    """A model, a dictionary or a file that claims to hold one cannot be used as asked."""
