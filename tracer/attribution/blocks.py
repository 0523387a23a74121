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
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.product import summed_in
from tracer.attribution.sizes import Sizes
from tracer.attribution.spill import Spill
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import LogitTargets, TargetRows, feature_rows, runs

BLOCK, DENSE = 512, 1 << 27
"""Rows swept at once, and bytes they may take while they are dense: fewer rows where there are
many sources, so that memory does not grow with rows x sources. Finished rows are kept sparse."""
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
    most = block_rows(local.columns, model.dtype.itemsize)
    room = Room.of(local, logits.rows, min(most, max(plan.features, len(logits.rows))))

    def made(rows: TargetRows, columns: Int[np.ndarray, " rows"]) -> FinishedRows:
        def sweep() -> FinishedRows:
            return _block(local, rows, columns, plan.edge_floor, room)

        return sweep() if spill is None else spill.block(columns, sweep)

    first = made(logits.rows, np.zeros(0, dtype=np.int64))
    yield first
    ranked = plan.features < len(order)
    if ranked:
        frontier.add(first.effects, first.sums.absolute, _own(logits.rows), np.array(logits.weight))
    done = 0
    while done < plan.features:
        take = min(plan.rank_every if ranked else most, plan.features - done)
        chosen = frontier.next(take) if ranked else order[done : done + take]
        done += len(chosen)
        for begin in range(0, len(chosen), most):
            columns = chosen[begin : begin + most]
            columns = columns[place[columns].argsort()]
            rows = feature_rows(model, recording, local, columns)
            block = made(rows, columns)
            yield block
            if ranked:
                none = np.zeros(len(columns))
                frontier.add(block.effects, block.sums.absolute, _own(rows, columns), none)


@dataclass(frozen=True, eq=False)
class Room:
    """Memory that every block uses anew: fresh memory costs as much as what is computed on it."""

    dense: Tensor
    """(rows, columns) effects of the rows being swept."""
    scratch: Tensor
    """Numbers being summed, float64."""

    @classmethod
    def of(cls, local: LocalModel, logits: TargetRows, most: int) -> "Room":
        """For blocks of at most so many rows, or of the logits."""
        rows = max(most, len(logits))
        dtype = summed_in(logits.vector.dtype)
        return cls(
            logits.vector.new_empty(rows, local.columns, dtype=dtype),
            torch.empty(scratch_numbers(local.columns), dtype=torch.float64),
        )


def _block(
    local: LocalModel,
    rows: TargetRows,
    columns: Int[np.ndarray, " rows"],
    floor: float,
    room: Room,
) -> FinishedRows:
    """Sweep some rows and keep what reaches them, less what lies below the floor."""
    effects = sweep(local, rows, room.dense[: len(rows)])
    runs, sums, places = [], [], []
    for run, reach in _runs(local, rows):
        place = int(rows.site[run.start]), int(rows.position[run.start])
        for begin in range(run.start, run.stop, PART):
            dense = effects.sources[begin : min(begin + PART, run.stop)]
            kept, added = finished(dense, reach, floor, room.scratch)
            runs.append(kept)
            sums.append(added)
            places.append(place)
    return FinishedRows(
        columns=columns,
        effects=runs,
        constant=effects.constant.double().cpu().numpy(),
        value=rows.value.double().cpu().numpy(),
        sums=Sums.joined(sums),
        places=places,
    )


def _runs(local: LocalModel, rows: TargetRows) -> Iterator[tuple[slice, Reach]]:
    """Neighbouring rows that read at one site and position, and the columns that reach them."""
    for run in runs(rows.site * local.positions + rows.position):
        yield run, local.reach(int(rows.site[run.start]), int(rows.position[run.start]))


def _own(rows: TargetRows, columns: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sites of some rows and the columns of their own nodes, -1 for logits."""
    return rows.site, np.full(len(rows), -1) if columns is None else columns


def _reference_order(local: LocalModel) -> Int[np.ndarray, " features"]:
    """Feature columns in the order (layer, position, feature)."""
    layer, position, feature = local.table
    return np.lexsort((feature, position, layer))


def block_rows(columns: int, itemsize: int) -> int:
    """How many rows are swept at once where each has so many columns."""
    bytes_a_row = columns * max(itemsize, torch.float32.itemsize)
    return max(min(PART, BLOCK), min(BLOCK, DENSE // bytes_a_row // PART * PART))


def largest_block(sizes: Sizes) -> int:
    """Rows of the largest block of a trace."""
    block = min(block_rows(sizes.columns, sizes.itemsize), max(sizes.explained, sizes.logits))
    if sizes.explained < sizes.active:
        block = min(block, max(sizes.rank_every, sizes.logits))
    return block


def dense_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of a block: effects while they are dense, what the rows read, made ready twice."""
    return rows * (sizes.columns * sizes.entry + 2.0 * sizes.d_model * sizes.itemsize)


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
