"""Weights of Hugging Face modules as plain tensors."""

from typing import Any

from torch import Tensor


def read(module: Any, name: str = "weight") -> Tensor:
    """One parameter, detached."""
    parameter: Tensor = getattr(module, name)
    return parameter.detach()
