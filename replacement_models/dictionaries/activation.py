"""Activation functions of sparse dictionaries: when a feature fires, and how strongly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.one_line import one_line


class Activation(Protocol):
    """From pre-activations to activations, token by token. Zero means "did not fire"."""

    name: str

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """Activations, same shape as `hidden`."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Activation":
        """The same function with its parameters on `device` and in `dtype`."""

    def check(self, features: int) -> None:
        """Refuse parameters that do not fit a layer of `features` features.

        Raises:
            ModelError: they do not fit.
        """


@dataclass(frozen=True)
class ReLU:
    """h where h > 0."""

    name = "relu"

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """Positive part."""
        return hidden.relu()

    def to(self, device: torch.device, dtype: torch.dtype) -> "ReLU":
        """Has no parameters."""
        return self

    def check(self, features: int) -> None:
        """Fits any layer."""


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """h where h > threshold, strictly; else 0 (Rajamanoharan et al. 2024)."""

    threshold: Float[Tensor, " features"]
    name = "jump_relu"

    __repr__ = one_line

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """Pre-activations above their feature's threshold."""
        return torch.where(hidden > self.threshold, hidden, 0)

    def to(self, device: torch.device, dtype: torch.dtype) -> "JumpReLU":
        """Thresholds on `device`, in `dtype`."""
        return JumpReLU(self.threshold.to(device, dtype))

    def check(self, features: int) -> None:
        """One threshold a feature."""
        _check_threshold(self, (features,))


@dataclass(frozen=True)
class TopK:
    """A token's k largest pre-activations, negative ones too (Gao et al. 2024, without ReLU)."""

    k: int
    name = "topk"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ModelError(f"TopK: k is {self.k}, expected at least 1")

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """The k largest entries of every token, the rest zero."""
        top = hidden.topk(self.k, dim=-1)
        return torch.zeros_like(hidden).scatter(-1, top.indices, top.values)

    def to(self, device: torch.device, dtype: torch.dtype) -> "TopK":
        """Has no parameters."""
        return self

    def check(self, features: int) -> None:
        """No more winners than features."""
        if self.k > features:
            raise ModelError(f"topk: k is {self.k}, but there are only {features} features")


@dataclass(frozen=True)
class ReLUTopK:
    """What is positive among a token's k largest pre-activations (Gao et al. 2024)."""

    k: int
    name = "relu_topk"

    def __post_init__(self) -> None:
        TopK(self.k)

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """The k largest entries of every token that are positive, the rest zero."""
        return TopK(self.k)(hidden).relu()

    def to(self, device: torch.device, dtype: torch.dtype) -> "ReLUTopK":
        """Has no parameters."""
        return self

    def check(self, features: int) -> None:
        """No more winners than features."""
        TopK(self.k).check(features)


@dataclass(frozen=True, eq=False)
class BatchTopK:
    """h where h > one threshold for all features: BatchTopK at inference (Bussmann et al. 2024).

    Training keeps the k·tokens largest entries of a batch; the threshold is the mean smallest
    entry kept, so that at inference a token's features do not depend on its neighbours. BatchTopK
    ranks what a ReLU lets through, so a threshold below zero acts as zero.
    """

    threshold: Float[Tensor, " 1"]
    name = "batch_topk"

    __repr__ = one_line

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """Pre-activations above the threshold."""
        return torch.where(hidden > self.threshold.clamp(min=0), hidden, 0)

    def to(self, device: torch.device, dtype: torch.dtype) -> "BatchTopK":
        """Threshold on `device`, in `dtype`."""
        return BatchTopK(self.threshold.to(device, dtype))

    def check(self, features: int) -> None:
        """One threshold for all features."""
        _check_threshold(self, (1,))


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A model's own activation function, such as GELU: hardly any neuron is ever quite silent."""

    function: Callable[[Tensor], Tensor]
    name = "elementwise"

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """The function of every entry."""
        return self.function(hidden)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Elementwise":
        """Has no parameters."""
        return self

    def check(self, features: int) -> None:
        """Fits any layer."""


def _check_threshold(activation: JumpReLU | BatchTopK, expected: tuple[int, ...]) -> None:
    if tuple(activation.threshold.shape) != expected:
        raise ModelError(
            f"{activation.name}: threshold has shape {tuple(activation.threshold.shape)}, "
            f"expected {expected}"
        )
