"""The loop over blocks of rows: which are swept at once, and what is kept of those finished."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from tracer.attribution.finished import (
    INDEX,
    PART,
    FinishedRows,
    Sums,
    finished,
    parts_of,
    places_of,
    scratch_numbers,
)
from tracer.attribution.frontier import Frontier
from tracer.attribution.frontier_on_device import FrontierOnDevice
from tracer.attribution.landing import needed
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.packing import Away, packed_bytes, packing_bytes
from tracer.attribution.product import summed_in
from tracer.attribution.sizes import Sizes
from tracer.attribution.spill import Spill
from tracer.attribution.sweep import Effects, sweep
from tracer.attribution.targets import LogitTargets, TargetRows, feature_rows

BLOCK, DENSE = 512, 1 << 27
"""Rows swept at once, and bytes they may take while they are dense: fewer rows where there are
many sources, so that memory does not grow with rows x sources. Finished rows are kept sparse."""
BLOCK_ON_GPU, DENSE_ON_GPU = 2048, 1 << 30
"""The same on a GPU, which needs more to be busy and waits once a block."""
KEPT = 0.3
"""With an edge floor F no row keeps more than 1 / F entries. Random weights keep 0.15 / F, rows of
the embedded default 0.04 to 0.15 / F, of which the fullest twice as many: the estimate."""

Progress = Callable[[int, int], None]
"""Called with the number of features explained so far and the number there will be."""


@dataclass(frozen=True)
class Plan:
    """How many rows to sweep, and what to do with them."""

    features: int
    rank_every: int
    edge_floor: float
    progress: Progress | None
    keep_partial: bool
    ranked_there: bool = True
    """Whether a device that makes the rows ranks features too; it then holds all rows."""


def finished_blocks(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    logits: LogitTargets,
    plan: Plan,
    spill: Spill | None = None,
) -> Iterator[FinishedRows]:
    """Finished rows: the logits, then the features, ranked again and again where there is a cap.

    Those that `spill` has from an earlier run are not swept again.
    """
    order = _reference_order(local)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    away, ranked = needed(model.device), plan.features < len(order)
    most = block_rows(local.columns, model.dtype.itemsize, on_cpu=not away)
    room = Room.of(local, logits.rows, min(most, plan.features), plan.edge_floor)
    making = Making.of(local, order, len(logits.rows), plan, room, spill)

    def begun(done: int, take: int) -> Iterator[Finish]:
        """Begin the blocks of some more features."""
        chosen = making.next(take) if ranked else order[done : done + take]
        parts = [chosen[begin : begin + most] for begin in range(0, len(chosen), most)]
        for columns in (part[place[part].argsort()] for part in parts):
            rows, nothing = feature_rows(model, recording, local, columns), np.zeros(len(columns))
            yield making.begun(rows, columns, nothing)

    yield making.begun(logits.rows, np.zeros(0, dtype=np.int64), np.array(logits.weight))()
    every = plan.rank_every if ranked else max(1, plan.features)
    steps = range(0, plan.features, every)
    rankings = (begun(done, min(every, plan.features - done)) for done in steps)
    for blocks in rankings if making.there is None else [chain.from_iterable(rankings)]:
        yield from _one_ahead(blocks) if away else (finish() for finish in blocks)


Finish = Callable[[], FinishedRows]
"""Waits for a block's rows, if they are not in main memory, and files them."""


def _one_ahead(blocks: Iterable[Finish]) -> Iterator[FinishedRows]:
    """Finish every block once the next has begun."""
    waiting = None
    for begun in blocks:
        if waiting is not None:
            yield waiting()
        waiting = begun
    if waiting is not None:
        yield waiting()


