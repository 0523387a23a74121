"""Rows of activations that every trainer reads in one order: part of `trainers`.

Imported in the peers' own environments too, so it needs numpy and torch alone.
"""

import json
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLD = "trained.json"
"""What a side says of its run, in its folder."""


@dataclass(frozen=True)
class Job:
    """One run of one side."""

    side: str
    """Whose trainer, by name."""
    rows: str
    """File of activations, (tokens, 2, layers, width): what MLPs read and what they write."""
    out: str
    """Folder that the dictionary is written to."""
    tokens: int
    batch: int
    features: int
    """Of a layer."""
    setting: float
    """What sets L0 on this side: L0 itself, k, or the weight of a penalty."""
    rate: float
    """Learning rate."""
    source: str = ""
    """Checkout of the peer, where it is no package."""

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.tokens // self.batch

    @classmethod
    def read(cls, path: str) -> "Job":
        """From a file."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """To a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass
class Rows:
    """Batches of a job, and a checksum of those that were trained on, in their order."""

    job: Job
    begun: float = 0.0
    tokens: int = 0
    checksum: int = 0

    def __post_init__(self) -> None:
        self.data = np.load(self.job.rows, mmap_mode="r")

    def start(self) -> None:
        """Begin to count CPU seconds: imports are done, and the model is there."""
        self.begun = time.process_time()

    @property
    def layers(self) -> int:
        """Of the model."""
        return self.data.shape[2]

    @property
    def width(self) -> int:
        """Of what is read and written."""
        return self.data.shape[3]

    def part(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of some rows, (tokens, layers, width) each; not counted."""
        some = torch.from_numpy(np.array(self.data[begin:end]))
        return some[:, 0], some[:, 1]

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """One batch to train on."""
        size = self.job.batch
        found = self.part(number * size, (number + 1) * size)
        self.tokens += size
        self.checksum = zlib.crc32(found[0][:, 0, 0].numpy().tobytes(), self.checksum)
        return found

    def finish(self, **more: Any) -> None:
        """Say what was done, and in how many CPU seconds since the start."""
        seconds = time.process_time() - self.begun
        said = {"seconds": seconds, "tokens": self.tokens, "checksum": self.checksum, **more}
        (Path(self.job.out) / TOLD).write_text(json.dumps(said), encoding="utf-8")
