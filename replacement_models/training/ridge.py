"""Weighted least squares: the affine skip in closed form, and the first decoder over pairs."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.training.pairs import Pairs, times, turned_times

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried for the skip, in units of the mean eigenvalue; the best on tokens held out is taken."""
HELD_OUT = 0.1
DECODER_PENALTIES = (1e-3, 1e-1)
"""Of the decoder's fit, in units of the mean of the Gram matrix's diagonal."""
DAMPED = 0.1
"""Added to that diagonal, likewise, where it scales steps: rare features would run ahead."""
MOST, PATIENCE = 30, 2
"""Steps of that fit; how many that mend nothing are its last."""
TINY = 1e-30


def affine(
    x: Float[Tensor, "tokens d_in"],
    y: Float[Tensor, "tokens d_out"],
    weight: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    """The weighted ridge fit of `x @ A + b` to y.

    Args:
        x: inputs, their weighted mean near zero.
        y: outputs, likewise.
        weight: of each token's squared error.

    Returns:
        A and b.
    """
    split = len(x) - max(1, round(HELD_OUT * len(x)))
    mean_x, mean_y = ((weight[:, None] * z).sum(0) / weight.sum() for z in (x, y))
    inputs, outputs = (x - mean_x).double(), (y - mean_y).double()
    fit = slice(None, split)
    weighted = inputs[fit] * weight[fit, None].double()
    values, vectors = torch.linalg.eigh(weighted.T @ inputs[fit])
    projected = vectors.T @ (weighted.T @ outputs[fit])
    turned = inputs @ vectors
    best, least = None, torch.inf
    for penalty in PENALTIES:
        found = projected / (values.clamp(min=0) + penalty * values.mean())[:, None]
        missed = (outputs[split:] - turned[split:] @ found).square().sum(1)
        error = float((weight[split:].double() * missed).sum())
        if best is None or error < least:
            best, least = found, error
    assert best is not None
    matrix = (vectors @ best).to(x.dtype)
    return matrix, mean_y - mean_x @ matrix


def decoder(
    active: Sequence[tuple[Pairs, Tensor]],
    target: Float[Tensor, "tokens width"],
    weight: Float[Tensor, " tokens"],
) -> Float[Tensor, "features width"]:
    """The weighted ridge fit of decoder rows to what they are to write.

    Conjugate gradients over pairs, stopped where the error on tokens held out rises, under each of
    two penalties, of which the better is taken. On the embedded model's layers the error is that of
    the best of four penalties to within 2 %, in a sixth (L0 2) to two thirds (L0 8) of their time.

    Args:
        active: pairs and values of the layers that write, one beside the other.
        target: what is to be written, in normalised units.
        weight: of each token's squared error.

    Returns:
        Rows of all layers, one below the other.
    """
    pairs, values = _beside(active, len(target))
    split = len(target) - max(1, round(HELD_OUT * len(target)))
    fitted = weight[:, None].clone()
    fitted[split:] = 0
    square = turned_times(pairs, values.square(), fitted)
    right = turned_times(pairs, values, fitted * target)

    def onward(rows: Tensor) -> Tensor:
        return turned_times(pairs, values, fitted * times(pairs, values, rows))

    def error(rows: Tensor) -> float:
        missed = (target - times(pairs, values, rows))[split:].square().sum(1)
        return float((weight[split:] * missed).sum())

    mean = square.mean().clamp_min(TINY)
    tried = [_descended(onward, right, square, part * mean, error) for part in DECODER_PENALTIES]
    return min(tried, key=lambda one: one[1])[0]


def _descended(
    onward: Callable[[Tensor], Tensor],
    right: Tensor,
    square: Tensor,
    penalty: Tensor,
    error: Callable[[Tensor], float],
) -> tuple[Tensor, float]:
    """The rows of least error on the way of conjugate gradients, and that error.

    Args:
        onward: the Gram matrix times rows.
        right: what that is to be.
        square: its diagonal (features, 1), by which steps are scaled.
        penalty: added to it.
        error: of rows on tokens held out.
    """
    scale = square + DAMPED * square.mean()
    found, best = torch.zeros_like(right), (torch.zeros_like(right), torch.inf)
    left, worse = right, 0
    step = scaled = left / scale
    size = (left * scaled).sum(0)
    for _ in range(MOST):
        moved = onward(step) + penalty * step
        far = size / (step * moved).sum(0).clamp_min(TINY)
        found, left = found + far * step, left - far * moved
        now = error(found)
        worse = 0 if now < best[1] else worse + 1
        if not worse:
            best = found, now
        if worse == PATIENCE:
            break
        scaled = left / scale
        before, size = size, (left * scaled).sum(0)
        step = scaled + size / before.clamp_min(TINY) * step
    return best


def _beside(active: Sequence[tuple[Pairs, Tensor]], tokens: int) -> tuple[Pairs, Tensor]:
    """Features of several layers as those of one, and their values."""
    token, feature, begin = [], [], 0
    for pairs, _ in active:
        token.append(pairs.token)
        feature.append(pairs.feature + begin)
        begin += pairs.features
    order = torch.cat(token).argsort(stable=True)
    places = Pairs.sorted(torch.cat(token)[order], torch.cat(feature)[order], tokens, begin)
    return places, torch.cat([values.detach() for _, values in active])[order]
