"""Attention layers that answer as a whole: what they hold beside scores of queries and keys.

A linear layer's pattern comes from decay, gates, keys and queries; heads' outputs pass gates and
norms, values slopes. The model's own block is run as far as the stream above its attention, and
gradients are pulled back through all of that: from attention's output to what attention reads.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import (
    eager_attention,
    first_of,
    first_tensor,
    forward_hooks,
    forward_pre_hooks,
    in_rows,
)
from replacement_models.host import Block
from tracer.attention.queries_keys import with_hidden

ROWS = 16
"""Gradients pulled back at once: kernels hold much for each."""


class _StreamReachedError(Exception):
    """Ends a block's pass above its attention."""


@dataclass(frozen=True, eq=False)
class WholeLayer:
    """One layer's attention with the graph that leads from what it reads to the stream above it."""

    read: Float[Tensor, "positions d_model"]
    stream: Float[Tensor, "positions d_model"]

    def pulled(
        self, gradient: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions d_model"]:
        """Gradients of what attention adds to the stream, as those of what it reads."""
        parts = [
            torch.autograd.grad(
                self.stream, self.read, some, retain_graph=True, is_grads_batched=True
            )[0]
            for some in gradient.split(ROWS)
        ]
        return torch.cat(parts)


def whole_layers(
    model: ReplacementModel, recording: Recording, layers: Sequence[int]
) -> dict[int, WholeLayer]:
    """Attention of some layers on a recorded prompt, from one forward pass of the model.

    Args:
        model: the model.
        recording: of the prompt; norms around attention keep its denominators.
        layers: which.
    """
    seen: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(layer: int) -> Any:
        def kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[layer] = args, kwargs

        return kept

    blocks = model.host.blocks
    if not layers:
        return {}
    with eager_attention(model.host.model):
        with forward_pre_hooks([(blocks[layer].module, keep(layer)) for layer in layers]):
            model.host.run(recording.tokens, patterns=False, last_logits=True)
        return {layer: _whole(blocks[layer], recording, layer, *seen[layer]) for layer in layers}


def _whole(
    block: Block, recording: Recording, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> WholeLayer:
    frozen, stream = recording.layers[layer], recording.residuals[layer]
    norm, post_norm = block.attention_norm, block.attention_post_norm
    read = stream if norm is None else norm.frozen(stream, frozen.attention_scale)
    read = read.detach().requires_grad_()
    found: list[Tensor] = []

    def hand(inputs: Any, output: Any) -> Tensor:
        return read.view_as(output)

    def held(inputs: Any, output: Any) -> Tensor:
        assert post_norm is not None
        assert frozen.attention_post_scale is not None
        return post_norm.frozen(first_tensor(inputs)[0], frozen.attention_post_scale)[None]

    def reached(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(in_rows(first_tensor((*args, *kwargs.values())), 1)[0])
        raise _StreamReachedError

    hooks: list[tuple[Any, Any]] = []
    if norm is not None:
        hooks.append((norm.module, hand))
    if post_norm is not None and not post_norm.fixed:
        hooks.append((post_norm.module, held))
    above = block.mlp if block.mlp_norm is None else block.mlp_norm.module
    with torch.enable_grad(), forward_hooks(hooks), forward_pre_hooks([(above, reached)]):
        given = (args, kwargs) if norm is not None else with_hidden(args, kwargs, read[None])
        with suppress(_StreamReachedError):  # Nemotron-H's MLP stands in another module
            found.append(first_of(block.module(*given[0], **given[1]))[0])
        return WholeLayer(read, found[0] if norm is not None else found[0] - read)
