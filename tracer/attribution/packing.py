"""Rows finished where a GPU made them: thresholded, added up and packed before they leave it.

A mask says which effects count, its running sum where each of them goes, so the host need not know
how many there are. Without an edge floor it knows anyway; with one, there is room for the most that
a row can keep (`most_kept`). Everything lies in one buffer of bytes, which takes one copy. Effects
are the bytes that `finished.py` keeps of the same rows in main memory; sums of rows are added up in
float64 too, but in another order (`tests/test_tracer_packing.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import sparse
from torch import Tensor

from replacement_models.sites import stream_number, top_layer
from tracer.attribution.finished import (
    INDEX,
    FinishedRows,
    FlooredRun,
    RowRun,
    Sums,
    WholeRun,
    places_of,
)
from tracer.attribution.indices import on_device
from tracer.attribution.landing import Landing, in_turns
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.sweep import Effects
from tracer.attribution.targets import TargetRows

TILE, PER_NUMBER = 1 << 22, 48
"""Effects packed at once, and bytes that each takes meanwhile."""
SPARE = 1024
"""Places for effects that do not count: one alone would be written to by all at a time."""
SUMS = ("signed", "absolute", "floored", "floored_absolute", "constant", "value", "kept")
"""Numbers a row beside its effects."""


@dataclass(frozen=True, eq=False)
class Packed:
    """The rows of one block in one buffer, on the device or in main memory."""

    memory: UInt8[Tensor, " bytes"]
    sums: Float[Tensor, "sums rows"]
    """As `SUMS` names them, float64."""
    index: Int[Tensor, " entries"] | None
    """Columns of the effects, with an edge floor."""
    values: Float[Tensor, " entries"]
    """Effects, row after row; the last `SPARE` count for nothing."""

    @classmethod
    def within(
        cls,
        memory: UInt8[Tensor, " bytes"],
        rows: int,
        entries: int,
        dtype: torch.dtype,
        floored: bool,
    ) -> "Packed":
        """For some rows and at most so many effects, in the first bytes of some memory."""
        sizes = _sizes(rows, entries, dtype.itemsize, floored)
        memory = memory[: sum(sizes)]
        sums, index, values = memory.split(sizes)
        return cls(
            memory,
            sums.view(torch.float64).view(len(SUMS), rows),
            index.view(torch.int32) if floored else None,
            values.view(dtype),
        )


def _sizes(rows: int, entries: int, itemsize: int, floored: bool) -> list[int]:
    """Bytes of sums, of columns and of effects."""
    places = entries + entries % 2 + SPARE  # float64 stands at multiples of 8
    return [8 * len(SUMS) * rows, INDEX.itemsize * places if floored else 0, itemsize * places]


def packed_bytes(rows: int, columns: int, itemsize: int, floor: float) -> int:
    """Bytes that some rows take at most once packed."""
    return sum(_sizes(rows, rows * most_kept(columns, floor), itemsize, floor > 0))


def most_kept(reaching: int, floor: float) -> int:
    """Effects that a row keeps at most: each is at least `floor` of what all add up to."""
    return min(reaching, int(1 / floor) + 1) if floor else reaching


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the sources of all columns stand, on the device, which finds what reaches rows."""

    number: Int[Tensor, " columns"]
    enters: Int[Tensor, " columns"]
    """Site at which the stream has what the source writes."""
    above: Int[Tensor, " columns"]
    """Layer whose attention reads it first."""
    position: Int[Tensor, " columns"]
    spare: Int[Tensor, " columns"]
    """Which of the spare places takes an effect that does not count."""

    @classmethod
    def of(cls, local: LocalModel, device: torch.device) -> "Standing":
        """Of a local model's columns."""
        (layer, position), number = local.places, np.arange(local.columns)
        enters = stream_number(layer + 1)
        standing = np.stack([number, enters, layer + 1, position]).astype(INDEX)
        each = on_device(standing, device)
        return cls(each[0], each[1], each[2], each[3], on_device(number % SPARE, device))

    def reaching(
        self, site: Int[np.ndarray, " rows"], position: Int[np.ndarray, " rows"]
    ) -> Bool[Tensor, "rows columns"]:
        """As `LocalModel.reach`, for rows that read at some sites and positions."""
        top, read, at = (
            on_device(one.astype(INDEX)[:, None], self.number.device)
            for one in (top_layer(site), site, position)
        )
        attended = (self.above <= top) & (self.position <= at)
        return (attended | (self.position == at)) & (self.enters <= read)


