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


def divergence(
    model: ReplacementModel, trainee: Trainee, tokens: Int[Tensor, "rows context"], where: Where
) -> Float[Tensor, ""]:
    """KL from the model's next-token distribution to that of the replacement, with gradients.

    Args:
        model: the model; its own dictionary is not used.
        trainee: what stands in.
        tokens: ids.
        where: which positions are kept.

    Returns:
        Nats a token, over all positions that count.
    """
    transcoder = folded(trainee, len(model.host.blocks), model.name, soft=True)
    standing = replace(model, transcoder=transcoder.to(model.device, model.dtype))
    keep = counted(model, tokens, where)
    with torch.no_grad():
        own = logits_of(model, tokens)[keep].float().log_softmax(-1)
    with replaced(standing, where):
        other = logits_of(standing, tokens)[keep].float().log_softmax(-1)
    return (own.exp() * (own - other)).sum(-1).mean()


def shared_divergence(
    model: ReplacementModel,
    trainee: Trainee,
    tokens: Int[Tensor, "rows context"],
    where: Where,
    weight: float,
) -> float:
    """The same of rows that ranks share out, each with the whole dictionary.

    Args:
        model: the model.
        trainee: one rank's features, whose gradients `weight` times the divergence is added to.
        tokens: ids of all rows.
        where: which positions are kept.
        weight: of the divergence.

    Returns:
        Nats a token, over all positions of all rows that count.
    """
    ranks, found = trainee.ranks, whole(trainee)
    mine = tokens[ranks.number :: ranks.count]
    count = counted(model, mine, where).sum().to(found.b_dec[0])
    share, away = count / ranks.over_all(count), torch.zeros_like(count)
    if count:
        away = share * divergence(model, found, mine, where)
        (weight * away).backward()
    take_gradients(trainee, found)
    return float(ranks.over_all(away.detach()))
