"""A dictionary whose features several ranks share out: its gradients, its checkpoints, its whole.

A rank computes with its own rows alone. What is kept are `DTensor`s over the mesh, so that
torch.distributed.checkpoint knows which rows those are, and as many ranks as one likes, or one,
take the run up.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_

from replacement_models.training.ranks import Ranks
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Trainee

SHARED = ("b_dec", "W_skip", "limit")
"""What every rank has whole; of everything else it has the rows of its features."""


def gradients(trainee: Trainee, island: range) -> list[Tensor]:
    """Those of some layers, in one order on all ranks."""
    named = ((name.split("."), one.grad) for name, one in trainee.named_parameters())
    return [grad for (_, at), grad in named if int(at) in island and grad is not None]


def gradient_norm(trainee: Trainee) -> Tensor:
    """Of all gradients together, those of other ranks' features too."""
    shared, own = (_square(trainee, which) for which in (True, False))
    return (trainee.ranks.over_shards(own) + shared).sqrt()


def clip(trainee: Trainee, most: float) -> None:
    """Scale gradients to a norm of at most `most`, that of all ranks."""
    if trainee.ranks.shards == 1:
        clip_grad_norm_(trainee.parameters(), most)
    else:
        clip_grads_with_norm_(trainee.parameters(), most, gradient_norm(trainee))


def _square(trainee: Trainee, shared: bool) -> Tensor:
    """The square norm of the gradients of what is shared, or is not."""
    found = trainee.b_dec[0].new_zeros(())
    for name, one in trainee.named_parameters():
        if one.grad is not None and (name.split(".")[0] in SHARED) == shared:
            found += one.grad.square().sum()
    return found


def stored(name: str, own: Tensor, ranks: Ranks) -> Tensor:
    """A tensor as checkpoints hold it: the same memory, knowing where it stands in the whole.

    Args:
        name: of a parameter or buffer, as `W_enc.3`.
        own: it, or something of its shape.
        ranks: all of them.
    """
    kind = name.split(".")[0]
    if ranks.mesh is None or kind in SHARED or not own.ndim:
        return own
    place = Shard(1 if kind == "silent" else 0)
    return DTensor.from_local(own.detach(), ranks.mesh, [Replicate(), place], run_check=False)


def whole(trainee: Trainee, device: torch.device | None = None) -> Trainee:
    """A dictionary with the features of all ranks, a copy; alone, the trainee itself.

    Args:
        trainee: one rank's features.
        device: where to; None is where it is.
    """
    if trainee.ranks.count == 1:
        return trainee
    place = trainee.b_dec[0].device if device is None else device
    reads, writes = (
        [Scale(*(part.to(place) for part in one.tensors().values())) for one in scales]
        for scales in (trainee.reads, trainee.writes)
    )
    found = Trainee(trainee.config, trainee.wiring, reads, writes)
    with torch.no_grad():
        for name, own, room in both(trainee, found):
            if name.split(".")[0] in SHARED:
                room.copy_(own)
            else:
                dimension = 1 if name == "silent" else 0
                room.copy_(torch.cat(list(trainee.ranks.of_shards(own)), dimension))
    return found


def take_gradients(trainee: Trainee, found: Trainee) -> None:
    """Add what a whole dictionary's gradients come to on all ranks to those of one's own rows."""
    for name, own, room in both(trainee, found):
        if not isinstance(own, torch.nn.Parameter):
            continue
        grad = trainee.ranks.over_all(torch.zeros_like(room) if room.grad is None else room.grad)
        mine = grad if name.split(".")[0] in SHARED else grad[trainee.own]
        own.grad = mine.clone() if own.grad is None else own.grad + mine


def both(trainee: Trainee, found: Trainee) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Parameters and buffers of two dictionaries, side by side, by name."""
    for one, other in (
        (trainee.named_parameters(), found.named_parameters()),
        (trainee.named_buffers(), found.named_buffers()),
    ):
        for (name, own), (_, room) in zip(one, other, strict=True):
            yield name, own, room
