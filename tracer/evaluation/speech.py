"""What a model says with parts of it replaced, beside what it says itself.

    KL         = mean over tokens of KL(own next-token distribution, other's), nats
    agreement  = share of tokens with the same most likely next token
    CE         = mean cross entropy of the next token of the text, nats
    recovered  = (CE of means - CE) / (CE of means - CE of the model itself)

where "of means" is the model with the same outputs held at their mean (Bricken et al. 2023 put
zeros there, which is easier to beat). Positions that are kept take no part.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.replaced import logits_of

AT_ONCE = 32
"""Positions whose distributions are in memory together, in float64."""
Standing = Callable[[], AbstractContextManager[None]]
"""Puts something in the place of parts of the model for the duration of a block."""


@dataclass(frozen=True)
class Said:
    """Averages over tokens."""

    kl: float
    agreement: float
    cross_entropy: float
    """NaN where no token of the text follows one that is measured."""


@dataclass
class SpeechSums:
    """Sums of what `Said` averages, in float64."""

    kl: float = 0.0
    agreed: int = 0
    tokens: int = 0
    surprise: float = 0.0
    followed: int = 0

    def add(
        self,
        own: Float[Tensor, "positions vocabulary"],
        other: Float[Tensor, "positions vocabulary"],
        counts: Bool[Tensor, " positions"],
        tokens: Int[Tensor, " positions"],
    ) -> None:
        """Add one row, some positions at a time."""
        for at in counts.nonzero()[:, 0].split(AT_ONCE):
            truth, guess = (some[at].double().log_softmax(-1) for some in (own, other))
            self.kl += float((truth.exp() * (truth - guess)).sum())
            self.agreed += int((truth.argmax(-1) == guess.argmax(-1)).sum())
            self.tokens += len(truth)
            known = at + 1 < len(tokens)
            said = guess[known].gather(1, tokens[at[known] + 1][:, None])
            self.surprise -= float(said.sum())
            self.followed += int(known.sum())

    def average(self) -> Said:
        """NaN over nothing."""
        if not self.tokens:
            return Said(math.nan, math.nan, math.nan)
        entropy = self.surprise / self.followed if self.followed else math.nan
        return Said(self.kl / self.tokens, self.agreed / self.tokens, entropy)


@dataclass
class Listener:
    """Adds up what several stand-ins make a model say, batch by batch."""

    model: ReplacementModel
    stand_ins: Mapping[str, Standing]
    sums: dict[str, SpeechSums] = field(init=False)
    itself: SpeechSums = field(default_factory=SpeechSums)

    def __post_init__(self) -> None:
        self.sums = {name: SpeechSums() for name in self.stand_ins}

    def add(
        self,
        tokens: Int[Tensor, "rows positions"],
        counts: Bool[Tensor, "rows positions"],
        own: Float[Tensor, "rows positions vocabulary"],
    ) -> None:
        """A batch: what the model itself says of it is at hand."""
        for row, ids in enumerate(tokens):
            self.itself.add(own[row], own[row], counts[row], ids)
        for name, standing in self.stand_ins.items():
            with standing():
                other = logits_of(self.model, tokens)
            for row, ids in enumerate(tokens):
                self.sums[name].add(own[row], other[row], counts[row], ids)


def recovered(said: Said, means: Said, itself: Said) -> float:
    """Share of the cross entropy that means lose which is won back; NaN where they lose none."""
    lost = means.cross_entropy - itself.cross_entropy
    return (means.cross_entropy - said.cross_entropy) / lost if lost > 0 else math.nan
