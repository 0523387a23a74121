"""Batches of shuffled activations, from rows of text, the same ones whenever a run is taken up.

Rows of text are put into one random order and cut into chunks; a chunk's activations are shuffled,
and pool number i holds half of chunk i - 1 and half of chunk i, so that neighbours in a text are
far apart. Everything is drawn from numbers (seed, epoch, chunk), so a place in the stream is two
numbers, and taking it up costs two chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.training.harvest import joined
from replacement_models.training.trainee import Batch

ORDER, SHUFFLE, MIX, CHUNKS = range(4)
"""What a generator is for; part of its seed."""
Chunk = Callable[[int], Any]
"""Number of a chunk to activations of its tokens, in order: a `Batch`, or a `Dealt` one."""


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for everything that is drawn once."""
    words = np.random.SeedSequence([number % (1 << 32) for number in numbers]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


@dataclass(frozen=True)
class Rows:
    """The rows of a corpus: some held out, the others cut into chunks."""

    order: Int[np.ndarray, " rows"]
    held_out: Int[np.ndarray, " held"]
    chunk: int
    """Rows of one."""

    @classmethod
    def of(cls, count: int, held: float, chunk: int, seed: int) -> "Rows":
        """Put rows into an order, and hold some out.

        Raises:
            ModelError: too few rows to hold any out.
        """
        away = max(1, round(held * count))
        if count - away < 1:
            raise ModelError(
                f"data.corpus: {count} rows leave none to train on beside {away} held out; give "
                "more text, or a smaller data.context"
            )
        order = torch.randperm(count, generator=generator(seed, ORDER)).numpy()
        return cls(order[away:], order[:away], min(chunk, count - away))

    @property
    def chunks(self) -> int:
        """How many there are; rows that fill none are left out."""
        return len(self.order) // self.chunk

    def rows_of(self, number: int) -> Int[np.ndarray, " rows"]:
        """Which rows chunk `number` holds."""
        return self.order[number * self.chunk : (number + 1) * self.chunk]


@dataclass(frozen=True)
class Place:
    """Where a stream of batches stands."""

    pool: int = 0
    batch: int = 0


@dataclass
class Batches:
    """The stream of batches, for ever; `place` says where the next one stands."""

    chunk: Chunk
    chunks: int
    size: int
    seed: int
    place: Place = field(default_factory=Place)
    join: Callable[[Sequence[Any]], Any] = joined
    _order: Tensor | None = None
    _pool: Any = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Any:
        """The next `size` tokens."""
        if self._pool is None:
            self._fill(self.place.pool)
        if (self.place.batch + 1) * self.size > len(self._pool):
            self.place = Place(self.place.pool + 1, 0)
            self._fill(self.place.pool)
        begin = self.place.batch * self.size
        assert self._order is not None
        found = self._pool.rows(self._order[begin : begin + self.size])
        self.place = Place(self.place.pool, self.place.batch + 1)
        return found

    def _fill(self, number: int) -> None:
        self._pool = None  # let go before another is made
        halves = [self._half(number, 0)]
        if number:
            halves.insert(0, self._half(number - 1, 1))
        pool = self.join(halves)
        if len(pool) < self.size:
            raise ModelError(
                f"run.batch: expected at most the {len(pool)} tokens that half a chunk of this "
                f"corpus holds, got {self.size}"
            )
        self._pool = pool
        drawn = torch.randperm(len(pool), generator=generator(self.seed, MIX, number))
        self._order = drawn.to(pool.inputs[0].device)

    def _half(self, number: int, which: int) -> Any:
        """Half of a shuffled chunk; chunks stand in a new order in every epoch."""
        epoch, at = divmod(number, self.chunks)
        order = torch.randperm(self.chunks, generator=generator(self.seed, CHUNKS, epoch))
        found = self.chunk(int(order[at]))
        drawn = torch.randperm(len(found), generator=generator(self.seed, SHUFFLE, number))
        middle = len(found) // 2
        half = drawn[:middle] if which == 0 else drawn[middle:]
        return found.rows(half.to(found.inputs[0].device))
