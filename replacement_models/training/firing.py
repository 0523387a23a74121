"""Which features fire, and how strongly: each activation over all features or over pairs alone.

The two ways give the same numbers and the same gradients; the sparse one is taken while few fire.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replacement_models.training.pairs import Pairs, above, decode, encode
from replacement_models.training.ranks import ALONE, Ranks

EXACT_BELOW = 1 << 20
"""Entries of a batch among which BatchTopK's threshold is sought exactly."""
STRIDE = 37
"""Of larger batches one entry in so many is looked at."""


class Active(ABC):
    """What one layer's features make of a batch, with gradients."""

    hidden: Tensor
    """Pre-activations: at pairs, or of all features."""
    values: Tensor
    """Activations, likewise."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """How many tokens the batch has."""

    @abstractmethod
    def decode(
        self, weight: Float[Tensor, "features width"], values: Tensor
    ) -> Float[Tensor, "tokens width"]:
        """What features write, at values of this shape."""

    @abstractmethod
    def of_feature(self, each: Float[Tensor, " features"]) -> Tensor:
        """One number a feature, where `values` has it."""

    @abstractmethod
    def by_feature(self, values: Tensor) -> Float[Tensor, " features"]:
        """Sums over tokens of something shaped as `values`."""

    @abstractmethod
    def first(self, count: int, begin: int) -> Tensor:
        """1 where a value is of one of the features `begin` to `count`, else 0."""

    @abstractmethod
    def counts(self) -> Float[Tensor, " features"]:
        """Tokens that each feature fires on."""


@final
@dataclass(eq=False)
class SparseActive(Active):
    """At pairs."""

    hidden: Float[Tensor, " pairs"]
    values: Float[Tensor, " pairs"]
    pairs: Pairs

    @property
    def tokens(self) -> int:
        """As the pairs say."""
        return len(self.pairs.begins) - 1

    def decode(
        self, weight: Float[Tensor, "features width"], values: Tensor
    ) -> Float[Tensor, "tokens width"]:
        """Over pairs."""
        return decode(values, weight, self.pairs)

    def of_feature(self, each: Float[Tensor, " features"]) -> Tensor:
        """At pairs."""
        return each.index_select(0, self.pairs.feature)

    def by_feature(self, values: Tensor) -> Float[Tensor, " features"]:
        """Over pairs."""
        return values.new_zeros(self.pairs.features).index_add(0, self.pairs.feature, values)

    def first(self, count: int, begin: int) -> Tensor:
        """At pairs."""
        return ((self.pairs.feature >= begin) & (self.pairs.feature < count)).to(self.values.dtype)

    def counts(self) -> Float[Tensor, " features"]:
        """Pairs with a value."""
        return self.by_feature((self.values.detach() != 0).to(self.values.dtype))


@final
@dataclass(eq=False)
class DenseActive(Active):
    """Of all features: the plain way, and the oracle of the sparse one."""

    hidden: Float[Tensor, "tokens features"]
    values: Float[Tensor, "tokens features"]

    @property
    def tokens(self) -> int:
        """Rows."""
        return len(self.values)

    def decode(
        self, weight: Float[Tensor, "features width"], values: Tensor
    ) -> Float[Tensor, "tokens width"]:
        """A product of dense matrices."""
        return values @ weight

    def of_feature(self, each: Float[Tensor, " features"]) -> Tensor:
        """A row for all tokens."""
        return each

    def by_feature(self, values: Tensor) -> Float[Tensor, " features"]:
        """Over rows."""
        return values.sum(0)

    def first(self, count: int, begin: int) -> Tensor:
        """A row for all tokens."""
        at = torch.arange(self.values.shape[1], device=self.values.device)
        return ((at >= begin) & (at < count)).to(self.values.dtype)

    def counts(self) -> Float[Tensor, " features"]:
        """Entries that are not zero."""
        return self.by_feature((self.values.detach() != 0).to(self.values.dtype))


class Jump(torch.autograd.Function):
    """h where h > threshold; the threshold learns through a rectangular window around it.

    Rajamanoharan et al. 2024, "Jumping Ahead", section 3.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Elementwise, shapes equal."""
        ctx.save_for_backward(hidden, threshold)
        ctx.bandwidth = bandwidth
        return hidden * (hidden > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """To what stands above, and to thresholds near by."""
        hidden, threshold = ctx.saved_tensors
        near = (hidden - threshold).abs() < ctx.bandwidth / 2
        return grad * (hidden > threshold), -grad * near * threshold / ctx.bandwidth, None


def jump(hidden: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """JumpReLU with gradients for both, shapes equal."""
    found: Tensor = Jump.apply(hidden, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class Firing:
    """An activation in training."""

    name: str
    l0: float
    """Active features a token: k of TopK and BatchTopK; others reach it by their penalty."""
    bandwidth: float
    among: Ranks = ALONE
    """Whose features and tokens are counted together."""

    @property
    def ranks(self) -> bool:
        """Whether L0 is held by keeping the largest."""
        return self.name in ("topk", "batch_topk")

    def mask(
        self, hidden: Float[Tensor, "tokens features"], threshold: Tensor | None
    ) -> Bool[Tensor, "tokens features"]:
        """Where a value or a gradient may be, from pre-activations without a graph."""
        if threshold is not None:
            return above(hidden, threshold - self.bandwidth / 2)
        if self.name == "topk":
            return largest(hidden, int(self.l0), self.among) & (hidden > 0)
        if self.name == "batch_topk":
            return above(hidden, batch_threshold(hidden, self.l0, self.among))
        return above(hidden, hidden.new_zeros(()))

    def values(self, hidden: Tensor, threshold: Tensor | None) -> Tensor:
        """Activations where `mask` holds, with gradients."""
        return hidden if threshold is None else jump(hidden, threshold, self.bandwidth)


def largest(
    hidden: Float[Tensor, "tokens features"], count: int, ranks: Ranks = ALONE
) -> Bool[Tensor, "tokens features"]:
    """Where the `count` largest entries of each token are, among the features of all shards."""
    top = hidden.topk(min(count, hidden.shape[1]), dim=1, sorted=ranks.shards > 1)
    kept: Tensor | bool = True
    if ranks.shards > 1:
        padded = hidden.new_full((len(hidden), count), -torch.inf)
        padded[:, : top.values.shape[1]] = top.values
        everyone = ranks.of_shards(padded).transpose(0, 1).flatten(1)
        best = everyone.topk(count, dim=1, sorted=False).indices
        found = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, best, True)
        kept = found[:, ranks.shard * count :][:, : top.values.shape[1]]
    return torch.zeros_like(hidden, dtype=torch.bool).scatter_(1, top.indices, kept)


def batch_threshold(
    hidden: Float[Tensor, "tokens features"], l0: float, ranks: Ranks = ALONE
) -> Tensor:
    """What the l0·tokens largest entries lie above, at least zero; of large batches from a sample.

    Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", section 3.
    """
    entries, exact = hidden.numel() * ranks.count, hidden.numel() * ranks.count <= EXACT_BELOW
    some = hidden.reshape(-1) if exact else _sampled(hidden, ranks)
    looked = entries if exact else -(-entries // STRIDE)
    count = max(1, round(l0 * len(hidden) * ranks.parts * looked / entries))
    if count >= looked:
        return some.new_zeros(())
    return ranks.largest(some, count + 1).min().clamp(min=0)


def _sampled(hidden: Float[Tensor, "tokens features"], ranks: Ranks) -> Float[Tensor, " some"]:
    """One entry in `STRIDE` of the batch of all tokens and features: those that stand here."""
    if ranks.count == 1:
        return hidden.reshape(-1)[::STRIDE]
    tokens, features = hidden.shape
    wide = features * ranks.shards
    begin = ranks.part * tokens * wide
    flat = torch.arange(-begin % STRIDE, tokens * wide, STRIDE, device=hidden.device)
    feature = flat % wide - ranks.shard * features
    own = (feature >= 0) & (feature < features)
    return hidden[flat[own] // wide, feature[own]]


def active(
    firing: Firing,
    x: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "features d_model"],
    bias: Float[Tensor, " features"],
    threshold: Float[Tensor, " features"] | None,
    product: Any,
    sparse: bool,
) -> Active:
    """What one layer's features make of a batch.

    Args:
        firing: which fire.
        x: what is read, in normalised units.
        weight: encoder.
        bias: of the encoder.
        threshold: of each feature, where they have one.
        product: the encoder's product without a graph.
        sparse: compute over pairs alone.
    """
    if not sparse:
        hidden = torch.addmm(bias, x, weight.t())
        mask = firing.mask(hidden.detach(), threshold)
        limits = None if threshold is None else threshold.expand_as(hidden)
        return DenseActive(hidden, firing.values(hidden, limits) * mask)
    with torch.no_grad():
        hidden = product(bias, x, weight)
        pairs = Pairs.of(firing.mask(hidden, threshold))
    at_pairs = encode(x, weight, bias, hidden, pairs)
    limits = None if threshold is None else threshold.index_select(0, pairs.feature)
    return SparseActive(at_pairs, firing.values(at_pairs, limits), pairs)
