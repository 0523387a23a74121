"""The end-to-end stage: the model with every MLP replaced is to say what it says itself."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.replaced import Where, counted, logits_of, replaced
from replacement_models.replacement import ReplacementModel
from replacement_models.training.fold import folded
from replacement_models.training.shards import take_gradients, whole
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


def shared_divergence(
    model: ReplacementModel,
    trainee: Trainee,
    tokens: Int[Tensor, "rows context"],
    where: Where,
    weight: float,
    sharp: float = 0.0,
) -> float:
    """The same of rows that ranks share out, each with the whole dictionary.

    Args:
        model: the model.
        trainee: one rank's features, whose gradients `weight` times the divergence is added to.
        tokens: ids of all rows.
        where: which positions are kept.
        weight: of the divergence.
        sharp: of the sharpened one, times `weight`.

    Returns:
        Nats a token, over all positions of all rows that count.
    """
    ranks, found = trainee.ranks, whole(trainee)
    mine = tokens[ranks.number :: ranks.count]
    count = counted(model, mine, where).sum().to(found.b_dec[0])
    share, away = count / ranks.over_all(count), torch.zeros_like(count)
    if count:
        away, sharper = divergence(model, found, mine, where, sharp > 0)
        away = share * away
        (weight * (away + sharp * share * sharper)).backward()
    take_gradients(trainee, found)
    return float(ranks.over_all(away.detach()))
