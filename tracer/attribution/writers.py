"""The vectors that sources write to the residual stream, gathered once per prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement_models import ActiveFeatures, DenseDecoder, Transcoder, TranscoderLayer
from replacement_models.speed.allocator import give_back
from replacement_models.speed.threads import one_thread
from replacement_models.transcoder import Decoder
from tracer.attribution.indices import on_device
from tracer.attribution.product import summed_in
from tracer.attribution.sizes import Sizes

SPARE = 1 << 24
"""Bytes of one layer's writers from which on memory that was freed is given back."""
AT_ONCE = 1 << 12
"""Vectors that pass a norm together on a GPU: copies of all would take as much again."""
Numbers = Int[np.ndarray, " features"]
Table = tuple[Numbers, Numbers, Numbers]
"""Layer, position and number of features."""
Into = tuple[Tensor, Tensor, Tensor]
"""One layer's vectors and sums, and the places among the vectors of some features."""


@dataclass(frozen=True, eq=False)
class Padded:
    """Where the writers of every position stand, as many places a position as the most take."""

    place: Int[Tensor, "positions places"]
    """Among the vectors: the others first, then features; some vector where none is."""
    column: Int[Tensor, "positions features"]
    used: Float[Tensor, "positions features"]
    """1 where a feature is, else 0."""


@dataclass(frozen=True, eq=False)
class Writers:
    """What one layer writes to the residual stream, position by position, as rows above read it.

    Position p owns rows `start[p]:start[p + 1]` of `vectors`: first the features that write to
    columns `first[p]`, `first[p] + 1`, ..., by what one unit of each writes, then `others` more:
    the error (zero where p is skipped), the constant, and the first tokens as far as attention
    carries them there.
    """

    vectors: Float[Tensor, "rows d_model"]
    start: Sequence[int]
    first: Sequence[int]
    others: int

    def features(self, position: int) -> int:
        """How many features write at one position."""
        return self.start[position + 1] - self.start[position] - self.others

    def at(self, position: int) -> Float[Tensor, "writers d_model"]:
        """What is written at one position."""
        return self.vectors[self.start[position] : self.start[position + 1]]

    @cached_property
    def padded(self) -> Padded:
        """The places of what is written, for products of all positions at once."""
        start, first = np.array(self.start[:-1]), np.array(self.first)
        counts = np.diff(np.array(self.start)) - self.others
        every = np.arange(counts.max(initial=0))
        used = every < counts[:, None]
        ends = np.array(self.start[1:])[:, None]
        others = ends + np.arange(-self.others, 0)
        place = np.concatenate([others, np.where(used, start[:, None] + every, 0)], axis=1)
        column, device = np.where(used, first[:, None] + every, 0), self.vectors.device
        return Padded(
            on_device(place, device),
            on_device(column, device),
            on_device(used, device).to(self.vectors.dtype),
        )

    def feature_places(
        self,
    ) -> Iterator[tuple[Int[Tensor, " features"], Int[Tensor, " features"]]]:
        """Places of features among the vectors, `AT_ONCE` at most, and their positions."""
        start = np.array(self.start)
        position = np.arange(len(start) - 1).repeat(np.diff(start))
        place = np.flatnonzero(np.arange(start[-1]) < start[position + 1] - self.others)
        for begin in range(0, len(place), AT_ONCE):
            part = place[begin : begin + AT_ONCE]
            device = self.vectors.device
            yield on_device(part, device), on_device(position[part], device)

    def of_features(self, position: int) -> Float[Tensor, "features d_model"]:
        """What the features at one position write."""
        begin = self.start[position]
        return self.vectors[begin : begin + self.features(position)]


def table_of(features: ActiveFeatures) -> Table:
    """Layer, position and number of features; waits for their device."""
    layer, position, number = features.layer, features.position, features.feature
    return layer.cpu().numpy(), position.cpu().numpy(), number.cpu().numpy()


def gather(
    transcoder: Transcoder,
    features: ActiveFeatures,
    table: Table,
    positions: int,
    others: Sequence[int],
) -> tuple[list[Writers], list[Float[Tensor, "positions d_model"]]]:
    """Every layer's writers, and what their features add up to, each as strongly as it fired.

    Both stand beside the layer, wherever the features that write there do.

    Decoder rows are each read once. Others are not written yet, and no norm has been passed.

    Args:
        transcoder: what writes, L layers.
        features: in column order, (position, layer, feature).
        table: as `table_of` has it; the host works out what goes where.
        positions: P.
        others: rows a position that are no features, a layer each.
    """
    source, position, _ = table
    width, fired = transcoder.layers[0].b_dec.shape[-1], features.activation
    kind = summed_in(fired.dtype)
    found, into = [], []
    for layer, more in enumerate(others):
        writing = _writing(transcoder, layer)[source]
        columns = np.flatnonzero(writing)
        counts = np.bincount(position[columns], minlength=positions)
        ends = counts.cumsum()
        first = np.append(columns, 0)[ends - counts]
        device = transcoder.layers[layer].b_dec.device
        vectors = fired.new_empty(len(columns) + more * positions, width, device=device)
        total = fired.new_zeros(positions, width, dtype=kind, device=device)
        starts = [0, *(ends + more * np.arange(1, positions + 1)).tolist()]
        found.append(Writers(vectors, starts, first.tolist(), more))
        place = on_device(writing.cumsum() - 1 + more * position, fired.device)
        into.append((vectors, total, place))
    for layer in transcoder.present:
        here = on_device(np.flatnonzero(source == layer), fired.device)
        targets = [into[target] for target in transcoder.targets(layer)]
        reached = [(vectors, total, place[here]) for vectors, total, place in targets]
        _write(transcoder.layers[layer], features[here], reached)
    return found, [total for _, total, _ in into]


