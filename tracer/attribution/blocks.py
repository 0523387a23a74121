"""The loop over blocks of rows: which are swept at once, and what is kept of those finished."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from replacement_models import Recording, ReplacementModel
from tracer.attribution.frontier import Frontier
from tracer.attribution.local_model import LocalModel
from tracer.attribution.sizes import Sizes
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import LogitTargets, TargetRows, feature_rows, on_device, runs

BLOCK, DENSE = 512, 1 << 27
"""Rows swept at once, and bytes they may take while they are dense: fewer rows where there are
many sources, so that memory does not grow with rows x sources. Finished rows are kept sparse."""
PART = 64
"""Rows made sparse at once, and the fewest a block is cut down to."""
INDEX = np.dtype(np.int32)
"""Of a column's number in finished rows."""
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


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """Some finished rows."""

    columns: Int[np.ndarray, " rows"]
    """Columns of the rows' own nodes; empty for logits."""
    effects: sparse.csr_array
    constant: Float[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]
    floored: Float[np.ndarray, "rows 2"]
    """What lay below the edge floor: the sum, and the sum of sizes."""
    sum: Float[np.ndarray, " rows"]
    """Signed sum of every row, with what lay below the floor."""
    total: Float[np.ndarray, " rows"]
    """Absolute sum of every row, with what lay below the floor."""


def finished_blocks(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    logits: LogitTargets,
    plan: Plan,
) -> Iterator[FinishedRows]:
    """Finished rows: the logits, then the features, ranked again and again where there is a cap."""
    order = _reference_order(local)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    frontier = Frontier.over(order)
    first = _block(local, logits.rows, np.zeros(0, dtype=np.int64), plan.edge_floor)
    yield first
    ranked = plan.features < len(order)
    if ranked:
        frontier.add(first.effects, first.total, _own(logits.rows), np.array(logits.weight))
    done, most = 0, block_rows(local.columns, model.dtype.itemsize)
    while done < plan.features:
        take = min(plan.rank_every if ranked else most, plan.features - done)
        chosen = frontier.next(take) if ranked else order[done : done + take]
        done += len(chosen)
        for begin in range(0, len(chosen), most):
            columns = chosen[begin : begin + most]
            columns = columns[place[columns].argsort()]
            rows = feature_rows(model, recording, local, columns)
            block = _block(local, rows, columns, plan.edge_floor)
            yield block
            if ranked:
                none = np.zeros(len(columns))
                frontier.add(block.effects, block.total, _own(rows, columns), none)


def _block(
    local: LocalModel, rows: TargetRows, columns: Int[np.ndarray, " rows"], floor: float
) -> FinishedRows:
    """Sweep some rows and keep them sparse, less what lies below the floor."""
    effects = sweep(local, rows)
    parts = [
        _finished(effects.sources[begin : min(begin + PART, run.stop)], reach, floor)
        for run, reach in _runs(local, rows)
        for begin in range(run.start, run.stop, PART)
    ]
    data, index, counts, floored, total, whole = (
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    start = np.concatenate([[0], counts.cumsum()])
    return FinishedRows(
        columns=columns,
        effects=sparse.csr_array((data, index, start), shape=tuple(effects.sources.shape)),
        constant=effects.constant.double().cpu().numpy(),
        value=rows.value.double().cpu().numpy(),
        floored=floored,
        sum=total,
        total=whole,
    )


def _runs(
    local: LocalModel, rows: TargetRows
) -> Iterator[tuple[slice, Int[np.ndarray, " reaching"]]]:
    """Neighbouring rows that read at one site and position, and the columns that reach them."""
    for run in runs(rows.site * local.positions + rows.position):
        yield run, local.reach(int(rows.site[run.start]), int(rows.position[run.start]))


def _finished(
    dense: Float[torch.Tensor, "rows columns"], reach: Int[np.ndarray, " reaching"], floor: float
) -> tuple[np.ndarray, ...]:
    """Entries, their columns and how many a row has; what the floor dropped; sums, signed and not.

    Only the columns in `reach` count. Sums and what was dropped are as in `FinishedRows`.
    """
    part = dense[:, on_device(reach, dense.device)]
    size = part.abs()
    total, whole = (x.sum(1, dtype=torch.float64).cpu().numpy() for x in (part, size))
    lost = np.zeros((len(part), 2))
    index = np.broadcast_to(reach.astype(INDEX), tuple(part.shape))
    data, counts = part.cpu().numpy(), np.full(len(part), len(reach))
    if floor:
        kept = size.cpu().numpy() >= floor * whole[:, None]
        for column, what in enumerate((data, np.abs(data))):
            lost[:, column] = np.where(kept, 0, what).sum(1, dtype=np.float64)
        data, index, counts = data[kept], index[kept], kept.sum(1)
    return data.ravel(), index.ravel(), counts, lost, total, whole


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
    """Bytes of the part of a block that is made sparse at once: entries, sizes, columns."""
    return min(PART, rows) * sizes.columns * (2.0 * sizes.entry + INDEX.itemsize)


def entry_bytes(sizes: Sizes) -> int:
    """Bytes of one entry of a finished row, with its column."""
    return sizes.entry + INDEX.itemsize


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
