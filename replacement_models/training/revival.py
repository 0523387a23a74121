"""Dead features start again where tokens are badly explained."""

import torch
from torch import Tensor

from replacement_models.training.trainee import Batch, Trainee

REACH = 0.8
"""Share of its token's length that a revived feature's pre-activation stands at below it."""
UNTIL = 0.6
"""Share of the steps after which nothing is revived."""


@torch.no_grad()
def revive(
    trainee: Trainee,
    batch: Batch,
    missing: list[Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> list[int]:
    """Point dead features at tokens drawn by what is missing there.

    Args:
        trainee: changed in place.
        batch: raw activations.
        missing: error of each layer (tokens, D), in normalised units.
        optimiser: forgets what it knew of the features.
        generator: draws the tokens.

    Returns:
        How many of each layer.
    """
    counts = []
    for at, left in enumerate(missing):
        dead = (trainee.silent[at] > trainee.config.loss.dead_after).nonzero()[:, 0]
        before, count = trainee.ranks.numbered(len(dead), dead.device)
        counts.append(count)
        if count:
            drawn = _drawn(trainee, at, count, batch, left, generator)
            _restart(trainee, at, dead, batch, left, drawn[before : before + len(dead)])
            _forget(trainee, at, dead, optimiser)
    return counts


def _drawn(
    trainee: Trainee, at: int, count: int, batch: Batch, left: Tensor, generator: torch.Generator
) -> Tensor:
    """Numbers of tokens, one for each dead feature of all ranks."""
    weight = trainee.writes[at].weight(batch.outputs[at], trainee.config.loss.outliers)
    chance = trainee.ranks.tokens(weight * left.square().sum(1)).double().cpu().clamp_min(1e-12)
    drawn = torch.multinomial(chance, count, replacement=True, generator=generator)
    return drawn.to(left.device)


def _restart(
    trainee: Trainee, at: int, dead: Tensor, batch: Batch, left: Tensor, drawn: Tensor
) -> None:
    left = trainee.ranks.chosen(left, drawn)
    x = trainee.reads[at].normalised(trainee.ranks.chosen(batch.inputs[at], drawn))
    length = x.norm(dim=1).clamp_min(1e-6)
    first = trainee.config.start.threshold if len(trainee.threshold) else 0.0
    trainee.W_enc[at][dead] = x / length[:, None]
    trainee.b_enc[at][dead] = first - REACH * length
    trainee.W_dec[at][dead] = 0.0
    write = left / ((1 - REACH) * 2 * length[:, None])
    trainee.W_dec[at][dead, : trainee.width] = write
    for parameters, value in ((trainee.threshold, first), (trainee.gain, 0.0)):
        if len(parameters):
            parameters[at][dead] = value
    if len(trainee.b_gain):
        trainee.b_gain[at][dead] = trainee.b_enc[at][dead]
    trainee.silent[at][dead] = 0


def _forget(trainee: Trainee, at: int, dead: Tensor, optimiser: torch.optim.Optimizer) -> None:
    for parameters in (
        *(trainee.W_enc, trainee.b_enc, trainee.W_dec, trainee.threshold),
        *(trainee.gain, trainee.b_gain, trainee.share),
    ):
        if len(parameters):
            state = optimiser.state[parameters[at]]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name][dead] = 0
