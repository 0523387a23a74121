"""safetensors files, read with errors a user can act on, decoder rows slice by slice."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.formats.storage.finite import finite
from replacement_models.transcoder import Decoder, DenseDecoder


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file whose header has been read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read the header.

        Raises:
            ModelError: no such file, or it is torn or no safetensors file.
        """
        if not path.is_file():
            raise ModelError(f"{path}: no such file; the folder is incomplete")
        try:
            with safe_open(path, "pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: cannot be read as safetensors ({error}); copy or download it again"
            ) from error
        return cls(path, shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor.

        Raises:
            ModelError: the file has no such key.
        """
        if key not in self.shapes:
            raise ModelError(f"{self.path}: has no tensor {key!r}, only {sorted(self.shapes)}")
        return self.shapes[key]

    def tensor(self, key: str) -> Tensor:
        """One whole tensor of floating point numbers.

        Raises:
            ModelError: the file has no such key, or it holds whole numbers, NaN or infinity.
        """
        self.shape(key)
        with safe_open(self.path, "pt") as file:
            found: Tensor = file.get_tensor(key)
        if not found.is_floating_point():
            raise ModelError(f"{self.path}: {key} holds {found.dtype}, expected weights")
        return finite(found, self.path, key)

    def part(self, key: str, at: int) -> Tensor:
        """One entry of a stack of tensors, without reading the others.

        Raises:
            ModelError: the file has no such key, the stack is too short, or the entry holds NaN or
                infinity.
        """
        if len(self.shape(key)) < 2 or self.shapes[key][0] <= at:
            raise ModelError(
                f"{self.path}: {key} has shape {self.shapes[key]}, expected more than {at} layers"
            )
        with safe_open(self.path, "pt") as file:
            found: Tensor = file.get_slice(key)[at]
        return finite(found, self.path, f"{key}[{at}]")

    def optional(self, key: str) -> Tensor | None:
        """One whole tensor, or None where the file has no such key."""
        return self.tensor(key) if key in self.shapes else None

    def only(self, known: Iterable[str]) -> None:
        """Refuse a file that holds more than its reader understands.

        Raises:
            ModelError: naming the first tensor that is not among `known`.
        """
        unknown = sorted(set(self.shapes) - set(known))
        if unknown:
            raise ModelError(
                f"{self.path}: tensor {unknown[0]!r} is not known in this format; "
                "a variant that is not supported"
            )

    def decoder(self, key: str, lazy: bool, first_target: int = 0) -> Decoder:
        """Decoder rows under `key`, (features, targets, d_model) or (features, d_model).

        Args:
            key: the tensor.
            lazy: leave the rows on disk.
            first_target: how many targets stand before the first one wanted.
        """
        if len(self.shape(key)) not in (2, 3):
            raise ModelError(
                f"{self.path}: {key} has shape {self.shapes[key]}, "
                "expected (features, targets, d_model) or (features, d_model)"
            )
        return loaded(StoredDecoder(self, key, first_target), lazy)


def loaded(decoder: Decoder, lazy: bool) -> Decoder:
    """`decoder` as it is, or with all its rows in memory."""
    return decoder if lazy else DenseDecoder(all_rows(decoder))


def all_rows(decoder: Decoder) -> Float[Tensor, "features targets d_model"]:
    """Every row of a decoder."""
    return decoder.rows(torch.arange(decoder.shape[0]))


@dataclass(frozen=True, eq=False)
class StoredDecoder:
    """Decoder rows that stay on disk: a dictionary larger than memory can be traced."""

    file: TensorFile
    key: str
    first_target: int = 0
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    """None is as stored."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""
        shape = self.file.shapes[self.key]
        return shape[0], (shape[1] - self.first_target if len(shape) == 3 else 1), shape[-1]

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """Read the rows of `features`, in that order."""
        with safe_open(self.file.path, "pt") as file:
            stored = file.get_slice(self.key)
            parts = [stored[first:last] for first, last in runs(features)]
        _, targets, d_model = self.shape
        rows = torch.cat(parts).reshape(len(features), self.first_target + targets, d_model)
        finite(rows, self.file.path, f"{self.key} (of the rows read)")
        return rows[:, self.first_target :].to(self.device, self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "StoredDecoder":
        """The same file, its rows delivered on `device` in `dtype`."""
        return StoredDecoder(self.file, self.key, self.first_target, device, dtype)


def runs(features: Int[Tensor, " rows"]) -> list[tuple[int, int]]:
    """[first, last) ranges that give `features` in their order; at least one, maybe empty."""
    found: list[tuple[int, int]] = []
    for feature in features.tolist():
        if found and found[-1][1] == feature:
            found[-1] = (found[-1][0], feature + 1)
        else:
            found.append((feature, feature + 1))
    return found or [(0, 0)]
