"""Features that hardly ever fire are left out of the finished dictionary (`run.drop_below`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models.training.dealt import DealtSource, handed_over
from replacement_models.training.ranks import Ranks
from replacement_models.training.shards import SHARED, both
from replacement_models.training.source import Source
from replacement_models.training.sparsity import fires
from replacement_models.training.trainee import Batch, Trainee

OF_TOKENS = 100_000
"""Tokens that `run.drop_below` counts firings in."""
EXPECTED = 16
"""Firings expected of a feature at that limit on the tokens counted: off by a quarter, mostly."""


@dataclass(frozen=True, eq=False)
class Counted:
    """How often features fire."""

    fired: Sequence[Int[Tensor, " features"]]
    """Tokens that each feature of a layer fires on, those of other ranks' features too."""
    tokens: int
    """Of those looked at."""


def text_once(source: Source, ranks: Ranks) -> Iterator[Batch]:
    """All text that is trained on, once, a step's tokens at a time: this rank's part of them.

    Tokens at a chunk's end that parts do not divide are passed over.
    """
    chunk_of = source if ranks.count == 1 else DealtSource(source, ranks)
    size = source.harvester.config.run.batch
    for number in range(source.rows.chunks):
        chunk = chunk_of(number)
        whole = len(chunk) - len(chunk) % ranks.parts
        for at in torch.arange(whole, device=chunk.inputs[0].device).split(size):
            some = chunk.rows(at)
            yield some if isinstance(some, Batch) else handed_over(some, ranks, ranks.parts)


@torch.no_grad()
def counted(trainee: Trainee, text: Iterable[Batch]) -> Counted:
    """Count what fires, on as much of a text as makes the count mean something.

    Args:
        trainee: its thresholds set.
        text: raw activations; looked at until a feature at the limit is expected to have fired
            `EXPECTED` times.
    """
    ranks, tokens = trainee.ranks, 0
    wanted = EXPECTED * OF_TOKENS / trainee.config.run.drop_below
    fired = [torch.zeros_like(bias, dtype=torch.int64) for bias in trainee.b_enc]
    for batch in text:
        for at, counts in enumerate(fired):
            for some in fires(trainee, at, batch):
                counts += some.sum(0, dtype=torch.int32)  # int64 takes six times as long
        tokens += len(batch) * ranks.parts
        if tokens >= wanted:
            break
    return Counted([ranks.beside(ranks.over_parts(one)) for one in fired], tokens)


def kept(trainee: Trainee, found: Counted) -> list[Int[Tensor, " kept"]]:
    """Which features of each layer stay, in their order.

    Of a layer one more than are to fire on a token stays in any case, those that fire most.
    """
    share, chosen = trainee.config.run.drop_below / OF_TOKENS, []
    for fired, l0 in zip(found.fired, trainee.l0, strict=True):
        least = min(share * found.tokens, int(fired.topk(int(l0) + 1).values[-1]))
        chosen.append((fired >= least).nonzero()[:, 0])
    return chosen


@torch.no_grad()
def narrowed(trainee: Trainee, chosen: Sequence[Int[Tensor, " kept"]]) -> Trainee:
    """A dictionary of some of its features, a copy.

    Args:
        trainee: with the features of all ranks.
        chosen: numbers of features, layer by layer.
    """
    widths = tuple(map(len, chosen))
    sizes = replace(trainee.config.dictionary, features=max(widths), widths=widths, prefixes=())
    config = replace(trainee.config, dictionary=sizes)
    found = Trainee(config, trainee.wiring, trainee.reads, trainee.writes)
    for name, own, room in both(trainee, found):
        kind, *at = name.split(".")
        if kind in SHARED:
            room.copy_(own)
        elif at:
            room.copy_(own[chosen[int(at[0])].to(own.device)])
        else:  # a column a feature, as far as a layer has any
            for row, some in enumerate(chosen):
                room[row, : len(some)] = own[row, some.to(own.device)]
    return found