@dataclass(frozen=True, eq=False)
class Making:
    """Makes blocks of rows, or has them from the disk, and tells the frontier of them."""

    local: LocalModel
    floor: float
    room: "Room"
    spill: Spill | None
    here: Frontier | None
    """Where a cap needs a ranking: its frontier, if that is in main memory,"""
    there: FrontierOnDevice | None
    """or if it is on the device, which then need not be waited for."""

    @classmethod
    def of(
        cls,
        local: LocalModel,
        order: Int[np.ndarray, " features"],
        logits: int,
        plan: Plan,
        room: "Room",
        spill: Spill | None,
    ) -> "Making":
        """For a plan, with so many logits to explain as well."""
        here, there = None, None
        if plan.features < len(order):
            if room.away is None or not plan.ranked_there:
                here = Frontier.over(order, local.columns)
            else:
                rows = logits + plan.features
                there = FrontierOnDevice.over(order, local.columns, rows, room.dense)
        return cls(local, plan.edge_floor, room, spill, here, there)

    def next(self, count: int) -> Int[np.ndarray, " chosen"]:
        """As the frontier's."""
        frontier = self.here or self.there
        assert frontier is not None
        return frontier.next(count)

    def begun(
        self,
        rows: TargetRows,
        columns: Int[np.ndarray, " rows"],
        weight: Float[np.ndarray, " rows"],
    ) -> Finish:
        """Begin a block; called, what is returned finishes it.

        Args:
            rows: its rows.
            columns: of their own nodes; none for logits.
            weight: what enters at them.
        """
        own = rows.site, columns if len(columns) else np.full(len(rows), -1)
        told = partial(_told, own=own, weight=weight)

        def swept() -> Finish:
            effects = sweep(self.local, rows, self.room.dense[: len(rows)])
            parts, away = parts_of(self.local, rows), self.room.away
            if away is None:
                block = _finished(rows, columns, parts, self.floor, (effects, self.room.scratch))
                return lambda: block
            finish, total = away.begin(rows, columns, parts, self.floor, effects)
            if self.there is not None:
                self.there.take(effects.sources, total, own, weight)
            return finish

        if self.spill is None:
            finish = swept()
        else:
            finish = self.spill.block(columns, swept, partial(told, self.there))
        return lambda: told(self.here, finish())


def _told(
    frontier: Frontier | FrontierOnDevice | None,
    block: FinishedRows,
    own: tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]],
    weight: Float[np.ndarray, " rows"],
) -> FinishedRows:
    """A finished block, of which a frontier has learned."""
    if frontier is not None:
        frontier.add(block.effects, block.sums.absolute, own, weight)
    return block


@dataclass(frozen=True, eq=False)
class Room:
    """Memory that every block uses anew: fresh memory costs as much as what is computed on it."""

    dense: Float[Tensor, "rows columns"]
    """Effects of the rows being swept."""
    scratch: Tensor
    """Numbers being summed, float64."""
    away: Away | None
    """What rows go through that are made on a GPU."""

    @classmethod
    def of(cls, local: LocalModel, logits: TargetRows, most: int, floor: float) -> "Room":
        """For blocks of at most so many rows, or of the logits."""
        rows, dtype = max(most, len(logits)), summed_in(logits.vector.dtype)
        dense = logits.vector.new_empty(rows, local.columns, dtype=dtype)
        if needed(logits.vector.device):
            return cls(dense, torch.empty(0), Away.of(local, dense, floor))
        scratch = torch.empty(scratch_numbers(local.columns), dtype=torch.float64)
        return cls(dense, scratch, None)


def _finished(
    rows: TargetRows,
    columns: Int[np.ndarray, " rows"],
    parts: Sequence[tuple[slice, Reach]],
    floor: float,
    found: tuple[Effects, Tensor],
) -> FinishedRows:
    """What is kept of a block: of its effects, with memory to sum in."""
    effects, scratch = found
    kept = [finished(effects.sources[part], reach, floor, scratch) for part, reach in parts]
    return FinishedRows(
        columns=columns,
        effects=[run for run, _ in kept],
        constant=effects.constant.to(torch.float64, copy=True).numpy(),
        value=rows.value.to(torch.float64, copy=True).numpy(),
        sums=Sums.joined([sums for _, sums in kept]),
        places=places_of(rows, parts),
    )


