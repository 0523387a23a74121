"""The vectors that sources write to the residual stream, gathered once per prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement_models import ActiveFeatures, DenseDecoder, Transcoder
from replacement_models.threads import one_thread
from replacement_models.transcoder import Decoder
from tracer.available import give_back

SPARE = 1 << 24
"""Bytes of one layer's writers from which on memory that was freed is given back."""


@dataclass(frozen=True, eq=False)
class Writers:
    """What one layer writes to the residual stream, position by position, as rows above read it.

    Position p owns rows `start[p]:start[p + 1]` of `vectors`: first the features that write to
    columns `first[p]`, `first[p] + 1`, ..., then `rest` others: the error (zero where p is
    skipped), the constant, and the first tokens as far as attention carries them there.
    """

    vectors: Float[Tensor, "rows d_model"]
    start: Sequence[int]
    first: Sequence[int]
    rest: int

    def features(self, position: int) -> int:
        """How many features write at one position."""
        return self.start[position + 1] - self.start[position] - self.rest

    def at(self, position: int) -> Float[Tensor, "writers d_model"]:
        """What is written at one position."""
        return self.vectors[self.start[position] : self.start[position + 1]]

    def of_features(self, position: int) -> Float[Tensor, "features d_model"]:
        """What the features at one position write."""
        begin = self.start[position]
        return self.vectors[begin : begin + self.features(position)]

    def reconstruction(self) -> Float[Tensor, "positions d_model"]:
        """The sum of what the features write, a position each."""
        with one_thread():
            return torch.stack(
                [_total(self.of_features(position)) for position in range(len(self.first))]
            )


def gather(
    transcoder: Transcoder, features: ActiveFeatures, positions: int, others: Sequence[int]
) -> list[Writers]:
    """Every layer's writers: activation times decoder rows, each read once, no others written yet.

    Args:
        transcoder: what writes, L layers.
        features: in column order, (position, layer, feature).
        positions: P.
        others: rows a position that are no features, a layer each.
    """
    every = torch.arange(positions, device=features.position.device)
    width = transcoder.layers[0].b_dec.shape[-1]
    found, places = [], []
    for layer, rest in enumerate(others):
        writing = _writing(transcoder, features, layer)
        columns = writing.nonzero()[:, 0]
        counts = torch.bincount(features.position[columns], minlength=positions)
        ends = counts.cumsum(0)
        first = torch.cat([columns, columns.new_zeros(1)])[ends - counts]
        vectors = features.activation.new_empty(len(columns) + rest * positions, width)
        starts = [0, *(ends + rest * (every + 1)).tolist()]
        found.append(Writers(vectors, starts, first.tolist(), rest))
        places.append(writing.cumsum(0) - 1 + rest * features.position)
    for layer in range(len(transcoder.layers)):
        _write(transcoder, layer, features, [one.vectors for one in found], places)
    return found


def _write(
    transcoder: Transcoder,
    layer: int,
    features: ActiveFeatures,
    vectors: Sequence[Float[Tensor, "rows d_model"]],
    places: Sequence[Int[Tensor, " features"]],
) -> None:
    """Write what one layer's features write, to the places in each layer's vectors."""
    here = (features.layer == layer).nonzero()[:, 0]
    decoder = transcoder.layers[layer].decoder
    rows, which = _decoder_rows(decoder, features.feature[here])
    into = [(vectors[target], places[target][here]) for target in transcoder.targets(layer)]
    copy = _copy_runs if rows.device.type == "cpu" else _copy_all
    copy(rows, which, into, features[here])
    if rows.nbytes > SPARE and not isinstance(decoder, DenseDecoder):
        del rows
        give_back()


def _copy_all(
    rows: Float[Tensor, "rows targets d_model"],
    which: Int[Tensor, " features"],
    into: Sequence[tuple[Tensor, Tensor]],
    features: ActiveFeatures,
) -> None:
    """Scaled rows of one layer's features, into the places that each target names."""
    for slot, (vectors, place) in enumerate(into):
        vectors.index_copy_(0, place, rows[which, slot].mul_(features.activation[:, None]))


def _copy_runs(
    rows: Float[Tensor, "rows targets d_model"],
    which: Int[Tensor, " features"],
    into: Sequence[tuple[Tensor, Tensor]],
    features: ActiveFeatures,
) -> None:
    """The same position by position: places there are neighbours, so nothing is copied twice."""
    count = features.position.unique_consecutive(return_counts=True)[1]
    starts, counts = count.cumsum(0) - count, count.tolist()
    runs = zip(
        which.split(counts),
        features.activation[:, None].split(counts),
        zip(*(place[starts].tolist() for _, place in into), strict=True),
        strict=True,
    )
    with one_thread():
        for chosen, scale, places in runs:
            for slot, ((vectors, _), begin) in enumerate(zip(into, places, strict=True)):
                found = vectors[begin : begin + len(chosen)]
                torch.index_select(rows[:, slot], 0, chosen, out=found).mul_(scale)


def _writing(
    transcoder: Transcoder, features: ActiveFeatures, layer: int
) -> Bool[Tensor, " features"]:
    """Which features write to one layer's MLP output."""
    sources = [layer in transcoder.targets(source) for source in range(len(transcoder.layers))]
    return torch.tensor(sources, device=features.layer.device)[features.layer]


def _decoder_rows(
    decoder: Decoder, features: Int[Tensor, " features"]
) -> tuple[Float[Tensor, "rows targets d_model"], Int[Tensor, " features"]]:
    """Rows among which those of `features` are, and where: the weights, where memory holds them."""
    if isinstance(decoder, DenseDecoder) and decoder.weight.device == features.device:
        return decoder.weight, features
    used, which = features.unique(return_inverse=True)
    return decoder.rows(used), which


def _total(vectors: Float[Tensor, "features d_model"]) -> Float[Tensor, " d_model"]:
    """Their sum; on the CPU as a product, which reads float32 numbers faster."""
    if vectors.dtype != torch.float32 or vectors.device.type != "cpu":
        return vectors.sum(0)
    return (vectors.new_ones(1, len(vectors)) @ vectors)[0]
