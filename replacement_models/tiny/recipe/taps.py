"""The places of a GPT-2 that the recipe and the measurements hook."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from replacement_models.hooks import forward_hooks


def mlps(model: GPT2LMHeadModel) -> list[nn.Module]:
    """Return the MLP of every layer."""
    body: Any = model.transformer
    return [block.mlp for block in body.h]


def first_norm(model: GPT2LMHeadModel) -> nn.Module:
    """Return the norm that the first MLP reads through."""
    body: Any = model.transformer
    return cast(nn.Module, body.h[0].ln_2)


def embeddings(model: GPT2LMHeadModel) -> nn.Parameter:
    """Return the input embeddings (V, D)."""
    body: Any = model.transformer
    return cast(nn.Parameter, body.wte.weight)


@contextmanager
def recorded_mlps(model: GPT2LMHeadModel) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Collect what every MLP reads and returns, layer by layer, during one forward pass."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    with forward_hooks((mlp, keep) for mlp in mlps(model)):
        yield inputs, outputs
