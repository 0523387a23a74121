"""What a batch costs, and what is reported of it.

Units: an error is weighted squared error over the weighted variance of what is written, so 1 is
the mean alone; a penalty is a sum over features, mean over tokens. Losses of layers are added.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.training.firing import Active
from replacement_models.training.product import Product
from replacement_models.training.trainee import Batch, Trainee

MOST_DEAD = 16
"""Dead features looked at together, in units of `loss.aux_k`."""


@dataclass(eq=False)
class Found:
    """One layer of a batch; numbers are tensors without a graph."""

    error: Tensor
    """Weighted squared error over the weighted variance."""
    plain: Tensor
    """Squared error over the batch's variance, every token alike."""
    l0: Tensor
    """Active features a token."""
    penalty: Tensor
    """Sum over features, mean over tokens, before its weight."""
    fired: Float[Tensor, " features"]
    """Tokens that each feature fires on."""


def island_loss(
    trainee: Trainee,
    batch: Batch,
    island: range,
    product: Product,
    sparse: list[bool],
    weights: Float[Tensor, " layers"],
) -> tuple[Tensor, list[Found]]:
    """The loss of layers that share one, with gradients.

    Args:
        trainee: parameters.
        batch: raw activations.
        island: numbers of the layers.
        product: of the encoder.
        sparse: for each layer, whether it computes over pairs alone.
        weights: of each layer's penalty.

    Returns:
        The loss, and a report a layer.
    """
    inputs = {at: trainee.reads[at].normalised(batch.inputs[at]) for at in island}
    active = {at: trainee.active(at, inputs[at], product, sparse[at]) for at in island}
    ends = [*trainee.config.dictionary.prefixes, trainee.features]
    totals = _reconstructions(trainee, inputs, active, ends)
    gates = _gate_reconstructions(trainee, inputs, active) if len(trainee.gain) else {}
    loss = batch.inputs[0].new_zeros(())
    reports = []
    for at in island:
        wanted = trainee.writes[at].normalised(batch.outputs[at])
        weight = trainee.writes[at].weight(batch.outputs[at], trainee.config.loss.outliers)
        errors = torch.stack([share_missed(wanted - some[at], weight) for some in totals])
        missing = (wanted - totals[-1][at]).detach()
        penalty = penalty_of(trainee, at, active[at])
        loss = loss + errors.mean() + weights[at] * penalty
        loss = loss + _for_the_dead(trainee, at, inputs[at], missing)
        if at in gates:
            loss = loss + share_missed(wanted - gates[at], weight)
        fired = active[at].counts()
        variance = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-12)
        reports.append(
            Found(
                error=errors[-1].detach(),
                plain=missing.square().sum() / variance,
                l0=fired.sum() / len(batch),
                penalty=penalty.detach(),
                fired=fired,
            )
        )
    return loss, reports


def share_missed(
    missing: Float[Tensor, "tokens d_model"], weight: Float[Tensor, " tokens"]
) -> Tensor:
    """Weighted squared error over the weighted variance, which is D in normalised units."""
    return (weight * missing.square().sum(1)).sum() / (weight.sum() * missing.shape[1])


def _reconstructions(
    trainee: Trainee, inputs: dict[int, Tensor], active: dict[int, Active], ends: list[int]
) -> list[dict[int, Tensor]]:
    """What is written to each layer by the first features of each prefix, last by all."""
    total = {at: trainee.base(at, x) for at, x in inputs.items()}
    found, begin = [], 0
    for end in ends:
        total = dict(total)
        for at, fires in active.items():
            values = fires.values
            if len(ends) > 1:
                values = values * fires.first(end, begin)
            written = trainee.writes_of(at, fires, values)
            for slot, target in enumerate(trainee.wiring.slots(at)):
                total[target] = total[target] + written[:, slot]
        found.append(total)
        begin = end
    return found


def _gate_reconstructions(
    trainee: Trainee, inputs: dict[int, Tensor], active: dict[int, Active]
) -> dict[int, Tensor]:
    """What gates alone would write through a frozen decoder: from its error they learn.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".
    """
    total = {at: trainee.base(at, x).detach() for at, x in inputs.items()}
    for at, fires in active.items():
        written = trainee.writes_of(at, fires, fires.hidden.relu(), frozen=True)
        for slot, target in enumerate(trainee.wiring.slots(at)):
            total[target] = total[target] + written[:, slot]
    return total


def penalty_of(trainee: Trainee, at: int, found: Active) -> Tensor:
    """Of activations times decoder norms; of a gated layer of what its gate reads."""
    config = trainee.config.loss
    if trainee.firing[at].ranks:
        return found.values.new_zeros(())
    values = found.hidden.relu() if len(trainee.gain) else found.values
    size = values * found.of_feature(trainee.norms(at))
    tokens = found.tokens
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
    dead = (trainee.silent[at] > config.dead_after).nonzero()[:, 0]
    if not len(dead) or not (config.pre_activation or config.aux):
        return x.new_zeros(())
    dead = dead[: MOST_DEAD * config.aux_k]
    hidden = torch.addmm(trainee.b_enc[at][dead], x, trainee.W_enc[at][dead].t())
    limits = trainee.limits(at)
    limit = 0.0 if limits is None else limits[dead].detach()
    short = torch.relu(limit - hidden) * trainee.norms(at)[dead]
    loss = config.pre_activation * short.sum() / len(x)
    top = hidden.relu().topk(min(config.aux_k, len(dead)), dim=1)
    values = torch.zeros_like(hidden).scatter(1, top.indices, top.values)
    rows = trainee.decoders(at)[dead, 0]
    left = (missing - values @ rows).square().sum() / missing.square().sum().clamp_min(1e-12)
    return loss + config.aux * left
