"""What a batch costs, and what is reported of it.

Units: an error is weighted squared error over the weighted variance of what is written, so 1 is
the mean alone; a penalty is a sum over features, mean over tokens. Losses of layers are added.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.training.firing import Active, largest
from replacement_models.training.product import Product
from replacement_models.training.ranks import ALONE, Ranks
from replacement_models.training.trainee import Batch, Trainee

MOST_DEAD = 16
"""Dead features looked at together, in units of `loss.aux_k`."""
LOOKED_AT = 8
"""One token in so many is looked at for the dead: with a quarter of the features dead, all tokens
would cost nearly as much as the rest of a step."""


@dataclass(eq=False)
class Found:
    """One layer of a batch, of all ranks; numbers are tensors without a graph."""

    error: Tensor
    """Weighted squared error over the weighted variance."""
    plain: Tensor
    """Squared error over the batch's variance, every token alike."""
    l0: Tensor
    """Active features a token."""
    penalty: Tensor
    """Sum over features, mean over tokens, before its weight."""
    fired: Float[Tensor, " features"]
    """Tokens that each feature of this rank fires on."""


def island_loss(
    trainee: Trainee,
    batch: Batch,
    island: range,
    product: Product,
    sparse: list[bool],
    weights: Float[Tensor, " layers"],
) -> tuple[Tensor, list[Found]]:
    """The loss of layers that share one, with gradients.

    Of several ranks each has its part of the loss: the sum of all their tokens' parts, and of the
    penalties of all their features, is the loss of a process alone.

    Args:
        trainee: parameters.
        batch: raw activations, of the rank's own tokens.
        island: numbers of the layers.
        product: of the encoder.
        sparse: for each layer, whether it computes over pairs alone.
        weights: of each layer's penalty.

    Returns:
        The loss, and a report a layer.
    """
    inputs = {at: trainee.reads[at].normalised(batch.inputs[at]) for at in island}
    active = {at: trainee.active(at, inputs[at], product, sparse[at]) for at in island}
    ranks = trainee.ranks
    ends = [*trainee.config.dictionary.prefixes, trainee.features]
    totals = _reconstructions(trainee, inputs, active, ends)
    gates = _gate_reconstructions(trainee, inputs, active) if len(trainee.gain) else {}
    loss = batch.inputs[0].new_zeros(())
    reports = []
    for at in island:
        wanted = trainee.writes[at].normalised(batch.outputs[at])
        weight = trainee.writes[at].weight(batch.outputs[at], trainee.config.loss.outliers)
        errors = torch.stack([share_missed(wanted - some[at], weight, ranks) for some in totals])
        missing = (wanted - totals[-1][at]).detach()
        penalty = penalty_of(trainee, at, active[at])
        loss = loss + errors.mean() + weights[at] * penalty
        loss = loss + _for_the_dead(trainee, at, inputs[at], missing)
        if at in gates:
            loss = loss + share_missed(wanted - gates[at], weight, ranks)
        fired = ranks.over_parts(active[at].counts())
        variance = ranks.over_parts((wanted - ranks.mean(wanted)).square().sum()).clamp_min(1e-12)
        reports.append(
            Found(
                error=ranks.over_parts(errors[-1].detach()),
                plain=ranks.over_parts(missing.square().sum()) / variance,
                l0=ranks.over_shards(fired.sum()) / (len(batch) * ranks.parts),
                penalty=ranks.over_all(penalty.detach()),
                fired=fired,
            )
        )
    return loss, reports


def share_missed(
    missing: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, " tokens"],
    ranks: Ranks = ALONE,
) -> Tensor:
    """Weighted squared error over the weighted variance, which is D in normalised units."""
    whole = ranks.over_parts(weight.sum()) * missing.shape[1]
    return (weight * missing.square().sum(1)).sum() / whole


