"""Active features of a batch as pairs of token and feature, and products with them alone.

Everything after the encoder's product works on pairs: their values in the order of tokens (the
sparse rows of a CSR matrix), so that a step costs what is active and not tokens times features.
Sums over pairs are `embedding_bag`s, those over a feature's tokens after one sort: 4 times as fast
as torch's product with a transposed sparse matrix (512 to 2,048 tokens, one thread of an AMD EPYC).
Backward passes are written by hand; `tests/test_replacement_models_training_step.py` compares them
with dense autograd.
"""

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

AT_ONCE = 1 << 22
"""Numbers gathered at once where the machine makes no single entries of a dense product."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Places of a sparse (tokens, features) matrix, token by token."""

    begins: Int[Tensor, " tokens+1"]
    """Where each token's pairs begin; last, how many there are."""
    token: Int[Tensor, " pairs"]
    feature: Int[Tensor, " pairs"]
    features: int

    @classmethod
    def of(cls, mask: Bool[Tensor, "tokens features"]) -> "Pairs":
        """Where a mask is true."""
        if mask.device.type == "cpu":  # numpy is four times as quick at it
            flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
            token = flat // mask.shape[1]
            feature = flat - token * mask.shape[1]
        else:
            token, feature = mask.nonzero(as_tuple=True)
        return cls.sorted(token, feature, len(mask), mask.shape[1])

    @classmethod
    def sorted(cls, token: Tensor, feature: Tensor, tokens: int, features: int) -> "Pairs":
        """Of places that stand in the order of tokens."""
        counts = torch.bincount(token, minlength=tokens)
        begins = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(begins, token, feature, features)

    @cached_property
    def turned(self) -> "Turned":
        """The same places, feature by feature."""
        order = self.feature.argsort(stable=True)
        counts = torch.bincount(self.feature, minlength=self.features)
        return Turned(counts.cumsum(0) - counts, self.token[order], order)

    def within(self, keep: Bool[Tensor, " pairs"]) -> "Pairs":
        """Some of them."""
        return Pairs.sorted(
            self.token[keep], self.feature[keep], len(self.begins) - 1, self.features
        )

    def matrix(self, values: Float[Tensor, " pairs"]) -> Tensor:
        """The sparse matrix with these values."""
        size = len(self.begins) - 1, self.features
        return torch.sparse_csr_tensor(
            self.begins, self.feature, values, size, check_invariants=False
        )

    def take(self, dense: Float[Tensor, "tokens features"]) -> Float[Tensor, " pairs"]:
        """Values of a dense matrix at these places."""
        return dense.reshape(-1)[self.token * self.features + self.feature]


@dataclass(frozen=True, eq=False)
class Turned:
    """Places of the transposed matrix, feature by feature."""

    begins: Int[Tensor, " features"]
    """Where each feature's pairs begin."""
    token: Int[Tensor, " pairs"]
    order: Int[Tensor, " pairs"]
    """Where each stands in the order of tokens."""


def above(hidden: Float[Tensor, "..."], limit: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where `hidden` is larger; on a CPU by numpy, which is three times as quick at it."""
    if hidden.device.type != "cpu" or hidden.dtype == torch.bfloat16:
        return hidden > limit
    return torch.from_numpy(np.greater(hidden.detach().numpy(), limit.detach().numpy()))


def encode(
    x: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "features d_model"],
    bias: Float[Tensor, " features"],
    hidden: Float[Tensor, "tokens features"],
    pairs: Pairs,
) -> Float[Tensor, " pairs"]:
    """Pre-activations at pairs, with gradients.

    Args:
        x: what is read.
        weight: encoder.
        bias: of the encoder.
        hidden: `x @ weight.T + bias`, made without a graph.
        pairs: places.
    """
    found: Tensor = _Encode.apply(x, weight, bias, pairs.take(hidden), pairs)  # type: ignore[no-untyped-call]
    return found


def decode(
    values: Float[Tensor, " pairs"], weight: Float[Tensor, "features width"], pairs: Pairs
) -> Float[Tensor, "tokens width"]:
    """The sum, over each token's pairs, of value times decoder row."""
    found: Tensor = _Decode.apply(values, weight, pairs)  # type: ignore[no-untyped-call]
    return found


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, pairs: Pairs
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        by_bias = grad.new_zeros(pairs.features).index_add_(0, pairs.feature, grad)
        to_x = times(pairs, grad, weight) if ctx.needs_input_grad[0] else None
        return to_x, turned_times(pairs, grad, x), by_bias, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.pairs = pairs
        return times(pairs, values, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        grad = grad.contiguous()
        to_values = _dots(pairs, grad, weight) if ctx.needs_input_grad[0] else None
        to_weight = turned_times(pairs, values, grad) if ctx.needs_input_grad[1] else None
        return to_values, to_weight, None


def times(pairs: Pairs, values: Tensor, weight: Tensor) -> Tensor:
    """(tokens, width): the sparse matrix times `weight`."""
    if not len(values):
        return weight.new_zeros(len(pairs.begins) - 1, weight.shape[1])
    return embedding_bag(
        pairs.feature, weight, pairs.begins[:-1], mode="sum", per_sample_weights=values
    )


def turned_times(pairs: Pairs, values: Tensor, dense: Tensor) -> Tensor:
    """(features, width): the transposed sparse matrix times `dense`."""
    if not len(values):
        return dense.new_zeros(pairs.features, dense.shape[1])
    turned = pairs.turned
    return embedding_bag(
        turned.token, dense, turned.begins, mode="sum", per_sample_weights=values[turned.order]
    )


def _dots(pairs: Pairs, dense: Tensor, weight: Tensor) -> Tensor:
    """(pairs): at each pair the product of a token's row of `dense` and a feature's of `weight`."""
    if not len(pairs.token):
        return dense.new_zeros(0)
    if has_sparse_products(dense.device, dense.dtype):
        pattern = pairs.matrix(dense.new_zeros(len(pairs.token)))
        return torch.sparse.sampled_addmm(pattern, dense, weight.t(), beta=0.0).values()
    step = max(1, AT_ONCE // dense.shape[1])
    parts = [
        (dense[token] * weight[feature]).sum(1)
        for token, feature in zip(pairs.token.split(step), pairs.feature.split(step), strict=True)
    ]
    return torch.cat(parts)


@cache
def has_sparse_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch makes single entries of a dense product here; found by trying."""
    dense = torch.eye(2, device=device, dtype=dtype)
    try:
        with warnings.catch_warnings():  # torch says once that its sparse matrices are in beta
            warnings.simplefilter("ignore")
            matrix = Pairs.of(torch.eye(2, device=device).bool()).matrix(dense.new_ones(2))
            dots = torch.sparse.sampled_addmm(matrix, dense, dense.t(), beta=0.0)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(dots.values(), dense.new_ones(2))
