"""What sources write, scored by gradients: the products that yield effects.

Scores of one chunk add up a writer at a time, so that what one product yields stands together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.speed.threads import one_thread
from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LocalModel
from tracer.attribution.product import EARNS_A_KERNEL, product, scores_product, scores_way
from tracer.attribution.targets import TargetRows, runs
from tracer.attribution.writers import Padded, Writers


@dataclass(frozen=True, eq=False)
class EffectSums:
    """Effects on the rows of one chunk while they add up; what one writer does stands together."""

    sources: Float[Tensor, "columns rows"]
    constant: Float[Tensor, " rows"]

    def to(self, device: torch.device) -> "EffectSums":
        """The same sums on `device`."""
        if self.sources.device == device:
            return self
        return EffectSums(self.sources.to(device), self.constant.to(device))


@dataclass(frozen=True, eq=False)
class JoiningRows:
    """Rows that passed no attention layer yet: their gradient stands at one position."""

    vector: Float[Tensor, "rows d_model"]
    position: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.position)

    def by_position(self) -> Iterator[tuple[int, slice]]:
        """Every position with the rows there, which stand together."""
        for here in runs(self.position):
            yield int(self.position[here.start]), here


def score_writers(
    local: LocalModel, layer: int, gradient: Tensor, joining: JoiningRows, scores: EffectSums
) -> None:
    """Add what one layer writes, for rows above it: one product a position."""
    rows, writers = len(gradient), local.writers[layer]
    if batched(gradient):
        _score_at_once(local, layer, writers, (gradient, joining), scores)
        return
    if rows:
        found = _products(writers, gradient, local.start)
        _add_scores(local, layer, found, scores, (local.start, slice(rows)))
    for position, here in joining.by_position():
        one = _products(writers, joining.vector[here, None], position)
        at = slice(rows + here.start, rows + here.stop)
        _add_scores(local, layer, one, scores, (position, at))


def score_mixed(local: LocalModel, mixed: Tensor | None, scores: EffectSums) -> None:
    """Add what the bottom layer writes to values, for rows that stay as attention mixed them."""
    if mixed is None or local.mixed is None:
        return
    if batched(mixed):
        nobody = JoiningRows(mixed[:0, 0], np.zeros(0, dtype=np.int64))
        _score_at_once(local, 0, local.mixed, (mixed, nobody), scores)
        return
    found = _products(local.mixed, mixed, local.start)
    _add_scores(local, 0, found, scores, (local.start, slice(len(mixed))))


def batched(like: Tensor) -> bool:
    """Whether products of all positions are made at once: a GPU waits for each one's beginning."""
    return like.device.type != "cpu"


def _score_at_once(
    local: LocalModel,
    layer: int,
    writers: Writers,
    rows: tuple[Float[Tensor, "rows positions width"], JoiningRows],
    scores: EffectSums,
) -> None:
    """Add what writers of one layer do to all rows above it: a batch of products, one a position.

    Every position takes as many places as the most that write at one; those in no use add zero.
    """
    gradient, joining = rows
    padded, joined = writers.padded, gradient.shape[0]
    if joined:
        span = slice(local.start, local.start + gradient.shape[1])
        found = torch.bmm(writers.vectors[padded.place[span]], gradient.permute(1, 2, 0))
        others, features = found[:, : writers.others], found[:, writers.others :]
        features = features * padded.used[span, :, None]
        sources = scores.sources[:, :joined]
        sources.index_add_(0, padded.column[span].flatten(), features.flatten(0, 1).to(sources))
        first = local.error_column(layer, span.start)
        sources[first : first + len(others)].add_(others[:, 0])
        _add_carried(local, others[:, 1:].sum(0), scores, slice(joined))
    if len(joining):
        _score_joining(local, layer, padded, (writers, joining), (scores, joined))


def _score_joining(
    local: LocalModel,
    layer: int,
    padded: Padded,
    rows: tuple[Writers, JoiningRows],
    into: tuple[EffectSums, int],
) -> None:
    """The same for rows at one position yet, which follow those that have joined."""
    (writers, joining), (scores, joined) = rows, into
    device, number = joining.vector.device, np.arange(len(joining))
    here = [(position, run) for position, run in joining.by_position()]
    most = max(run.stop - run.start for _, run in here)
    slot = np.concatenate([number[run] - run.start + at * most for at, (_, run) in enumerate(here)])
    place = np.zeros(len(here) * most, dtype=np.int64)
    place[slot] = number
    vectors = joining.vector[on_device(place, device)].unflatten(0, (len(here), most))
    at = on_device(np.array([position for position, _ in here]), writers.vectors.device)
    found = torch.bmm(writers.vectors[padded.place[at]], vectors.mT)
    found = found.permute(1, 0, 2).flatten(1)[:, on_device(slot, device)]
    position = on_device(joining.position, writers.vectors.device)
    others, features = found[: writers.others], found[writers.others :]
    features = features * padded.used[position].T
    own = slice(joined, joined + len(joining))
    sources = scores.sources[:, own]
    sources.scatter_add_(0, padded.column[position].T, features.to(sources))
    error = local.error_column(layer, 0) + position
    sources.scatter_add_(0, error[None], others[:1].to(sources))
    _add_carried(local, others[1:], scores, own)


