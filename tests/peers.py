"""What every imitation of another tool's files needs: sizes, random weights, and a base class.

A peer writes a folder as its tool does, key by key, and computes what its tool computes; the
formulas follow the tools' own code and use nothing of ours.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models import ReadPoint, WritePoint

L, D, F, K = 3, 4, 10, 3
POSITIONS = 6


class Peer(ABC):
    """Weights of one dictionary in another tool's layout, with that tool's forward pass."""

    cross_layer = False
    read: ReadPoint
    write: WritePoint
    own_unit = False
    """Whether activations are in a unit of their own, which ours cannot keep."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files."""

    @abstractmethod
    def activations(self, x: list[Tensor]) -> list[Tensor]:
        """Of every layer, from what every layer reads."""

    @abstractmethod
    def outputs(self, x: list[Tensor]) -> list[Tensor]:
        """What is written at every layer."""

    def normal(self, *shape: int) -> Tensor:
        """Random weights, others each time."""
        return torch.randn(shape, generator=self.generator)

    def sources(self, target: int) -> range:
        """Layers that write to a target."""
        return range(target + 1) if self.cross_layer else range(target, target + 1)


def inputs() -> list[Tensor]:
    """What every layer reads."""
    return list(torch.randn(L, POSITIONS, D, generator=torch.Generator().manual_seed(11)))


def positive(hidden: Tensor, k: int = K) -> Tensor:
    """TopK as most tools mean it: what is positive among the k largest."""
    top = hidden.relu().topk(k, dim=-1)
    return torch.zeros_like(hidden).scatter(-1, top.indices, top.values)


def write_json(path: Path, value: Any) -> None:
    """Write a configuration, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write weights, their folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
