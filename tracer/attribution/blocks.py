"""The loop over blocks of rows: which are swept at once, and what is kept of those finished."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from tracer.attribution.finished import (
    INDEX,
    FinishedRows,
    Sums,
    finished,
    scratch_numbers,
)
from tracer.attribution.frontier import Frontier
from tracer.attribution.landing import BESIDE, Landing, in_turns, needed
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.product import summed_in
from tracer.attribution.sizes import Sizes
from tracer.attribution.spill import Spill
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import (
    LogitTargets,
    TargetRows,
    feature_rows,
    feature_sites,
    runs,
)

BLOCK, DENSE = 512, 1 << 27
"""Rows swept at once, and bytes they may take while they are dense: fewer rows where there are
many sources, so that memory does not grow with rows x sources. Finished rows are kept sparse."""
BLOCK_ON_GPU, DENSE_ON_GPU = 2048, 1 << 30
"""The same on a GPU, which needs more to be busy and waits once a block."""
PART = 64
"""Most rows finished at once, and the fewest a block is cut down to."""
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
    frontier = Frontier.over(order, local.columns)
    away = needed(model.device)
    most = block_rows(local.columns, model.dtype.itemsize, on_cpu=not away)
    room = Room.of(local, logits.rows, min(most, max(plan.features, len(logits.rows))))

    def begun(rows: TargetRows, columns: Int[np.ndarray, " rows"]) -> Finish:
        """Begin a block; called, what is returned finishes it."""

        def begin() -> Finish:
            return _begun(local, rows, columns, plan.edge_floor, room)

        if spill is None:
            return begin()
        block = spill.block(columns, lambda: begin()())
        return lambda: block

    first = begun(logits.rows, np.zeros(0, dtype=np.int64))()
    yield first
    ranked = plan.features < len(order)
    sites = feature_sites(model, local)
    if ranked:
        nowhere = logits.rows.site, np.full(len(logits.rows), -1)
        frontier.add(first.effects, first.sums.absolute, nowhere, np.array(logits.weight))
    done = 0
    while done < plan.features:
        take = min(plan.rank_every if ranked else plan.features, plan.features - done)
        chosen = frontier.next(take) if ranked else order[done : done + take]
        done += len(chosen)
        parts = [chosen[begin : begin + most] for begin in range(0, len(chosen), most)]
        parts = [columns[place[columns].argsort()] for columns in parts]
        rows = (feature_rows(model, recording, local, columns) for columns in parts)
        blocks = (begun(*one) for one in zip(rows, parts, strict=True))
        for block in _one_ahead(blocks) if away else (finish() for finish in blocks):
            yield block
            if ranked:
                own = sites[block.columns], block.columns
                none = np.zeros(len(block.columns))
                frontier.add(block.effects, block.sums.absolute, own, none)


Finish = Callable[[], FinishedRows]
"""Waits for a block's rows, if they are not in main memory, and adds them up."""


def _one_ahead(blocks: Iterator[Finish]) -> Iterator[FinishedRows]:
    """Finish every block once the next has begun."""
    waiting = None
    for begun in blocks:
        if waiting is not None:
            yield waiting()
        waiting = begun
    if waiting is not None:
        yield waiting()


@dataclass(frozen=True, eq=False)
class Room:
    """Memory that every block uses anew: fresh memory costs as much as what is computed on it."""

    dense: Tensor
    """(rows, columns) effects of the rows being swept; on a GPU `BESIDE` more numbers."""
    scratch: Tensor
    """Numbers being summed, float64."""
    landings: Iterator[Landing] | None = None
    """Where rows get to from a GPU, in turns."""

    @classmethod
    def of(cls, local: LocalModel, logits: TargetRows, most: int) -> "Room":
        """For blocks of at most so many rows, or of the logits."""
        rows, away = max(most, len(logits)), needed(logits.vector.device)
        width = local.columns + (BESIDE if away else 0)
        dense = logits.vector.new_empty(rows, width, dtype=summed_in(logits.vector.dtype))
        scratch = torch.empty(scratch_numbers(local.columns), dtype=torch.float64)
        return cls(dense, scratch, in_turns(dense) if away else None)


def _begun(
    local: LocalModel,
    rows: TargetRows,
    columns: Int[np.ndarray, " rows"],
    floor: float,
    room: Room,
) -> Finish:
    """Sweep some rows; called, what is returned keeps what reaches them above the floor."""
    count = len(rows)
    dense = room.dense[:count]
    effects = sweep(local, rows, dense[:, : local.columns])

    if room.landings is None:
        there = (effects.sources, effects.constant, rows.value)
        block = _finished(local, rows, columns, floor, (there, room.scratch))
        return lambda: block
    dense[:, -2], dense[:, -1] = effects.constant, rows.value
    landing = next(room.landings)
    landing.begin(dense)

    def finish() -> FinishedRows:
        found = landing.landed(count)
        there = (found[:, :-2], found[:, -2], found[:, -1])
        return _finished(local, rows, columns, floor, (there, room.scratch))

    return finish


def _finished(
    local: LocalModel,
    rows: TargetRows,
    columns: Int[np.ndarray, " rows"],
    floor: float,
    found: tuple[tuple[Tensor, Tensor, Tensor], Tensor],
) -> FinishedRows:
    """What is kept of a block: of effects, constants and values, with memory to sum in."""
    (sources, constant, value), scratch = found
    runs, sums, places = [], [], []
    for run, reach in _runs(local, rows):
        place = int(rows.site[run.start]), int(rows.position[run.start])
        for begin in range(run.start, run.stop, PART):
            dense = sources[begin : min(begin + PART, run.stop)]
            kept, added = finished(dense, reach, floor, scratch)
            runs.append(kept)
            sums.append(added)
            places.append(place)
    return FinishedRows(
        columns=columns,
        effects=runs,
        constant=constant.to(torch.float64, copy=True).numpy(),
        value=value.to(torch.float64, copy=True).numpy(),
        sums=Sums.joined(sums),
        places=places,
    )


def _runs(local: LocalModel, rows: TargetRows) -> Iterator[tuple[slice, Reach]]:
    """Neighbouring rows that read at one site and position, and the columns that reach them."""
    for run in runs(rows.site * local.positions + rows.position):
        yield run, local.reach(int(rows.site[run.start]), int(rows.position[run.start]))


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
    """Bytes of a block: effects while they are dense, what the rows read, made ready twice."""
    columns = sizes.columns + (0 if sizes.on_cpu else BESIDE)
    return rows * (columns * sizes.entry + 2.0 * sizes.d_model * sizes.itemsize)


def landing_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of pinned memory beside a GPU: for two blocks."""
    return 0.0 if sizes.on_cpu else 2.0 * rows * (sizes.columns + BESIDE) * sizes.entry


def part_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of the part of a block that is finished at once: what is summed, what is floored."""
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
