"""Numbers on their way from a GPU to main memory: one pinned copy a block, waited for once.

The copy is put in line behind the sweep that makes the rows, and the host goes on: it lines up the
next block's sweep before it waits for this one's rows, and files them while the GPU is busy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor


def needed(device: torch.device) -> bool:
    """Whether rows are made elsewhere than in main memory."""
    return device.type != "cpu"


@dataclass(eq=False)
class Landing:
    """Pinned memory for what one copy brings."""

    memory: UInt8[Tensor, " bytes"]
    arrived: Any = None
    """The event behind the copy; None where copies are waited for anyway."""

    @classmethod
    def on_the_way_from(cls, device: torch.device, size: int) -> "Landing":
        """For at most so many bytes from a device."""
        pinned = device.type == "cuda"
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return cls(memory, torch.cuda.Event() if pinned else None)

    def begin(self, there: UInt8[Tensor, " bytes"]) -> None:
        """Put the copy in line."""
        self.memory[: len(there)].copy_(there, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(there.device))

    def landed(self, size: int) -> UInt8[Tensor, " bytes"]:
        """What was copied, waited for."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.memory[:size]


def in_turns(device: torch.device, size: int) -> Iterator[Landing]:
    """Two landings of so many bytes: one may be read while the other is filled."""
    return cycle([Landing.on_the_way_from(device, size) for _ in range(2)])


def fetched(there: Shaped[Tensor, " numbers"]) -> Shaped[Tensor, " numbers"]:
    """A few numbers in main memory, waited for."""
    landing = Landing.on_the_way_from(there.device, there.nbytes)
    landing.begin(there.view(torch.uint8))
    return landing.landed(there.nbytes).view(there.dtype)
