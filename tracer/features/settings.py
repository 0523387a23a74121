"""What a feature store is built with; everything that bounds memory is here."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from tracer.errors import TraceError

DECILES = 10


@dataclass(frozen=True)
class Settings:
    """Settings of one build. Equal settings on an equal corpus give an equal store."""

    context: int
    """Tokens a row, BOS included."""
    window: int
    """Tokens of the piece of a row that an example shows; divides the context."""
    batch: int = 32
    """Rows a forward pass."""
    examples: int = 10
    """Windows kept where a feature is strongest (and, where it can be negative, most negative)."""
    per_decile: int = 2
    """Examples of every tenth of a feature's activations."""
    tokens: int = 10
    """Promoted, suppressed, and of those it fires on."""
    neighbours: int = 8
    """Features kept that a feature reads from, writes to, resembles and fires with; 0 leaves
    these out, which cost features times features."""
    sampled_tokens: int = 8192
    """About so many tokens are looked at for what fires together."""
    shard: int = 64
    """Batches between two commits: at most so many are lost to an interruption."""
    skip_positions: int = 1
    """First positions of a row that do not count, as a graph's."""
    alone: bool = False
    """Every document begins a row, as a prompt does, instead of following the one before."""
    max_tokens: int | None = None
    """Read at most so many tokens of the corpus; None is all."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("neighbours", "sampled_tokens", "skip_positions", "alone"), 0)
        least["context"] = 2
        for field in fields(self):
            value, floor = getattr(self, field.name), least.get(field.name, 1)
            if value is not None and value < floor:
                raise TraceError(f"{field.name} is {value}, expected at least {floor}")
        if self.context % self.window:
            raise TraceError(
                f"window is {self.window}, expected a divisor of the context of {self.context}"
            )

    @property
    def reservoir(self) -> int:
        """Windows drawn at random for each feature, from which examples by decile are taken."""
        return DECILES * self.per_decile

    def as_json(self) -> dict[str, Any]:
        """By name, in order."""
        return asdict(self)
