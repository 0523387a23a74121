"""Decoder rows that foreign formats keep apart by target layer, transposed, sharded or unscaled.

Whatever the layout, only the rows asked for are read; folded normalisation is applied to them on
the way, in float32 or wider.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from replacement_models.formats.storage.finite import finite
from replacement_models.formats.storage.tensors import TensorFile, runs


class RowSource(Protocol):
    """What the features of one layer write to one target layer."""

    @property
    def shape(self) -> tuple[int, int]:
        """(features, d_model)."""

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_model"]:
        """The rows of `features`, in that order."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows in a safetensors file: a matrix, or one matrix of a stack."""

    file: TensorFile
    key: str
    at: int | None = None
    """Index on the first axis, where the tensor is a stack."""
    columns: bool = False
    """Whether the matrix is (d_model, features)."""
    first: int = 0
    """Row of the first feature, where several layers share a matrix."""
    count: int | None = None
    """Features; None is all there are."""
    by_target: Float[Tensor, " d_model_or_1"] | None = None
    """Multiplies what is written: a folded output normalisation."""
    by_feature: Float[Tensor, " features"] | None = None
    """Multiplies each feature's row."""

    @property
    def shape(self) -> tuple[int, int]:
        """(features, d_model)."""
        shape = self.file.shape(self.key)[-2:]
        features, d_model = reversed(shape) if self.columns else shape
        return features if self.count is None else self.count, d_model

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_model"]:
        """Read the rows of `features`, in that order."""
        with safe_open(self.file.path, "pt") as file:
            stored = file.get_slice(self.key)
            parts = [self._part(stored, *run) for run in runs(features + self.first)]
        found = finite(torch.cat(parts), self.file.path, f"{self.key} (of the rows read)")
        found = widened(found)
        if self.by_target is not None:
            found = found * self.by_target
        return found if self.by_feature is None else found * self.by_feature[features, None]

    def _part(self, stored: object, first: int, last: int) -> Tensor:
        wanted = slice(first, last)
        index: tuple[int | slice, ...] = (slice(None), wanted) if self.columns else (wanted,)
        index = index if self.at is None else (self.at, *index)
        part: Tensor = stored[index]  # type: ignore[index]
        return part.T if self.columns else part


@dataclass(frozen=True)
class NoRows:
    """A target that the features do not write to: beyond a dictionary's window."""

    shape: tuple[int, int]

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_model"]:
        """Zeros."""
        return torch.zeros(len(features), self.shape[1])


@dataclass(frozen=True, eq=False)
class ShardedRows:
    """Features dealt out over several files, in order."""

    shards: Sequence[RowSource]

    @property
    def shape(self) -> tuple[int, int]:
        """(features, d_model)."""
        return sum(shard.shape[0] for shard in self.shards), self.shards[0].shape[1]

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_model"]:
        """The rows of `features`, each from its shard."""
        parts, places, first = [], [], 0
        for shard in self.shards:
            last = first + shard.shape[0]
            place = ((features >= first) & (features < last)).nonzero()[:, 0]
            places.append(place)
            parts.append(shard.rows(features[place] - first))
            first = last
        found = torch.cat(parts)
        return found[torch.cat(places).argsort()]


@dataclass(frozen=True, eq=False)
class StackedDecoder:
    """Decoder rows put together from those of every target."""

    targets: Sequence[RowSource]
    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""
        features, d_model = self.targets[0].shape
        return features, len(self.targets), d_model

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """The rows of `features`, in that order."""
        features = features.cpu()
        return torch.stack([target.rows(features) for target in self.targets], 1).to(
            self.device, self.dtype
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "StackedDecoder":
        """The same rows, delivered on `device` in `dtype`."""
        return StackedDecoder(self.targets, device, dtype)


def widened(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or float64 where it is: arithmetic on weights is not done in less."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
