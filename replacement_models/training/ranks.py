"""Processes that train together: who has which features and which tokens, and what they add up.

Ranks form a mesh, data x features: those of one row read the same tokens and have each a slice of
every layer's features (rows of `W_enc`, `b_enc`, `W_dec`, ...); those of one column have the same
features and read tokens of their own. A process alone is the mesh of one, where every method
returns what it was given, so that the loop is written once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from replacement_models.errors import ModelError
from replacement_models.training.config import TrainConfig

DATA, FEATURES = "data", "features"
"""Dimensions of the mesh."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """One rank's place among all, and what it does together with them."""

    count: int = 1
    """Of all."""
    number: int = 0
    """Of this one, from 0: part · shards + shard."""
    shards: int = 1
    """Ranks that share out the features."""
    mesh: DeviceMesh | None = None
    """(parts, shards); None of a process alone."""

    @property
    def parts(self) -> int:
        """How many share out the tokens of a batch."""
        return self.count // self.shards

    @property
    def part(self) -> int:
        """Which of the tokens are its own."""
        return self.number // self.shards

    @property
    def shard(self) -> int:
        """Which of the features are its own."""
        return self.number % self.shards

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.number == 0

    def features(self, count: int) -> slice:
        """Its own of so many."""
        size = count // self.shards
        return slice(self.shard * size, (self.shard + 1) * size)

    # Sums, the same on all ranks bit by bit

    def over_shards(self, own: Tensor) -> Tensor:
        """The sum over all features of what was summed over one's own; no gradient."""
        return own if self.shards == 1 else self._sum(own, FEATURES)

    def over_parts(self, own: Tensor) -> Tensor:
        """The sum over all tokens of what was summed over one's own; no gradient."""
        return own if self.parts == 1 else self._sum(own, DATA)

    def over_all(self, own: Tensor) -> Tensor:
        """The sum over all ranks; no gradient."""
        return self.over_parts(self.over_shards(own))

    def any(self, own: bool, device: torch.device) -> bool:
        """Whether one of them says so."""
        return (
            own if self.count == 1 else bool(self.over_all(torch.tensor(int(own), device=device)))
        )

    def mean(self, own: Tensor) -> Tensor:
        """The mean over all tokens (first dimension) of a batch; no gradient."""
        return self.over_parts(own.mean(0)) / self.parts if self.parts > 1 else own.mean(0)

    def written(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """What all features write: one all-reduce of what one's own do, back by the identity.

        Losses of it are the same on all ranks of a row, so the gradient that a rank's own features
        need is the one it has.
        """
        if self.shards == 1:
            return own
        found: tuple[Tensor, ...] = _Written.apply(self._group(FEATURES), *own)  # type: ignore[no-untyped-call]
        return found

    def once(self, shared: Tensor) -> Tensor:
        """What is to count once in a sum over shards; all of them get its gradient."""
        if self.shards == 1:
            return shared
        found: Tensor = _Once.apply(shared, self.shard == 0)  # type: ignore[no-untyped-call]
        return found

    def adding(self, gradients: Sequence[Tensor]) -> list[Any]:
        """Begin to add up gradients over all tokens, in place; wait for what is returned."""
        if self.parts == 1:
            return []
        group = self._group(DATA)
        return [dist.all_reduce(one, group=group, async_op=True) for one in gradients]

    # What others have

    def of_shards(self, own: Tensor) -> Tensor:
        """Of all shards, one after another in a new first dimension; shapes equal."""
        return own[None] if self.shards == 1 else torch.stack(self._all(own, FEATURES))

    def beside(self, own: Tensor) -> Tensor:
        """Rows of all shards one below the other, as many as each has."""
        if self.shards == 1:
            return own
        counts = self.of_shards(torch.tensor(len(own), device=own.device)).tolist()
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        found = self._all(padded, FEATURES)
        return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])

    def numbered(self, own: int, device: torch.device) -> tuple[int, int]:
        """Of things that every shard has some of: how many stand before one's own, and in all."""
        if self.shards == 1:
            return 0, own
        counts = self.of_shards(torch.tensor(own, device=device)).tolist()
        return sum(counts[: self.shard]), sum(counts)

    def tokens(self, own: Tensor) -> Tensor:
        """Rows of all tokens of a batch."""
        return own if self.parts == 1 else torch.cat(self._all(own, DATA))

    def chosen(self, own: Tensor, at: Tensor) -> Tensor:
        """Some rows of all tokens of a batch, by their numbers in it."""
        if self.parts == 1:
            return own[at]
        found, begin = own.new_zeros(len(at), *own.shape[1:]), self.part * len(own)
        mine = (at >= begin) & (at < begin + len(own))
        found[mine] = own[at[mine] - begin]
        return self._sum(found, DATA)

    def largest(self, own: Tensor, count: int) -> Tensor:
        """The so many largest numbers of all ranks, in no order."""
        if self.count == 1:
            return own.topk(count, sorted=False).values
        top = own.new_full((count,), -torch.inf)
        some = min(count, len(own))
        top[:some] = own.topk(some, sorted=False).values
        everyone = [one for half in self._all(top, FEATURES) for one in self._all(half, DATA)]
        return torch.cat(everyone).topk(count, sorted=False).values

    # Turns

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def first_then_others(self, work: Callable[[], Any]) -> Any:
        """What writes a file that the others then find."""
        if self.first:
            found = work()
            self.wait()
            return found
        self.wait()
        return work()

    def by_the_first(self, work: Callable[[], Any]) -> Any:
        """What one of them finds out, told to all as JSON holds it."""
        if self.count == 1:
            return work()
        text = json.dumps(work()).encode() if self.first else b""
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0)
        told = torch.frombuffer(bytearray(text or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(told, 0)
        return json.loads(told.numpy().tobytes())

    # How it is done

    def _group(self, dimension: str) -> Any:
        assert self.mesh is not None
        return self.mesh.get_group(dimension)

    def _sum(self, own: Tensor, dimension: str) -> Tensor:
        found = own.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, group=self._group(dimension))
        return found

    def _all(self, own: Tensor, dimension: str) -> list[Tensor]:
        group, own = self._group(dimension), own.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(found, own, group=group)
        return found


ALONE = Ranks()


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Any, *own: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([one.reshape(-1) for one in own])
        dist.all_reduce(flat, group=group)
        parts = flat.split([one.numel() for one in own])
        return tuple(part.view_as(one) for part, one in zip(parts, own, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grads


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, here: bool) -> Tensor:
        return shared.clone() if here else torch.zeros_like(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def shards_of(config: TrainConfig, count: int) -> int:
    """Ranks that share out the features, once all that must divide has been seen to.

    Args:
        config: sizes.
        count: of ranks.

    Raises:
        ModelError: something does not divide; what is to be changed.
    """
    shards = config.ranks.shards or count
    features, batch = config.dictionary.features, config.run.batch
    if count % shards:
        raise ModelError(f"ranks.shards: expected a divisor of the {count} ranks, got {shards}")
    if features % shards:
        raise ModelError(
            f"dictionary.features: expected a multiple of the {shards} ranks that share them out "
            f"(ranks.shards), got {features}"
        )
    uneven = [
        *(["dictionary.widths"] if config.dictionary.widths else []),
        *(["start.dictionary"] if config.start.dictionary else []),
    ]
    if shards > 1 and uneven:
        raise ModelError(
            f"{uneven[0]}: goes with ranks that share out tokens alone; set ranks.shards to 1, got "
            f"{shards}"
        )
    if count > shards and config.loss.penalty == "tanh_quad":
        raise ModelError(
            "loss.penalty: tanh_quad counts over a whole batch, so ranks share out features alone; "
            f"expected ranks.shards of {count}, got {shards}"
        )
    if batch % (count // shards):
        raise ModelError(
            f"run.batch: expected a multiple of the {count // shards} ranks that share out its "
            f"tokens ({count} ranks over ranks.shards {shards}), got {batch}"
        )
    return shards
