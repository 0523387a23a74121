"""What an intervention leaves as recorded: attention patterns, norm denominators, MLP outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import FrozenLayer, Recording, ReplacementModel
from replacement_models.hooks import first_of, first_tensor, on_last, replaced_first
from replacement_models.host import Block, Norm
from replacement_models.recording import norms


@dataclass(frozen=True, eq=False)
class Freezing:
    """Which parts of a recording are held during another forward pass of the same prompt."""

    recording: Recording
    attention: bool
    """Attention patterns, and factors around them."""
    norms: bool
    """Norm denominators."""
    layers: range
    """Layers whose MLP outputs stay as recorded but for the intended writes."""

    def lets_be(self, layer: int) -> bool:
        """Whether a layer is outside the clamped range, where no intended write is added.

        What a cross-layer feature writes beyond the range is left to the recomputed MLPs, which
        answer the change themselves. Without a clamped range every write is added.
        """
        return len(self.layers) > 0 and layer not in self.layers

    def hooks(self, model: ReplacementModel) -> list[tuple[nn.Module, Any]]:
        """Forward hooks that hold norm denominators and attention patterns."""
        hooks: list[tuple[nn.Module, Any]] = []
        for block, layer in zip(model.host.blocks, self.recording.layers, strict=True):
            scales = {
                id(block.attention_norm): layer.attention_scale,
                id(block.mlp_norm): layer.mlp_scale,
                id(block.attention_post_norm): layer.attention_post_scale,
                id(block.mlp_post_norm): layer.mlp_post_scale,
            }
            if self.norms:
                found = [norm for norm in norms(block) if not norm.fixed]
                hooks += [(norm.module, _hold_norm(norm, scales[id(norm)])) for norm in found]
            if self.attention:
                hooks += _holding_attention(block, layer)
        if self.norms:
            final = model.host.final_norm
            hold = _hold_norm(final, self.recording.final_scale)
            hooks.append((final.module, on_last(model.host.final_norm_calls, hold)))
        return hooks


def _hold_norm(norm: Norm, scale: Tensor | None) -> Callable[..., Tensor]:
    assert scale is not None

    def hold(inputs: Any, output: Tensor) -> Tensor:
        x = first_tensor(inputs)  # OPT's has rows and positions in one
        rows = x.reshape(-1, *scale.shape[:1], x.shape[-1]).to(norm.device)
        return norm.frozen(rows, scale).view_as(x)

    return hold


def _holding_attention(block: Block, frozen: FrozenLayer) -> list[tuple[nn.Module, Any]]:
    pattern = frozen.attention_pattern()

    def attended(hidden: Tensor) -> Tensor:
        return torch.stack([block.attend(row, pattern, frozen.factors) for row in hidden])

    def hold(inputs: Any, output: Any) -> Any:
        return replaced_first(output, attended(first_tensor(inputs)))

    if block.attention_out is None:
        return [(block.attention, hold)]
    assert block.attention_norm is not None
    read: list[Tensor] = []

    def keep(inputs: Any, output: Tensor) -> None:
        read[:] = [output]

    def end(inputs: Any, output: Any) -> Any:
        # the map itself, run by `attend`, has nothing read before it
        return replaced_first(output, attended(read.pop())) if read else None

    return [
        (block.attention_norm.module, keep),
        (block.attention_out, end),
        *_silenced(block),
    ]


def _silenced(block: Block) -> list[tuple[nn.Module, Any]]:
    """What runs beside attention adds nothing: the held output has its part."""
    beside = block.attention_beside
    return [] if beside is None else [(beside, lambda inputs, output: torch.zeros_like(output))]


def read_scale(
    x: Tensor, residual: Tensor, block: Block, frozen: Freezing | None, layer: int
) -> Tensor:
    """A transcoder's unweighted normed input, with the denominator held where norms are frozen."""
    if frozen is None or not frozen.norms or block.mlp_norm is None:
        return x
    return block.mlp_norm.centre(residual) / frozen.recording.layers[layer].mlp_scale


def held_output(
    recording: Recording,
    layer: int,
    x: Float[Tensor, "rows positions d_model"],
    skip: Tensor | None,
) -> Float[Tensor, "rows positions d_model"]:
    """The recorded MLP output; a linear skip still passes what changed in its input."""
    held = recording.outputs[layer].expand_as(x)
    return held if skip is None else held + (x - recording.inputs[layer]) @ skip


def rows_of(output: Any, like: Float[Tensor, "rows positions d_model"]) -> Tensor:
    """A module's output, alone or first in a tuple, as (rows, P, D); experts may flatten it."""
    return first_of(output).reshape(like.shape)


def replaced(output: Any, tensor: Float[Tensor, "rows positions d_model"]) -> Any:
    """`output` with its hidden states replaced, in the shape they had."""
    return replaced_first(output, tensor.reshape(first_of(output).shape))
