"""One forward pass of the unmodified model, in which every dictionary encodes what it reads.

A layer's activations are handed on as soon as the pass reaches it, so that those of one layer are
in memory at a time. Nothing is recorded and no logits are made but the last ones.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from replacement_models import ReplacementModel
from replacement_models.hooks import first_tensor, float64_experts, forward_hooks
from replacement_models.recording import read_input
from replacement_models.replaced import Where, counted
from replacement_models.sites import ReadPoint
from replacement_models.text.packing import FILL

Seen = Callable[[int, Float[Tensor, "tokens features"]], None]
"""Told a layer and its activations, zero at tokens that do not count; free to change them."""


@torch.no_grad()
def encode_rows(
    model: ReplacementModel,
    rows: Int[Tensor, "rows positions"],
    skip_positions: int,
    seen: Seen,
    said: Callable[[Float[Tensor, "rows positions vocabulary"]], None] | None = None,
) -> Bool[Tensor, "rows positions"]:
    """Encode every layer of a batch, from the bottom.

    Args:
        model: the model.
        rows: ids in rows of one length, FILL where there is no token.
        skip_positions: first positions of a row that do not count.
        seen: told of every layer that has a dictionary.
        said: told the logits up to the last token of the longest row; None makes hardly any.

    Returns:
        Which tokens count: all but fillings, special tokens and the first positions.
    """
    ids = rows.to(model.device)
    tokens = ids.clamp(min=0)
    counts = counted(model, tokens, Where(skip_positions=skip_positions)) & (ids != FILL)
    width = int((ids != FILL).any(0).nonzero().max()) + 1

    def hand_on(layer: int, x: Tensor) -> None:
        active = model.transcoder.encode(layer, x)[1].view(len(ids), width, -1).to(ids.device)
        active[~counts[:, :width]] = 0
        if width < ids.shape[1]:
            active = pad(active, (0, 0, 0, ids.shape[1] - width))
        seen(layer, active.flatten(0, 1))

    hooks = [hook for layer in model.transcoder.present for hook in _hooks(model, layer, hand_on)]
    with forward_hooks(hooks), float64_experts(model.host.model):
        logits = _forward(model, tokens[:, :width], whole=said is not None)
    if said is not None:
        said(logits)
    return counts


def _hooks(
    model: ReplacementModel, layer: int, hand_on: Callable[[int, Tensor], None]
) -> list[tuple[nn.Module, Any]]:
    """Listen to one layer's MLP, and to the norm before it where the dictionary reads there."""
    block, read = model.host.blocks[layer], model.transcoder.read_at(layer)
    residual: list[Tensor] = []

    def at_mlp(inputs: tuple[Any, ...], _: Any) -> None:
        x = first_tensor(inputs)
        hand_on(layer, read_input(block, read, residual.pop() if residual else x, x))

    hooks: list[tuple[nn.Module, Any]] = [(block.mlp, at_mlp)]
    if block.mlp_norm is not None and read is not ReadPoint.NORMED:
        norm = block.mlp_norm.module
        hooks.append((norm, lambda inputs, _: residual.append(first_tensor(inputs))))
    return hooks


def _forward(model: ReplacementModel, tokens: Tensor, whole: bool) -> Tensor:
    known = inspect.signature(model.host.model.forward).parameters
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in known and not whole else {}
    return model.host.model(input_ids=tokens, use_cache=False, **fewer).logits
