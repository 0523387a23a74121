"""The one exception of this package, which says the same to a Python caller and to a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

AT_LOAD = {"lazy", "dtype"}
"""Parameters that `ReplacementModel.load` takes."""


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
        """As the command line writes it: `--max-features 40`, `--lazy`."""
        flag = f"--{self.parameter.replace('_', '-')}"
        if self.value is None or self.value is True:
            return flag
        return f"{flag} {self.value:g}" if isinstance(self.value, float) else f"{flag} {self.value}"


@dataclass(frozen=True)
class Proposal:
    """Settings that together would let a call go through."""

    settings: tuple[Setting, ...]
    estimate: str
    """The memory it would then take, as in 1.2 GB."""
    bytes: int
    """The same, what stands beside a GPU included."""

    def __str__(self) -> str:
        """As in `edge_floor=0.001, max_features=40 (1.2 GB)`."""
        return f"{', '.join(map(str, self.settings))} ({self.estimate})"

    @property
    def as_option(self) -> str:
        """As in `--edge-floor 0.001 --max-features 40 (1.2 GB)`."""
        return f"{' '.join(one.as_option for one in self.settings)} ({self.estimate})"


Part = str | Setting | Proposal
"""Of a message."""


class TraceError(ValueError):
    """A trace or an intervention cannot be done as asked.

    Args:
        parts: of the message, put together as they stand.
        proposals: what would fit, where it was refused for lack of memory.
    """

    def __init__(self, *parts: Part, proposals: Sequence[Proposal] = ()) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = parts
        self.proposals = tuple(proposals)

    def for_command_line(self) -> str:
        """The message with options in place of Python's parameters."""
        return "".join(one if isinstance(one, str) else one.as_option for one in self.parts)
