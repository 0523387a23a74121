"""Weighted ridge regression in closed form: the affine skip, and the first decoder."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from replacement_models.training.pairs import Pairs

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried for the skip, in units of the mean eigenvalue; the best on tokens held out is taken."""
DECODER_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.1


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

    Args:
        active: pairs and values of the layers that write, one beside the other.
        target: what is to be written, in normalised units.
        weight: of each token's squared error.

    Returns:
        Rows of all layers, one below the other.
    """
    tokens = len(target)
    values = torch.cat([found.detach() for _, found in active]).double().cpu().numpy()
    columns, rows, begin = [], [], 0
    for pairs, _ in active:
        columns.append(pairs.feature.cpu().numpy() + begin)
        rows.append(pairs.token.cpu().numpy())
        begin += pairs.features
    matrix = csr_array((values, (np.concatenate(rows), np.concatenate(columns))), (tokens, begin))
    split = tokens - max(1, round(HELD_OUT * tokens))
    scale, wanted = weight.double().cpu().numpy(), target.double().cpu().numpy()
    weighted = matrix[:split].multiply(scale[:split, None]).tocsr()
    gram = torch.from_numpy((weighted.T @ matrix[:split]).toarray()).to(target.dtype)
    right = torch.from_numpy(weighted.T @ wanted[:split]).to(target.dtype)
    ridge = gram.diagonal().mean().clamp_min(1e-12)
    best, least = torch.zeros_like(right), np.inf
    for penalty in DECODER_PENALTIES:
        shifted = gram.clone()
        shifted.diagonal().add_(penalty * ridge)
        found = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
        missed = np.square(wanted[split:] - matrix[split:] @ found.double().numpy()).sum(1)
        error = float((scale[split:] * missed).sum())
        if error < least:
            best, least = found, error
    return best.to(target.device)