def _reference_order(local: LocalModel) -> Int[np.ndarray, " features"]:
    """Feature columns in the order (layer, position, feature)."""
    layer, position, feature = local.table
    return np.lexsort((feature, position, layer))


def block_rows(columns: int, itemsize: int, on_cpu: bool = True) -> int:
    """How many rows are swept at once where each has so many columns."""
    most, dense = (BLOCK, DENSE) if on_cpu else (BLOCK_ON_GPU, DENSE_ON_GPU)
    bytes_a_row = columns * max(itemsize, torch.float32.itemsize)
    return max(min(PART, most), min(most, dense // bytes_a_row // PART * PART))


def largest_block(sizes: Sizes) -> int:
    """Rows of the largest block of a trace."""
    block = block_rows(sizes.columns, sizes.itemsize, sizes.on_cpu)
    block = min(block, max(sizes.explained, sizes.logits))
    if sizes.explained < sizes.active:
        block = min(block, max(sizes.rank_every, sizes.logits))
    return block


def dense_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of a block: effects while they are dense, what the rows read, made ready twice.

    On a GPU packed effects too.
    """
    dense = rows * (sizes.columns * sizes.entry + 2.0 * sizes.d_model * sizes.itemsize)
    return dense if sizes.on_cpu else dense + _packed(sizes, rows)


def landing_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of pinned memory beside a GPU: for two blocks."""
    return 0.0 if sizes.on_cpu else 2 * _packed(sizes, rows)


def _packed(sizes: Sizes, rows: int) -> float:
    return float(packed_bytes(rows, sizes.columns, sizes.entry, sizes.edge_floor))


def part_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of the part of a block that is finished at once: what is summed, what is floored."""
    if not sizes.on_cpu:
        return packing_bytes(sizes.columns)
    summed = 8.0 * scratch_numbers(sizes.columns)
    if not sizes.edge_floor:
        return summed
    return summed + min(PART, rows) * sizes.columns * (3.0 * sizes.entry + 1 + INDEX.itemsize)


def entry_bytes(sizes: Sizes) -> int:
    """Bytes of one entry of a finished row, with its column where that is written down."""
    return sizes.entry + (INDEX.itemsize if sizes.edge_floor else 0)


def entries(sizes: Sizes) -> tuple[float, float]:
    """Entries of all finished rows, and how many of them are between nodes.

    Exact without a cap and a floor. The features chosen under a cap are taken to stand at the last
    position, at layers like all others; with a floor, rows to keep `KEPT` of the most they can.
    """
    counts, features = sizes.features, sizes.explained
    below = np.zeros((sizes.layers + 1, sizes.positions))
    below[1:] = counts.cumsum(0).cumsum(1)
    at = np.arange(sizes.positions)
    layer = np.arange(sizes.layers + 1)[:, None]
    rest = layer * np.maximum(0, at + 1 - sizes.skip_positions) + at + 1
    # No attention follows the last layer: logits read what it writes at the last position only.
    below[-1, -1] = below[-2, -1] + counts[-1, -1]
    counted = max(0, sizes.positions - sizes.skip_positions)
    rest[-1, -1] = (sizes.layers - 1) * counted + min(1, counted) + sizes.positions
    rows = np.zeros_like(below)
    rows[:-1] = counts
    if features < sizes.active:
        rows[:-1] = 0
        rows[:-1, -1] = counts.sum(1) * features / sizes.active
    rows[-1, -1] += sizes.logits
    chosen = min(1.0, features / max(1, sizes.active))
    whole, edges = rows * (below + rest), rows * (chosen * below + rest)
    if sizes.edge_floor:
        kept = np.minimum(1, (KEPT / sizes.edge_floor) / np.maximum(below + rest, 1))
        whole, edges = whole * kept, edges * kept
    return float(whole.sum()), float(edges.sum())
