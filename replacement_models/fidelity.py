"""How well a dictionary stands in for MLPs: layer by layer, and with all of them replaced at once.

Sums over tokens are float64, a batch in memory at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.process import one_call
from replacement_models.replaced import (
    ALL,
    ReplacedLayer,
    Watch,
    Where,
    chosen_layers,
    counted,
    logits_of,
    replaced,
)
from replacement_models.replacement import ReplacementModel


@dataclass(frozen=True)
class Comparison:
    """The model beside its replacement, in averages over tokens."""

    divergence: float
    """KL from the model's next-token distribution to the replacement's, in nats a token."""
    agreement: float
    """Share of tokens whose most likely next token is the same."""
    tokens: int
    """Tokens averaged over: all that are not kept."""


@dataclass(frozen=True)
class Fidelity:
    """How well a dictionary stands in for MLPs; kept tokens take no part."""

    layers: tuple[int, ...]
    """The replaced ones; the following three have an entry each."""
    error: tuple[float, ...]
    """Squared error over the variance of the MLP's output, both on the model's own inputs; NaN
    where that output does not vary."""
    density: tuple[float, ...]
    """Active features a token."""
    dead: tuple[float, ...]
    """Share of features that never fired."""
    comparison: Comparison
    """With all these layers replaced at once."""


@one_call()
@torch.no_grad()
def compare(
    model: ReplacementModel, tokens: Int[Tensor, "rows positions"], where: Where = ALL
) -> Comparison:
    """The model's next-token distributions beside the replacement's.

    Args:
        model: the model.
        tokens: ids, in rows of one length.
        where: which MLP outputs are replaced.

    Returns:
        Divergence in nats a token and agreement, over all positions that are not kept.

    Raises:
        ModelError: no such layer or position, or every position is kept.
    """
    sums = _Disagreement()
    sums.add(model, tokens, where)
    return sums.average()


@one_call()
@torch.no_grad()
def fidelity(
    model: ReplacementModel,
    batches: Iterable[Int[Tensor, "rows positions"]],
    where: Where = ALL,
) -> Fidelity:
    """Measure a dictionary over a corpus, a batch in memory at a time; sums are float64.

    Args:
        model: the model.
        batches: ids, in rows of one length within a batch.
        where: which MLP outputs are replaced, and which tokens take no part.

    Returns:
        Error (over variance), density (features a token) and dead share by layer; divergence (nats
        a token) and agreement with all layers replaced.

    Raises:
        ModelError: no such layer or position, or no token is left to measure.
    """
    layers = chosen_layers(model.transcoder.present, where)
    sums = {layer: _LayerSums() for layer in layers}
    away = _Disagreement()

    def add(layer: int, seen: ReplacedLayer) -> None:
        sums[layer].add(seen)

    for tokens in batches:
        away.add(model, tokens, where, add)
    found = away.average()
    return Fidelity(
        layers=tuple(layers),
        error=tuple(one.error() for one in sums.values()),
        density=tuple(one.fired / found.tokens for one in sums.values()),
        dead=tuple(float((~one.ever).double().mean()) for one in sums.values()),
        comparison=found,
    )


@dataclass
class _Disagreement:
    """Sums over tokens of what `Comparison` averages."""

    divergence: float = 0.0
    agreed: int = 0
    tokens: int = 0

    def add(
        self, model: ReplacementModel, tokens: Tensor, where: Where, watch: Watch | None = None
    ) -> None:
        """Both passes over a batch; the model's own is watched."""
        tokens = tokens.to(model.device)
        with replaced(model, replace(where, positions=()), watch):
            own = logits_of(model, tokens)
        with replaced(model, where):
            other = logits_of(model, tokens)
        for chosen, *both in zip(counted(model, tokens, where), own, other, strict=True):
            truth, guess = (logits[chosen].double().log_softmax(-1) for logits in both)
            self.divergence += float((truth.exp() * (truth - guess)).sum())
            self.agreed += int((truth.argmax(-1) == guess.argmax(-1)).sum())
            self.tokens += len(truth)

    def average(self) -> Comparison:
        """Refuses to average over nothing."""
        if self.tokens == 0:
            raise ModelError(
                "nothing to compare: every position is skipped or holds a special token; give "
                "longer prompts, or name fewer keep_tokens"
            )
        return Comparison(self.divergence / self.tokens, self.agreed / self.tokens, self.tokens)


@dataclass
class _LayerSums:
    """Sums over the counted tokens of one layer, in float64."""

    tokens: int = 0
    missed: float = 0.0
    fired: int = 0
    ever: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(features,) Whether each fired."""
    centre: Tensor | None = None
    """(D) mean output of the first batch: squares are summed about it, which loses no digits."""
    off: Tensor | float = 0.0
    """(D) sum of outputs less the centre."""
    squares: float = 0.0

    def add(self, seen: ReplacedLayer) -> None:
        """Add the counted tokens of a batch."""
        output, active = seen.output[seen.counted].double(), seen.activations[seen.counted] != 0
        if not len(output):
            return
        if self.centre is None:
            self.centre, self.ever = output.mean(0), torch.zeros_like(active[0])
        off = output - self.centre
        self.tokens += len(output)
        self.missed += float((output - seen.reconstruction[seen.counted]).square().sum())
        self.fired += int(active.sum())
        self.ever |= active.any(0)
        self.off = self.off + off.sum(0)
        self.squares += float(off.square().sum())

    def error(self) -> float:
        """Squared error over squared distances from the mean output."""
        distance = self.squares - float(torch.as_tensor(self.off).square().sum()) / self.tokens
        return self.missed / distance if distance > 0 else math.nan
