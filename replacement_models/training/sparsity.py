"""Holding L0: thresholds and the weight of the penalty follow it, and meet it exactly at the end.

A soft penalty of a weight that somebody guessed misses: 16.8 where 32 were wanted, on SmolLM2. Here
thresholds, all of a layer together, and the logarithm of the weight are integrals of how far log L0
is off, the former fast, the latter slow. The weight alone winds up: an autoencoder of the toy model
in `examples/training` then ended with an error of .56 where this ends with .08.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Bool
from torch import Tensor

from replacement_models.training.firing import EXACT_BELOW, STRIDE
from replacement_models.training.trainee import Batch, Trainee

FAR = 1.0
"""Natural logarithms: L0 further off than this counts as this far."""
SMOOTH = 0.9
"""Of the running mean of L0, a step."""
LEAST, MOST = -14.0, 5.0
"""Limits of the logarithm of a weight."""
AT_ONCE = 2048
"""Tokens encoded together, if a step has as many."""
CALIBRATED = 16_384
"""Tokens that thresholds are set on, or all not trained on if those are fewer. L0 differs from one
row of text to the next (on SmolLM2 by a tenth to a third of itself), so its standard error falls
with the rows, not the tokens: these are 64 rows of 256, and a third over the root of 64 is 4 %,
where 2,000 tokens leave 12 %."""


@torch.no_grad()
def follow(trainee: Trainee, log_weight: Tensor, l0: Tensor) -> None:
    """Move thresholds, and the logarithms of penalty weights, in place.

    Args:
        trainee: whose thresholds are moved.
        log_weight: (layers).
        l0: running mean of each layer's active features a token.
    """
    steps, gain = max(trainee.config.steps, 50), trainee.config.loss.gain
    target = torch.tensor(trainee.l0, dtype=l0.dtype, device=l0.device)
    off = (l0.clamp_min(1e-3) / target).log().clamp(-FAR, FAR)
    log_weight.add_(off, alpha=10 * gain / steps).clamp_(LEAST, MOST)
    for at, far in enumerate(off.tolist()):
        _move(trainee, at, trainee.config.loss.nudge * far)


@torch.no_grad()
def calibrate(trainee: Trainee, held: Batch, batches: Iterable[Batch] = ()) -> list[float]:
    """Move every layer's thresholds together until L0 is what was asked for.

    It is so on held-out tokens and, where those are fewer than `CALIBRATED`, on more that no step
    has seen, a batch in memory at a time. Trained ones would mislead: after three passes L0 was off
    by a tenth on others, either way (README.md). TopK needs none, and with `run.set_thresholds`
    false none are moved. Where the limit has to stay above zero, L0 may stay below.

    Args:
        trainee: whose thresholds are moved.
        held: held-out tokens, the same on every rank.
        batches: of such tokens, each rank's part of them; as many are drawn as are missing.

    Returns:
        How far each layer's were moved, in units of a pre-activation.
    """
    ranks, size = trainee.ranks, trainee.config.run.batch
    if trainee.firing[0].name == "topk" or not trainee.config.run.set_thresholds:
        return [0.0] * len(trainee.l0)
    more = -(-max(0, CALIBRATED - len(held)) // size)
    most = [_count(l0, len(held) + more * size) for l0 in trainee.l0]
    kept, tokens = [held.inputs[0].new_zeros(0)] * len(most), len(held)
    for batch in islice(batches, more):
        _keep(trainee, batch, kept, most)
        tokens += len(batch) * ranks.parts
    _keep(trainee, held.rows(slice(ranks.part, None, ranks.parts)), kept, most)
    return [_meet(trainee, at, margins, tokens) for at, margins in enumerate(kept)]


def _count(l0: float, tokens: int) -> int:
    """The margins between which the threshold lies, and all above."""
    return round(l0 * tokens) + 1


def _keep(trainee: Trainee, part: Batch, kept: list[Tensor], most: Sequence[int]) -> None:
    """Put the largest margins of some tokens to those kept of each layer."""
    for at, count in enumerate(most):
        for margins in _margins(trainee, at, part):
            found = torch.cat([kept[at], _strongest(margins, trainee.l0[at])])
            slack = len(found) > 2 * count
            kept[at] = found.topk(count, sorted=False).values if slack else found


def _meet(trainee: Trainee, at: int, margins: Tensor, tokens: int) -> float:
    count = min(_count(trainee.l0[at], tokens), tokens * trainee.features_at(at))
    moved = float(trainee.ranks.largest(margins, count).topk(2, largest=False).values.mean())
    if moved == -torch.inf:  # so many cannot fire
        return 0.0
    _move(trainee, at, moved)
    return moved


def _margins(trainee: Trainee, at: int, part: Batch) -> Iterator[Tensor]:
    """How far pre-activations lie above what makes a feature fire, some tokens at a time."""
    limit = trainee.limits(at)
    size = min(AT_ONCE, trainee.config.run.batch // trainee.ranks.parts)
    for x in part.inputs[at].split(size):
        hidden = torch.addmm(
            trainee.b_enc[at], trainee.reads[at].normalised(x), trainee.W_enc[at].t()
        )
        if len(trainee.gain):
            magnitude = trainee.gain[at].exp() * (hidden - trainee.b_enc[at]) + trainee.b_gain[at]
            hidden = hidden.masked_fill(magnitude <= 0, -torch.inf)
        yield hidden if limit is None else hidden - limit


@torch.no_grad()
def fires(trainee: Trainee, at: int, batch: Batch) -> Iterator[Bool[Tensor, "tokens features"]]:
    """Which of its own features of one layer fire once thresholds are set, some tokens at a time.

    Args:
        trainee: calibrated.
        at: number of the layer.
        batch: raw activations.
    """
    firing = trainee.firing[at]
    limit = trainee.limit[at] if firing.name == "batch_topk" else 0
    for margins in _margins(trainee, at, batch):
        yield firing.mask(margins, None) if firing.name == "topk" else margins > limit


def _strongest(margins: Tensor, l0: float) -> Tensor:
    """More than enough of the largest, found above what a sample says; a whole sort is slow."""
    flat = margins.reshape(-1)
    wanted = min(len(flat), max(EXACT_BELOW // 64, round(6 * l0 * len(margins))))
    some = flat[::STRIDE]
    bound = some.topk(min(len(some), 2 * wanted // STRIDE + 1)).values.amin()
    found = flat[flat >= bound]
    return found if len(found) >= wanted else flat.topk(wanted).values


def _move(trainee: Trainee, at: int, by: float) -> None:
    name = trainee.firing[at].name
    if name == "jump_relu":
        trainee.threshold[at].add_(by).clamp_(min=0)
    elif name == "batch_topk":
        trainee.limit[at] = max(by, 0.0)
    else:  # a gate or a ReLU opens above zero; what a gate lets through stays
        trainee.b_enc[at].sub_(by)


def smoothed(before: Tensor, now: Tensor) -> Tensor:
    """The running mean of L0 with one more step."""
    return SMOOTH * before + (1 - SMOOTH) * now
