"""Rows on their way from a GPU to main memory: one pinned copy a block, waited for once.

The copy is put in line behind the sweep that makes the rows, and the host goes on: it lines up the
next block's sweep before it waits for this one's rows, and adds them up while the GPU is busy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BESIDE = 2
"""Numbers a row beside its effects: its constant and its value."""


def needed(device: torch.device) -> bool:
    """Whether rows are made elsewhere than in main memory."""
    return device.type != "cpu"


@dataclass(eq=False)
class Landing:
    """Pinned memory for the rows of one block."""

    memory: Float[Tensor, "rows numbers"]
    arrived: Any = None
    """The event behind the copy; None where copies are waited for anyway."""

    @classmethod
    def of(cls, like: Tensor) -> "Landing":
        """For blocks as large as `like`, which stands on the device."""
        pinned = like.device.type == "cuda"
        memory = torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
        return cls(memory, torch.cuda.Event() if pinned else None)

    def begin(self, dense: Float[Tensor, "rows numbers"]) -> None:
        """Put the copy in line."""
        self.memory[: len(dense)].copy_(dense, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(dense.device))

    def landed(self, rows: int) -> Float[Tensor, "rows numbers"]:
        """The rows, waited for."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.memory[:rows]


def in_turns(like: Tensor) -> Iterator[Landing]:
    """Two landings: one may be read while the other is filled."""
    return cycle([Landing.of(like), Landing.of(like)])
