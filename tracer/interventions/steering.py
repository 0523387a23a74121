"""Where steering takes strengths and directions from: maxima and contrasts over prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError

Prompt = str | Sequence[int]


@one_call()
@torch.no_grad()
def feature_maxima(
    model: ReplacementModel, prompts: Sequence[Prompt], skip_positions: int = 1
) -> Float[Tensor, "layers features"]:
    """The largest activation of every feature over some prompts; 0 where it never fires.

    Args:
        model: the model.
        prompts: to look at.
        skip_positions: leave out the first so many positions of each.

    Raises:
        TraceError: no prompts.
        ModelError: a prompt does not fit the model.
    """
    if not prompts:
        raise TraceError("prompts is empty; the maxima of features need at least one prompt")
    found = torch.zeros(len(model.host.blocks), model.transcoder.features, dtype=model.dtype)
    for prompt in prompts:
        seen = model.record(prompt).features
        counted = (seen.position >= skip_positions).nonzero()[:, 0]
        seen = seen[counted]
        flat = (seen.layer * model.transcoder.features + seen.feature).cpu()
        found.view(-1).scatter_reduce_(0, flat, seen.activation.cpu(), "amax")
    return found


@one_call()
@torch.no_grad()
def contrast(
    model: ReplacementModel,
    pairs: Sequence[tuple[Prompt, Prompt]],
    layer: int,
    position: int = -1,
) -> Float[Tensor, " d_model"]:
    """The mean difference of the residual stream over pairs of prompts, first less second.

    Args:
        model: the model.
        pairs: of prompts that differ in what the direction is to mean.
        layer: read the stream entering this layer (L: the one entering the final norm), where
            `Steering(layer=layer, ...)` adds it.
        position: which token's, counted in each prompt for itself.

    Raises:
        TraceError: no pairs, or a layer or position that does not exist.
        ModelError: a prompt does not fit the model.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".
    """
    layers = len(model.host.blocks)
    if not 0 <= layer <= layers:
        raise TraceError(f"contrast: layer {layer} is not in 0..{layers}")
    if not pairs:
        raise TraceError("pairs is empty; a contrast needs at least one pair of prompts")

    def stream(prompt: Prompt) -> Tensor:
        residual = model.record(prompt).residuals[layer]
        if not -len(residual) <= position < len(residual):
            raise TraceError(f"contrast: position {position} is not in {prompt!r:.60}")
        return residual[position]

    return torch.stack([stream(first) - stream(second) for first, second in pairs]).mean(0)