def _reconstructions(
    trainee: Trainee, inputs: dict[int, Tensor], active: dict[int, Active], ends: list[int]
) -> list[dict[int, Tensor]]:
    """What is written to each layer by the first features of each prefix, last by all."""
    total = {at: trainee.ranks.once(trainee.base(at, x)) for at, x in inputs.items()}
    found, begin, first = [], 0, trainee.own.start
    for end in ends:
        total = dict(total)
        for at, fires in active.items():
            values = fires.values
            if len(ends) > 1:
                values = values * fires.first(end - first, begin - first)
            written = trainee.writes_of(at, fires, values).unbind(1)  # goes back in one piece
            for target, one in zip(trainee.wiring.slots(at), written, strict=True):
                total[target] = total[target] + one
        found.append(total)
        begin = end
    return written_by_all(trainee.ranks, found)


def _gate_reconstructions(
    trainee: Trainee, inputs: dict[int, Tensor], active: dict[int, Active]
) -> dict[int, Tensor]:
    """What gates alone would write through a frozen decoder: from its error they learn.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".
    """
    total = {at: trainee.ranks.once(trainee.base(at, x).detach()) for at, x in inputs.items()}
    for at, fires in active.items():
        written = trainee.writes_of(at, fires, fires.hidden.relu(), frozen=True).unbind(1)
        for target, one in zip(trainee.wiring.slots(at), written, strict=True):
            total[target] = total[target] + one
    return written_by_all(trainee.ranks, [total])[0]


def written_by_all(ranks: Ranks, own: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
    """The same of all shards, in one all-reduce."""
    flat = iter(ranks.written([one for some in own for one in some.values()]))
    return [dict(zip(some, flat, strict=False)) for some in own]


def penalty_of(trainee: Trainee, at: int, found: Active) -> Tensor:
    """Of activations times decoder norms; of a gated layer of what its gate reads."""
    config = trainee.config.loss
    if trainee.firing[at].ranks:
        return found.values.new_zeros(())
    values = found.hidden.relu() if len(trainee.gain) else found.values
    size = values * found.of_feature(trainee.norms(at))
    tokens = found.tokens * trainee.ranks.parts
    if config.penalty == "l1":
        return size.sum() / tokens
    firing = torch.tanh(config.tanh_scale * size)
    if config.penalty == "tanh":
        return firing.sum() / tokens
    share = found.by_feature(firing) / tokens
    return (share * (1 + share / config.frequent)).sum()


def _for_the_dead(trainee: Trainee, at: int, x: Tensor, missing: Tensor) -> Tensor:
    """What draws dead features back: short pre-activations, and the error they could mend."""
    config = trainee.config.loss
    ranks, dead = trainee.ranks, (trainee.silent[at] > config.dead_after).nonzero()[:, 0]
    before, count = ranks.numbered(len(dead), dead.device)
    if not count or not (config.pre_activation or config.aux):
        return x.new_zeros(())
    dead = dead[: max(0, MOST_DEAD * config.aux_k - before)]
    seen = slice(-ranks.part * len(x) % LOOKED_AT, None, LOOKED_AT)
    tokens = -(-len(x) * ranks.parts // LOOKED_AT)
    x, missing = x[seen], missing[seen]
    encoder, rows = trainee.W_enc[at].index_select(0, dead), trainee.decoders(at, dead)
    hidden = torch.addmm(trainee.b_enc[at][dead], x, encoder.t())
    limits = trainee.limits(at)
    limit = 0.0 if limits is None else limits[dead].detach()
    short = torch.relu(limit - hidden) * rows.flatten(1).norm(dim=1)
    loss = config.pre_activation * short.sum() / tokens
    top = largest(hidden.detach(), min(config.aux_k, count), ranks)
    values = hidden.relu() * top
    [mended] = ranks.written([values @ rows[:, 0]])
    whole = ranks.over_parts(missing.square().sum()).clamp_min(1e-12)
    left = (missing - mended).square().sum() / whole
    return loss + config.aux * left
