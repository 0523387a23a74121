"""Norm modules of Hugging Face models, with the weight and eps they really apply."""

from typing import Any

from torch import Tensor, nn

from replacement_models.host import Norm
from replacement_models.hosts.weights import read

CENTRED = ("CohereLayerNorm", "Cohere2LayerNorm")
"""Classes of transformers that take the mean off without being `nn.LayerNorm`s."""


def norm_of(module: Any) -> Norm:
    """LayerNorm, `(x - mean x) / scale · w + b`, or RMSNorm, `x / scale · w`."""
    centred = isinstance(module, nn.LayerNorm) or type(module).__name__ in CENTRED
    bias = read(module, "bias") if getattr(module, "bias", None) is not None else None
    return Norm(module, read(module), bias, _eps(module), centred)


def shifted_rms_norm(module: Any) -> Norm:
    """`x / scale · (1 + w)`: Gemma stores what its weights differ from one."""
    weight: Tensor = 1 + read(module)
    return Norm(module, weight, None, _eps(module), centred=False)


def multiplied(module: Any, factor: float, like: Tensor) -> Norm:
    """No norm: a block's own factor on what a module writes to the stream.

    Args:
        module: the module.
        factor: the factor.
        like: any vector of the residual stream.
    """
    weight = like.new_full(like.shape, factor)
    return Norm(module, weight, None, 0.0, centred=False, fixed=True)


def _eps(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
