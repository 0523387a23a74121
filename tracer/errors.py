"""The one exception of this package."""

from collections.abc import Sequence
from dataclasses import dataclass

from replacement_models.errors import Setting, SettingsError


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


class TraceError(SettingsError):
    """A trace or an intervention cannot be done as asked.

    Args:
        parts: of the message, put together as they stand.
        proposals: what would fit, where it was refused for lack of memory.
    """

    def __init__(self, *parts: object, proposals: Sequence[Proposal] = ()) -> None:
        super().__init__(*parts)
        self.proposals = tuple(proposals)
