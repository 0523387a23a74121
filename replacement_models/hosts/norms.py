"""Norm modules of Hugging Face models, with the weight and eps they really apply."""

from typing import Any

import torch
from torch import Tensor, nn

from replacement_models.host import Norm
from replacement_models.hosts.weights import read

CENTRED = (
    "CohereLayerNorm",
    "Cohere2LayerNorm",
    "Cohere2MoeLayerNorm",
    "CohereCompassLayerNorm",
    "OlmoLayerNorm",
)
"""Classes of transformers that take the mean off without being `nn.LayerNorm`s."""
LESS_ONE = ("NemotronLayerNorm1P",)
"""Classes that store what their weights differ from one."""


def norm_of(module: Any) -> Norm:
    """LayerNorm, `(x - mean x) / scale · w + b`, or RMSNorm, `x / scale · w`."""
    name = type(module).__name__
    centred = isinstance(module, nn.LayerNorm) or name in CENTRED
    bias = read(module, "bias") if getattr(module, "bias", None) is not None else None
    weight = 1 + read(module) if name in LESS_ONE else read(module)
    return Norm(module, weight, bias, _eps(module), centred)


def plain_norm(module: Any, like: Tensor) -> Norm:
    """A norm without weights: OLMo's LayerNorm, nanochat's RMSNorm.

    Args:
        module: the norm.
        like: any vector of the residual stream.
    """
    centred = type(module).__name__ in CENTRED
    return Norm(module, torch.ones_like(like), None, _eps(module), centred)


def shifted_rms_norm(module: Any) -> Norm:
    """`x / scale · (1 + w)`: Gemma stores what its weights differ from one."""
    weight: Tensor = 1 + read(module)
    return Norm(module, weight, None, _eps(module), centred=False)


def outside(module: Any, weight: Tensor, bias: Tensor | None = None) -> Norm:
    """What a block does to a module's output before it is added: times a weight, plus a bias."""
    return Norm(module, weight, bias, eps=0.0, centred=False, fixed=True)


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
    for name in ("variance_epsilon", "eps"):
        if hasattr(module, name):
            return float(getattr(module, name))
    return 1e-5  # OLMo's, which the class does not name