def _products(
    writers: Writers, gradient: Float[Tensor, "rows positions width"], start: int
) -> list[Float[Tensor, "writers rows"]]:
    """Scores of what is written at every position from `start` on."""
    rows, positions, _ = gradient.shape
    operations = 2 * gradient[:, 0].numel() * len(writers.vectors) / len(writers.first)
    ends = writers.start[start : start + positions + 1]
    room = gradient.new_empty((ends[-1] - ends[0]) * rows)
    rooms = room.split([(end - begin) * rows for begin, end in pairwise(ends)])
    with one_thread(operations < EARNS_A_KERNEL):
        small = scores_way(writers.at(start + positions - 1), gradient[:, -1])
        return [
            scores_product(writers.at(position), vectors, small=small, room=own)
            for position, (vectors, own) in enumerate(
                zip(gradient.unbind(1), rooms, strict=True), start=start
            )
        ]


def _add_scores(
    local: LocalModel,
    layer: int,
    found: Sequence[Float[Tensor, "writers rows"]],
    scores: EffectSums,
    where: tuple[int, slice],
) -> None:
    """Add scores of one layer's writers at neighbouring positions, from the given one on."""
    (begin, rows), writers = where, local.writers[layer]
    sources = scores.sources[:, rows]
    for position, one in enumerate(found, start=begin):
        first, features = writers.first[position], len(one) - writers.others
        sources[first : first + features].add_(one[:features])
    others = torch.stack([one[-writers.others :] for one in found])
    first = local.error_column(layer, begin)
    sources[first : first + len(others)].add_(others[:, 0])
    _add_carried(local, others[:, 1:].sum(0), scores, rows)


def score_carried(
    local: LocalModel, layer: int, joining: JoiningRows, scores: EffectSums, end: int
) -> None:
    """Add what attention carries, for the rows up to `end` that read right above it."""
    carried, begin = local.layers[layer].carried, end - len(joining)
    if batched(carried):
        at = on_device(joining.position, carried.device)
        found = torch.bmm(carried[at], joining.vector[..., None])[..., 0].T.roll(1, 0)
        _add_carried(local, found, scores, slice(begin, end))
        return
    for position, here in joining.by_position():
        found = product(carried[position], joining.vector[here]).roll(1, 0)
        _add_carried(local, found, scores, slice(begin + here.start, begin + here.stop))


def score_spread(
    local: LocalModel,
    layer: int,
    gradient: Float[Tensor, "rows positions d_model"],
    scores: EffectSums,
    rows: slice,
) -> None:
    """Add what attention carries, for rows at several positions that read right above it."""
    span = slice(local.start, local.start + gradient.shape[1])
    found = torch.einsum("rpd,pcd->cr", gradient, local.layers[layer].carried[span])
    _add_carried(local, found.roll(1, 0), scores, rows)


def score_early(
    local: LocalModel,
    rows: TargetRows,
    sources: Float[Tensor, "rows columns"],
    constant: Float[Tensor, " rows"],
) -> None:
    """Add what rows read at positions before the first that gradients are followed to.

    Tokens and constants alone stand there, and the local model knows where they got to.
    """
    if not local.start or (rows.weights is None and rows.position.min() >= local.start):
        return
    first = local.token_column(0)
    for site in np.unique(rows.site).tolist():
        here = np.flatnonzero(rows.site == site)
        at = on_device(here, sources.device)
        weights = _early_weights(rows[here], local.start).to(rows.vector.dtype)
        stream = torch.einsum("rp,pcd->rcd", weights, local.early[site])
        found = torch.einsum("rcd,rd->rc", stream, rows.vector[at]).to(sources.dtype)
        sources[at, first : first + local.start] += found[:, :-1]
        constant[at] += found[:, -1]


def _early_weights(rows: TargetRows, start: int) -> Float[Tensor, "rows start"]:
    """How much of their vector rows read at each of the first positions."""
    if rows.weights is not None:
        return rows.weights[:, :start]
    alone = rows.position[:, None] == np.arange(start)
    return on_device(alone, rows.vector.device)


def _add_carried(
    local: LocalModel, found: Float[Tensor, "carried rows"], scores: EffectSums, rows: slice
) -> None:
    """Add the constant, which comes first, and the first tokens."""
    first, tokens = local.token_column(0), len(found) - 1
    scores.constant[rows].add_(found[0])
    scores.sources[first : first + tokens, rows].add_(found[1:])


def score_tokens(
    local: LocalModel,
    gradient: Float[Tensor, "rows positions d_model"],
    scores: EffectSums,
    first: int,
) -> None:
    """Add what tokens and learned positions contribute to the rows from `first` on."""
    rows, span = slice(first, None), slice(local.start, local.start + gradient.shape[1])
    columns = slice(local.token_column(span.start), local.token_column(span.stop))
    tokens, learned = local.token_vectors[span], local.position_vectors
    scores.sources[columns, rows] += torch.einsum("rpd,pd->pr", gradient[rows], tokens)
    if learned is not None:
        scores.constant[rows] += torch.einsum("rpd,pd->r", gradient[rows], learned[span])


def score_read_tokens(
    local: LocalModel,
    tokens: Float[Tensor, "positions kv_heads_d_head"],
    values: Float[Tensor, "rows positions kv_heads_d_head"],
    scores: EffectSums,
) -> None:
    """Add what tokens do through attention that reads them beside the stream, for the first rows.

    Args:
        local: the local model.
        tokens: what the value map makes of them.
        values: what the rows weigh the pattern's values with.
        scores: added to.
    """
    span = slice(local.start, local.start + values.shape[1])
    columns = slice(local.token_column(span.start), local.token_column(span.stop))
    found = torch.einsum("rpi,pi->pr", values, tokens[span])
    scores.sources[columns, : len(values)] += found.to(scores.sources)
