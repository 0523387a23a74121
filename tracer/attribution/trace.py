"""Trace a prompt: record, linearise, sweep the logits and then the features, build the graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from graphs import AttributionGraph
from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import eager_attention
from tracer.attribution import native
from tracer.attribution.assemble import Traced, assemble, metadata
from tracer.attribution.available import give_back, keep_freed
from tracer.attribution.frontier import Frontier
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.memory import PART, Estimate, Sizes, block_rows, check, estimate
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import (
    Difference,
    Direction,
    LogitTargets,
    Target,
    TargetRows,
    feature_rows,
    logit_targets,
    on_device,
    runs,
)
from tracer.errors import TraceError

SPARE = 1 << 24
"""Bytes of finished effects after which memory that was freed on the way is given back."""
ROOMY = 1e9
"""Bytes below which a trace keeps what it frees for its next tensor."""
PATTERNS = 1 << 30
"""Bytes of attention patterns kept in memory; beyond, they are made anew layer by layer."""


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


@torch.no_grad()
def trace(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    prompt: str | Sequence[int],
    *,
    max_features: int | None = None,
    rank_every: int | None = None,
    max_logits: int = 10,
    logit_mass: float = 0.95,
    targets: Sequence[Target] | None = None,
    position: int = -1,
    skip_positions: int = 1,
    edge_floor: float = 0.0,
    recompute_patterns: bool | None = None,
    split_products: bool = False,
    memory_limit: float | None = None,
    on_recording: Callable[[Recording], None] | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
    keep_partial: bool = False,
) -> AttributionGraph:
    """Attribution graph of one prompt: every direct effect between its active features.

    Args:
        model: what to trace.
        prompt: text, or token ids taken as they stand.
        max_features: explain at most so many features, the most influential; None explains all.
        rank_every: rows between two rankings under a cap; None: an eighth of the cap, at least 64.
        max_logits: at most so many of the likeliest next tokens as targets.
        logit_mass: their probability need not exceed this share.
        targets: tokens, differences, directions to explain instead; None is the likeliest tokens.
        position: where the next token is predicted; negative counts from the end.
        skip_positions: features and errors at the first so many positions are no nodes.
        edge_floor: drop effects below this share of their row's absolute sum as soon as the row is
            finished, which bounds memory on long prompts. They join the row's left-out, and the
            scores count them as error.
        recompute_patterns: make attention patterns anew, layer by layer, instead of keeping them;
            None does so where they would take over a gigabyte.
        split_products: make large float32 products in split bfloat16, on processors with AMX, by a
            kernel compiled at first use (tracer/native); effects differ by 1e-5 of the largest.
        memory_limit: gigabytes (10^9 bytes) that tracing may take once the prompt is recorded;
            None is what the model's device has free, infinity never refuses.
        on_recording: called with the forward pass that is traced, which ends at `position` and has
            the logits there.
        on_estimate: called with the memory that tracing will take, before it starts.
        progress: called after every block of rows.
        keep_partial: when interrupted (Ctrl-C), return the graph of the rows finished so far; its
            metadata says `partial`.

    Returns:
        The unpruned graph, edges in units of the target's pre-activation or logit.

    Raises:
        TraceError: an argument is out of range, a target cannot be resolved, split products cannot
            be had, or memory will not do: the message says how much is needed and which options
            would fit.
        ModelError: the prompt does not fit the model.

    Source: Ameisen et al. 2025, "Circuit Tracing".
    """
    products = native.split_products() if split_products else nullcontext()
    tokens = model.tokenize(prompt)
    _check_counts(max_features, rank_every, skip_positions)
    _check_amounts(edge_floor, memory_limit)
    last = _position(position, len(tokens))
    keep = _fits(model, last + 1) if recompute_patterns is None else not recompute_patterns
    recording = model.record(tokens[: last + 1], keep_patterns=keep, last_logits=True)
    if on_recording is not None:
        on_recording(recording)
    logits = logit_targets(model, recording, targets, max_logits, logit_mass)
    sizes = Sizes.of(
        model,
        recording,
        skip_positions,
        logits=len(logits.rows),
        explained=max_features,
        rank_every=rank_every,
        edge_floor=edge_floor,
    )
    _make_room(model, sizes, memory_limit, on_estimate)
    local = linearise(model, recording, skip_positions, sizes.explained)
    give_back()
    plan = Plan(sizes.explained, sizes.rank_every, edge_floor, progress, keep_partial)
    # Eager attention is for patterns made anew, from several threads.
    with eager_attention(model.host.model), products:
        traced = _sweep_all(model, recording, local, logits, plan)
    settings = {
        "max_features": max_features,
        "rank_every": rank_every,
        "max_logits": max_logits,
        "logit_mass": logit_mass,
        "targets": None if targets is None else [_target_name(target) for target in targets],
        "position": position,
        "skip_positions": skip_positions,
        "edge_floor": edge_floor,
        "recompute_patterns": recompute_patterns,
        "split_products": split_products,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }
    return assemble(model, local, logits, traced, metadata(model, prompt, tokens, settings))


def _check_counts(max_features: int | None, rank_every: int | None, skip_positions: int) -> None:
    for name, count, least in (
        ("max_features", max_features, 0),
        ("rank_every", rank_every, 1),
        ("skip_positions", skip_positions, 0),
    ):
        if count is not None and count < least:
            raise TraceError(f"{name} is {count}, expected {least} or more")


def _check_amounts(edge_floor: float, memory_limit: float | None) -> None:
    if not 0 <= edge_floor < 1:
        raise TraceError(f"edge_floor is {edge_floor}, expected a share from 0 to below 1")
    if memory_limit is not None and not memory_limit > 0:
        raise TraceError(f"memory_limit is {memory_limit} GB, expected more than 0")


def _make_room(
    model: ReplacementModel,
    sizes: Sizes,
    memory_limit: float | None,
    on_estimate: Callable[[Estimate], None] | None,
) -> None:
    """Settle what becomes of freed memory, refuse a trace that does not fit, tell what it takes."""
    keep_freed(estimate(sizes).whole < ROOMY)
    give_back()
    need = check(model, sizes, memory_limit)
    if on_estimate is not None:
        on_estimate(need)


def _fits(model: ReplacementModel, positions: int) -> bool:
    """Whether all attention patterns of a prompt stay below the limit."""
    heads = sum(len(block.output) for block in model.host.blocks)
    return heads * positions**2 * model.dtype.itemsize <= PATTERNS


def _position(position: int, count: int) -> int:
    if not -count <= position < count:
        raise TraceError(
            f"position is {position}, but the prompt has {count} tokens: expected {-count} to "
            f"{count - 1}"
        )
    return position % count


def _target_name(target: Target) -> str | int | dict[str, Any]:
    if isinstance(target, Difference):
        return {"difference": [target.a, target.b], "weight": target.weight}
    if isinstance(target, Direction):
        named = {"direction": target.label, "weight": target.weight, "layer": target.layer}
        return named if target.site is None else named | {"site": str(target.site)}
    return target


def _sweep_all(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    logits: LogitTargets,
    plan: Plan,
) -> Traced:
    """Sweep the logit rows, then features block by block; an interruption keeps what is done."""
    done: list[FinishedRows] = []
    complete, held = True, 0
    try:
        for block in _blocks(model, recording, local, logits, plan):
            done.append(block)
            held += block.effects.data.nbytes
            if held > SPARE:
                give_back()
                held = 0
            if plan.progress is not None:
                plan.progress(sum(len(one.columns) for one in done), plan.features)
    except KeyboardInterrupt:
        if not (plan.keep_partial and done):
            raise
        complete = False
    return Traced(
        columns=np.concatenate([block.columns for block in done]),
        effects=[block.effects for block in done],
        constant=np.concatenate([block.constant for block in done]),
        value=np.concatenate([block.value for block in done]),
        floored=np.concatenate([block.floored for block in done]),
        sum=np.concatenate([block.sum for block in done]),
        total=np.concatenate([block.total for block in done]),
        complete=complete,
    )


def _blocks(
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
    index = np.broadcast_to(reach.astype(np.int32), tuple(part.shape))
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
