"""Norm modules of Hugging Face models, with the weight and eps they really apply."""

from typing import Any

from torch import Tensor, nn

from replacement_models.host import Norm
from replacement_models.hosts.weights import read


def layer_norm(module: nn.LayerNorm) -> Norm:
    """`(x - mean x) / scale · w + b`."""
    bias = None if module.bias is None else read(module, "bias")
    return Norm(module, read(module), bias, module.eps, centred=True)


def rms_norm(module: Any) -> Norm:
    """`x / scale · w`."""
    return Norm(module, read(module), None, _eps(module), centred=False)


def shifted_rms_norm(module: Any) -> Norm:
    """`x / scale · (1 + w)`: Gemma stores what its weights differ from one."""
    weight: Tensor = 1 + read(module)
    return Norm(module, weight, None, _eps(module), centred=False)


def _eps(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
