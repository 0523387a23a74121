"""Weights of Hugging Face modules as plain tensors, wherever and however they are stored."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.errors import ModelError

LINEAR = ("FalconLinear",)
"""Classes of transformers that compute what `nn.Linear` does."""


def read(module: Any, name: str = "weight") -> Tensor:
    """One parameter, detached; fetched where accelerate has put it away.

    Raises:
        ModelError: it is not there, or not stored in floating point.
    """
    parameter = getattr(module, name, None)
    if parameter is None or not parameter.is_floating_point():
        stored = "missing" if parameter is None else str(parameter.dtype).removeprefix("torch.")
        raise ModelError(
            f"{type(module).__name__}.{name} is {stored}, expected floating point: tracer reads "
            "norms, attention and unembedding; quantise the MLPs only"
        )
    if parameter.device.type != "meta":
        return parameter.detach()
    from accelerate.utils import align_module_device

    with align_module_device(module):
        fetched: Tensor = getattr(module, name).detach().clone()
    return fetched


def linear_map(
    module: Any, inputs: int, like: Tensor
) -> tuple[Float[Tensor, "inputs outputs"], Float[Tensor, " outputs"] | None]:
    """Matrix and bias of a linear module, `x @ matrix + bias`.

    Plain ones are read. Any other (quantised weights, an adapter on top) is asked what it makes of
    the identity matrix.

    Args:
        module: the module.
        inputs: width of what it reads.
        like: has the device and dtype to ask in.

    Raises:
        ModelError: it is not linear.
    """
    transposed = _inputs_first(module)
    named = transposed or type(module) is nn.Linear or type(module).__name__ in LINEAR
    if named and type(module.weight) in (
        Tensor,
        nn.Parameter,
    ):  # torchao puts others in their place
        bias = None if module.bias is None else read(module, "bias")
        return (read(module) if transposed else read(module).T), bias
    with torch.no_grad():
        eye = torch.eye(inputs, device=like.device, dtype=like.dtype)
        bias = module(torch.zeros_like(eye[:1]))[0]
        matrix = module(eye) - bias
        _check_linear(module, eye, matrix, bias)
    return matrix, bias if torch.count_nonzero(bias) else None


def store_outputs_first(model: nn.Module) -> None:
    """Store weights of shape (in, out) in the order (out, in), which few_rows.py reads faster.

    Shapes and numbers stay.
    """
    for module in model.modules():
        if _inputs_first(module) and isinstance(module.weight, Tensor):
            module.weight.data = module.weight.data.T.contiguous().T


def _inputs_first(module: Any) -> bool:
    """Whether it is a Conv1D of transformers, which GPT-2 is made of."""
    return type(module).__name__ == "Conv1D"


def _check_linear(module: Any, eye: Tensor, matrix: Tensor, bias: Tensor) -> None:
    """Two inputs at once must come out as the sum of their outputs."""
    x = eye + 0.5 * eye.flip(0)
    expected = matrix + 0.5 * matrix.flip(0) + bias
    error = float((module(x) - expected).abs().max() / expected.abs().max())
    if error > 16 * torch.finfo(eye.dtype).eps:
        raise ModelError(
            f"{type(module).__name__} is not linear (off by {error:.1%}), as quantised inputs make "
            "it: attention must be, and MLPs whose neurons are traced; quantise the MLPs only, and "
            "give transcoders"
        )
