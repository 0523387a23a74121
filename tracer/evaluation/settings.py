"""What an evaluation is made with; everything that bounds memory is here."""

from dataclasses import asdict, dataclass
from typing import Any

from tracer.errors import TraceError


@dataclass(frozen=True)
class Settings:
    """Settings of one evaluation. Equal settings on equal text give equal figures."""

    max_tokens: int = 16_384
    """Read at most so many tokens of the corpus, those that baselines are fitted on included."""
    context: int | None = None
    """Tokens a row, BOS included; None is 256, or what the model reads where that is less."""
    batch: int = 8
    """Rows a forward pass, fewer where their logits would take more than `LOGITS` bytes."""
    skip_positions: int = 1
    """First positions of a row that take no part, beside all special tokens."""
    alone_tokens: int = 1024
    """Tokens on which MLPs are replaced one at a time, a pass a layer; 0 leaves this out."""
    prompts: int = 4
    """Prompts out of the corpus that graphs are scored on, where none are given; 0 is none."""
    prompt_tokens: int = 16
    """Tokens of each of those."""
    max_features: int | None = 1000
    """Features a graph is traced with at most; None is all."""
    capped: int = 100
    """The same of the graphs beside them, of which all dictionaries have equally many nodes."""
    swaps: int = 200
    """Swaps of the embedded model's own that are tried; 0 leaves them out."""

    def __post_init__(self) -> None:
        least = {"max_tokens": 64, "context": 2, "batch": 1, "prompt_tokens": 2, "capped": 1}
        for name, value in asdict(self).items():
            floor = least.get(name, 0)
            if value is not None and value < floor:
                raise TraceError(f"{name} is {value}, expected {floor} or more")

    def as_json(self) -> dict[str, Any]:
        """By name, in order."""
        return asdict(self)


LOGITS = 1 << 28
"""Bytes of float32 logits that a pass may give."""
