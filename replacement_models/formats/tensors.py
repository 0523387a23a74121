"""safetensors files, read with errors a user can act on, decoder rows slice by slice."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from replacement_models.errors import ModelError
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

    def tensor(self, key: str) -> Tensor:
        """One whole tensor.

        Raises:
            ModelError: the file has no such key.
        """
        if key not in self.shapes:
            raise ModelError(f"{self.path}: has no tensor {key!r}, only {sorted(self.shapes)}")
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(key)

    def optional(self, key: str) -> Tensor | None:
        """One whole tensor, or None where the file has no such key."""
        return self.tensor(key) if key in self.shapes else None

    def decoder(self, key: str, lazy: bool) -> Decoder:
        """Decoder rows under `key`, (features, targets, d_model) or (features, d_model)."""
        if key not in self.shapes:
            raise ModelError(f"{self.path}: has no tensor {key!r}, only {sorted(self.shapes)}")
        if len(self.shapes[key]) not in (2, 3):
            raise ModelError(
                f"{self.path}: {key} has shape {self.shapes[key]}, "
                "expected (features, targets, d_model) or (features, d_model)"
            )
        stored = StoredDecoder(self, key, torch.device("cpu"), torch.float32)
        if lazy:
            return stored
        return DenseDecoder(self.tensor(key).reshape(stored.shape))


@dataclass(frozen=True, eq=False)
class StoredDecoder:
    """Decoder rows that stay on disk: a dictionary larger than memory can be traced."""

    file: TensorFile
    key: str
    device: torch.device
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""
        shape = self.file.shapes[self.key]
        return shape[0], (shape[1] if len(shape) == 3 else 1), shape[-1]

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """Read the rows of `features`, in that order."""
        _, targets, d_model = self.shape
        out = torch.empty(len(features), targets, d_model, dtype=self.dtype)
        with safe_open(self.file.path, "pt") as file:
            stored = file.get_slice(self.key)
            for row, feature in enumerate(features.tolist()):
                out[row] = stored[feature : feature + 1].reshape(targets, d_model)
        return out.to(self.device)

    def to(self, device: torch.device, dtype: torch.dtype) -> "StoredDecoder":
        """The same file, its rows delivered on `device` in `dtype`."""
        return StoredDecoder(self.file, self.key, device, dtype)