def pack(
    dense: Float[Tensor, "rows columns"],
    rows: TargetRows,
    standing: Standing,
    floor: float,
    into: Packed,
) -> None:
    """Pack some rows, all but their constants and values.

    Args:
        dense: effects of all columns; those that are not kept become zero.
        rows: what they are of.
        standing: where their sources stand.
        floor: share of a row's absolute sum below which effects are dropped.
        into: place for them.
    """
    done, step = standing.number.new_zeros((), dtype=torch.int64), max(1, TILE // dense.shape[1])
    for begin in range(0, len(dense), step):
        here = slice(begin, min(begin + step, len(dense)))
        tile = dense[here]
        kept = standing.reaching(rows.site[here], rows.position[here])
        kept = _added_up(tile, kept, floor, into.sums[:, here])
        place = kept.flatten().cumsum(0).view_as(kept)
        into.sums[SUMS.index("kept"), here] = kept.sum(1)
        _placed(tile, torch.where(kept, place + (done - 1), -1), standing, into)
        done = done + place[-1, -1]


def _added_up(
    tile: Float[Tensor, "rows columns"],
    reaching: Bool[Tensor, "rows columns"],
    floor: float,
    sums: Float[Tensor, "sums rows"],
) -> Bool[Tensor, "rows columns"]:
    """Which effects are kept; their rows' sums written down, all others made zero."""
    tile.masked_fill_(~reaching, 0)
    size = tile.abs()
    absolute = size.sum(1, dtype=torch.float64)
    sums[0], sums[1] = tile.sum(1, dtype=torch.float64), absolute
    sums[2:4].zero_()
    if not floor:
        return reaching
    counted = (absolute > 0) & absolute.isfinite()  # of others no few effects are large enough
    kept = reaching & counted[:, None] & (size >= (floor * absolute)[:, None])
    sums[2] = tile.masked_fill(kept, 0).sum(1, dtype=torch.float64)
    sums[3] = size.masked_fill_(kept, 0).sum(1, dtype=torch.float64)
    tile.masked_fill_(~kept, 0)
    return kept


def _placed(
    tile: Float[Tensor, "rows columns"],
    place: Int[Tensor, "rows columns"],
    standing: Standing,
    into: Packed,
) -> None:
    """Write effects to their places; those at -1, and beyond the room, to spare ones."""
    entries = len(into.values) - SPARE
    outside = (place < 0) | (place >= entries)
    place = torch.where(outside, standing.spare + entries, place).flatten()
    into.values.scatter_(0, place, tile.flatten())
    if into.index is not None:
        into.index.scatter_(0, place, standing.number.expand(len(tile), -1).flatten())


def unpacked(
    rows: TargetRows,
    columns: Int[np.ndarray, " rows"],
    parts: Sequence[tuple[slice, Reach]],
    sources: int,
    packed: Packed,
) -> FinishedRows:
    """What is kept of a block, from packed rows once they are in main memory.

    Args:
        rows: the block.
        columns: of the rows' own nodes.
        parts: the rows as `parts_of` cuts them.
        sources: columns of all sources.
        packed: their effects.
    """
    sums = packed.sums.numpy().copy()
    values, index = packed.values.numpy(), None if packed.index is None else packed.index.numpy()
    ends = np.concatenate([[0], sums[SUMS.index("kept")].cumsum()]).astype(np.int64)
    effects: list[RowRun] = []
    for part, reach in parts:
        here = slice(int(ends[part.start]), int(ends[part.stop]))
        data = values[here].copy()
        if index is None:
            effects.append(WholeRun(reach, data.reshape(-1, reach.count)))
        else:
            start = (ends[part.start : part.stop + 1] - ends[part.start]).astype(INDEX)
            shape = (part.stop - part.start, sources)
            entries = (data, index[here].copy(), start)
            effects.append(FlooredRun(sparse.csr_array(entries, shape=shape)))
    signed, absolute, *floored = sums[:4]
    return FinishedRows(
        columns=columns,
        effects=effects,
        constant=sums[4],
        value=sums[5],
        sums=Sums(signed, absolute, np.stack(floored, axis=1)),
        places=places_of(rows, parts),
    )


def room_for(parts: Sequence[tuple[slice, Reach]], floor: float) -> int:
    """How many effects some rows keep at most."""
    return sum((part.stop - part.start) * most_kept(reach.count, floor) for part, reach in parts)


@dataclass(frozen=True, eq=False)
class Away:
    """What rows go through on their way from a device; every block uses it anew."""

    standing: Standing
    memory: UInt8[Tensor, " bytes"]
    landings: Iterator[Landing]

    @classmethod
    def of(cls, local: LocalModel, dense: Float[Tensor, "rows columns"], floor: float) -> "Away":
        """For blocks like `dense`, which stands on the device, at most."""
        size = packed_bytes(len(dense), local.columns, dense.itemsize, floor)
        memory = dense.new_empty(size, dtype=torch.uint8)
        return cls(Standing.of(local, dense.device), memory, in_turns(dense.device, size))

    def begin(
        self,
        rows: TargetRows,
        columns: Int[np.ndarray, " rows"],
        parts: Sequence[tuple[slice, Reach]],
        floor: float,
        effects: Effects,
    ) -> tuple[Callable[[], FinishedRows], Float[Tensor, " rows"]]:
        """Pack a block and put its copy in line.

        Args:
            rows: the block.
            columns: of the rows' own nodes.
            parts: the rows as `parts_of` cuts them.
            floor: share of a row's absolute sum below which effects are dropped.
            effects: on the rows; those that are not kept become zero.

        Returns:
            What waits for the copy and files the rows; and their absolute sums, on the device.
        """
        dense, floored = effects.sources, floor > 0
        entries, landing = room_for(parts, floor), next(self.landings)

        def within(memory: Tensor) -> Packed:
            return Packed.within(memory, len(rows), entries, dense.dtype, floored)

        there = within(self.memory)
        there.sums[SUMS.index("constant")] = effects.constant
        there.sums[SUMS.index("value")] = rows.value
        pack(dense, rows, self.standing, floor, there)
        landing.begin(there.memory)

        def finish() -> FinishedRows:
            here = within(landing.landed(len(there.memory)))
            return unpacked(rows, columns, parts, dense.shape[1], here)

        return finish, there.sums[SUMS.index("absolute")]


def packing_bytes(columns: int) -> float:
    """Bytes that packing takes beside what is packed."""
    return PER_NUMBER * float(max(TILE, columns)) + 20.0 * columns
