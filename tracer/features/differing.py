"""Features that fire on one prompt and not on another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.features.encoding import encode_rows
from tracer.features.promoted import written_by

AT_ONCE = 4096
"""Features whose decoders are read together."""


@dataclass(frozen=True)
class Differing:
    """A feature that fires on the first prompt."""

    layer: int
    feature: int
    position: int
    """Of the first prompt: where it is strongest, whatever its sign."""
    activation: float
    """There."""
    elsewhere: float
    """The strongest one on the other prompt; 0 where it is silent."""
    written: float
    """How much more it writes there than anywhere on the other prompt: the difference in size,
    times the norm of its decoder."""


@one_call()
@torch.no_grad()
def differing(
    model: ReplacementModel,
    prompt: str | Sequence[int],
    other: str | Sequence[int],
    *,
    silent: bool = True,
    limit: int = 20,
    skip_positions: int = 1,
) -> list[Differing]:
    """The features that fire on one prompt and not on another, by how much they write.

    Args:
        model: the model.
        prompt: text, or token ids taken as they stand.
        other: the prompt they do not fire on.
        silent: leave out features that fire on the other prompt, if less; a model's neurons are
            hardly ever silent.
        limit: at most so many.
        skip_positions: first positions that do not count; nor do special tokens.

    Returns:
        Features, those first that write most.

    Raises:
        ModelError: a prompt does not fit the model.
    """
    first, second = (_strongest(model, one, skip_positions) for one in (prompt, other))
    found = []
    for layer, (position, activation) in first.items():
        _, elsewhere = second[layer]
        more = (activation.abs() - elsewhere.abs()) * _norms(model, layer)
        wanted = (more > 0) & ((elsewhere == 0) if silent else torch.ones_like(more).bool())
        more = more.where(wanted, 0)
        for feature in more.topk(min(limit, len(more))).indices.tolist():
            if wanted[feature]:
                numbers = (activation[feature], elsewhere[feature], more[feature])
                place = (layer, feature, int(position[feature]))
                found.append(Differing(*place, *(float(number) for number in numbers)))
    return sorted(found, key=lambda one: (-one.written, one.layer, one.feature))[:limit]


def _strongest(
    model: ReplacementModel, prompt: str | Sequence[int], skip_positions: int
) -> dict[int, tuple[Int[Tensor, " features"], Float[Tensor, " features"]]]:
    """By layer, where each feature is strongest on a prompt, and its activation there."""
    found = {}

    def see(layer: int, active: Float[Tensor, "tokens features"]) -> None:
        position = active.abs().argmax(0)
        found[layer] = position, active.gather(0, position[None])[0]

    encode_rows(model, torch.tensor([model.tokenize(prompt)]), skip_positions, see)
    return found


def _norms(model: ReplacementModel, layer: int) -> Float[Tensor, " features"]:
    count = len(model.transcoder.layers[layer].W_enc)
    parts = torch.arange(count, device=model.device).split(AT_ONCE)
    return torch.cat([written_by(model, layer, part).norm(dim=1) for part in parts])
