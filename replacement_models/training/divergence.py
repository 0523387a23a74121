"""The end-to-end stage: the model with every MLP replaced is to say what it says itself."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.replaced import Where, counted, logits_of, replaced
from replacement_models.replacement import ReplacementModel
from replacement_models.training.fold import folded
from replacement_models.training.trainee import Trainee

SHARPNESS = 4.0
"""What logits are multiplied by to sharpen a distribution."""


def divergence(
    model: ReplacementModel,
    trainee: Trainee,
    tokens: Int[Tensor, "rows context"],
    where: Where,
    sharp: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """KL from the model's next-token distribution to that of the replacement, with gradients.

    Args:
        model: the model; its own dictionary is not used.
        trainee: what stands in.
        tokens: ids.
        where: which positions are kept.
        sharp: compare sharpened distributions too.

    Returns:
        Nats a token, over all positions that count; the same of distributions sharpened
        `SHARPNESS` times, 0 unless asked for.
    """
    transcoder = folded(trainee, len(model.host.blocks), model.name, soft=True)
    standing = replace(model, transcoder=transcoder.to(model.device, model.dtype))
    keep = counted(model, tokens, where)
    with torch.no_grad():
        own = logits_of(model, tokens)[keep].float()
    with replaced(standing, where):
        other = logits_of(standing, tokens)[keep].float()
    away = _nats(own, other)
    return away, _nats(SHARPNESS * own, SHARPNESS * other) if sharp else away.new_zeros(())


def _nats(own: Float[Tensor, "tokens vocabulary"], other: Tensor) -> Float[Tensor, ""]:
    truth, guess = own.log_softmax(-1), other.log_softmax(-1)
    return (truth.exp() * (truth - guess)).sum(-1).mean()
