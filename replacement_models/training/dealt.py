"""Activations that ranks share out: each runs the model over rows of its own and keeps them.

All together hold what a process alone would, in the same order, and the same random numbers say
which tokens make a batch; tokens change hands when their batch's turn comes, each rank getting
those of its part. So a place in the stream stays two numbers, whatever the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch import distributed as dist

from replacement_models.training.harvest import joined
from replacement_models.training.pool import Batches, Place
from replacement_models.training.ranks import Ranks
from replacement_models.training.source import Source
from replacement_models.training.trainee import Batch


@dataclass(frozen=True, eq=False)
class Dealt:
    """Tokens of which this rank holds some."""

    own: Batch
    at: Int[Tensor, " own"]
    """Where those stand among all."""
    count: int
    """Of all."""

    def __len__(self) -> int:
        return self.count

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Of its own."""
        return self.own.inputs

    def rows(self, chosen: Int[Tensor, " rows"]) -> "Dealt":
        """Some of all tokens, each once, in this order."""
        place = self.at.new_full((self.count,), -1)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        at = place[self.at]
        return Dealt(self.own.rows(at >= 0), at[at >= 0], len(chosen))


def one_after_another(some: Sequence[Dealt]) -> Dealt:
    """Tokens of several."""
    begin, at = 0, []
    for one in some:
        at.append(one.at + begin)
        begin += one.count
    return Dealt(joined([one.own for one in some]), torch.cat(at), begin)


def handed_over(dealt: Dealt, ranks: Ranks, parts: int) -> Batch:
    """The tokens of this rank's part, in order.

    Args:
        dealt: what each has.
        ranks: all of them.
        parts: as many as ranks have, or 1, where all get all tokens.
    """
    size = dealt.count // parts
    at = [((dealt.at // size) == one).nonzero()[:, 0] for one in range(parts)]
    wanted = [at[number * parts // ranks.count] for number in range(ranks.count)]
    index = torch.cat(wanted)
    sent = [len(one) for one in wanted]
    counts = dealt.at.new_tensor(sent)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts)
    received = arriving.tolist()

    def moved(own: Tensor) -> Tensor:
        found = own.new_empty(sum(received), *own.shape[1:])
        dist.all_to_all_single(found, own[index], received, sent)
        return found

    order = moved(dealt.at).argsort()
    return Batch(
        *([moved(x)[order] for x in side] for side in (dealt.own.inputs, dealt.own.outputs))
    )


@dataclass(eq=False)
class DealtSource:
    """Chunks of which each rank makes the activations of some rows, group by group."""

    source: Source
    ranks: Ranks
    _last: tuple[int, Dealt] | None = None

    def __call__(self, number: int) -> Dealt:
        """One chunk; the last one is kept at hand."""
        if self._last is None or self._last[0] != number:
            self._last = None  # let go before another is made
            self._last = number, self._chunk(number)
        return self._last[1]

    def _chunk(self, number: int) -> Dealt:
        source, ranks, cache = self.source, self.ranks, self.source.cache
        rows = source.rows.rows_of(number)
        size = source.harvester.config.data.rows
        groups = -(-len(rows) // size)
        edges = [
            min(len(rows), groups * one // ranks.count * size) for one in range(ranks.count + 1)
        ]
        tokens = torch.from_numpy(source.tokens[rows])
        ends = [0, *source.harvester.counted(tokens).sum(1).cumsum(0).tolist()]
        begin, end = (ends[edges[one]] for one in (ranks.number, ranks.number + 1))
        mine = rows[edges[ranks.number] : edges[ranks.number + 1]]
        if cache is None:
            return self._dealt(source.of_rows(mine) if len(mine) else self._none(), begin, ends[-1])
        if ranks.by_the_first(lambda: not cache.has(number)):
            made = self._dealt(source.of_rows(mine) if len(mine) else self._none(), begin, ends[-1])
            all_of_it = handed_over(made, ranks, 1)
            ranks.first_then_others(lambda: cache.write(number, all_of_it) if ranks.first else None)
        found = cache.read(number)
        assert found is not None
        some = torch.arange(begin, end, device=found.inputs[0].device)
        return self._dealt(found.rows(some), begin, ends[-1])

    def _dealt(self, own: Batch, begin: int, count: int) -> Dealt:
        at = torch.arange(begin, begin + len(own), device=own.inputs[0].device)
        return Dealt(own, at, count)

    def _none(self) -> Batch:
        model = self.source.harvester.model
        none = torch.zeros(0, model.host.d_model, device=model.device)
        return Batch(*([none] * len(self.source.harvester.layers) for _ in range(2)))


@dataclass
class DealtBatches:
    """The stream of batches, each rank's part of them."""

    batches: Batches
    ranks: Ranks
    parts: int
    """1 where every rank gets whole batches."""

    @classmethod
    def of(cls, source: Source, ranks: Ranks, size: int, seed: int, parts: int) -> "DealtBatches":
        """From the beginning.

        Args:
            source: rows, and what makes activations of them.
            ranks: that share out rows and tokens.
            size: tokens of a batch, all parts together.
            seed: of the run.
            parts: that batches are cut into.
        """
        chunks = DealtSource(source, ranks)
        return cls(
            Batches(chunks, source.rows.chunks, size, seed, join=one_after_another), ranks, parts
        )

    @property
    def place(self) -> Place:
        """Where the next one stands."""
        return self.batches.place

    @place.setter
    def place(self, place: Place) -> None:
        self.batches.place = place

    @property
    def chunks(self) -> int:
        """How many there are."""
        return self.batches.chunks

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Its part of the next batch."""
        return handed_over(next(self.batches), self.ranks, self.parts)