def _write(layer: TranscoderLayer, features: ActiveFeatures, into: Sequence[Into]) -> None:
    """Write what one layer's features write, to their places in each target's vectors."""
    decoder, own = layer.decoder, features.feature.to(layer.b_dec.device)
    rows, which = _decoder_rows(decoder, own)
    _copy(rows, which, into, features)
    if rows.nbytes > SPARE and not isinstance(decoder, DenseDecoder):
        del rows
        give_back()


def _copy(
    rows: Float[Tensor, "rows targets d_model"],
    which: Int[Tensor, " features"],
    into: Sequence[Into],
    features: ActiveFeatures,
) -> None:
    """Rows of one layer's features to every target, device by device."""
    for device in dict.fromkeys(vectors.device for vectors, *_ in into):
        slots = [slot for slot, (vectors, *_) in enumerate(into) if vectors.device == device]
        some, at = _rows_there(rows, which, slots, device)
        there = [(*into[slot][:2], into[slot][2].to(device)) for slot in slots]
        copy = _copy_runs if device.type == "cpu" else _copy_all
        copy(some, at, there, features.to(device))


def _rows_there(
    rows: Float[Tensor, "rows targets d_model"],
    which: Int[Tensor, " features"],
    slots: Sequence[int],
    device: torch.device,
) -> tuple[list[Float[Tensor, "rows d_model"]], Int[Tensor, " features"]]:
    """Rows for each of the targets on one device: as they are, or those in use brought there."""
    if rows.device == device:
        return [rows[:, slot] for slot in slots], which
    used, at = which.unique(return_inverse=True)
    return [rows[used, slot].to(device) for slot in slots], at.to(device)


def _copy_all(
    rows: Sequence[Float[Tensor, "rows d_model"]],
    which: Int[Tensor, " features"],
    into: Sequence[Into],
    features: ActiveFeatures,
) -> None:
    """Rows of one layer's features, into the places that each target names, and their sums."""
    sums = into[0][1]
    fired = sums.new_zeros(len(sums), len(which))
    every = torch.arange(len(which), device=which.device)
    fired[features.position, every] = features.activation.to(fired.dtype)
    for written, (vectors, total, place) in zip(rows, into, strict=True):
        found = written[which]
        vectors.index_copy_(0, place, found)
        total.addmm_(fired, found.to(fired.dtype))


def _copy_runs(
    rows: Sequence[Float[Tensor, "rows d_model"]],
    which: Int[Tensor, " features"],
    into: Sequence[Into],
    features: ActiveFeatures,
) -> None:
    """The same position by position: places there are neighbours, and sums find them in the cache.

    Nothing is copied twice.
    """
    at, count = features.position.unique_consecutive(return_counts=True)
    starts, counts = count.cumsum(0) - count, count.tolist()
    activation = features.activation.to(into[0][1].dtype)
    runs = zip(
        at.tolist(),
        which.split(counts),
        activation.split(counts),
        zip(*(place[starts].tolist() for *_, place in into), strict=True),
        strict=True,
    )
    with one_thread():
        for position, chosen, fired, places in runs:
            for written, (vectors, total, _), begin in zip(rows, into, places, strict=True):
                found = vectors[begin : begin + len(chosen)]
                torch.index_select(written, 0, chosen, out=found)
                total[position].addmv_(found.to(fired.dtype).T, fired)


def _writing(transcoder: Transcoder, layer: int) -> Bool[np.ndarray, " layers"]:
    """The layers whose features write to one layer's MLP output."""
    sources = range(len(transcoder.layers))
    return np.array([layer in transcoder.targets(source) for source in sources])


def _decoder_rows(
    decoder: Decoder, features: Int[Tensor, " features"]
) -> tuple[Float[Tensor, "rows targets d_model"], Int[Tensor, " features"]]:
    """Rows among which those of `features` are, and where: the weights, where memory holds them."""
    if isinstance(decoder, DenseDecoder) and decoder.weight.device == features.device:
        return decoder.weight, features
    used, which = features.unique(return_inverse=True)
    return decoder.rows(used), which


def written_bytes(sizes: Sizes) -> Float[np.ndarray, " layers"]:
    """Bytes of what features write to each layer."""
    written = np.zeros(sizes.layers)
    for source, targets in enumerate(sizes.targets):
        written[list(targets)] += sizes.features[source].sum()
    return written * sizes.d_model * sizes.itemsize


def sum_bytes(sizes: Sizes) -> float:
    """Bytes of what features add up to."""
    return sizes.layers * sizes.positions * sizes.d_model * float(sizes.entry)


def read_bytes(sizes: Sizes, layer: int) -> float:
    """Bytes of one layer's decoder rows as they are read and, on a GPU, copied all at once."""
    width = sizes.d_model * sizes.itemsize
    read = sizes.used[layer] * len(sizes.targets[layer]) * width if sizes.lazy else 0.0
    copied = 0.0
    if not sizes.on_cpu:
        copied = sizes.features[layer].sum() * (width + float(sizes.positions * sizes.entry))
    return float(read + copied)


def padded_bytes(sizes: Sizes, chunk: int) -> float:
    """Bytes of one layer's writers, as many a position as the most, and of their scores, twice.

    Args:
        sizes: of the trace.
        chunk: rows times positions that are swept together.
    """
    written = np.zeros((sizes.layers, sizes.positions))
    for source, targets in enumerate(sizes.targets):
        written[list(targets)] += sizes.features[source]
    most = float(written.max(initial=0)) + sizes.skip_positions + 2
    return most * (sizes.positions * sizes.d_model + 2.0 * chunk) * sizes.itemsize
