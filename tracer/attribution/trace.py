"""Trace a prompt: record, linearise, sweep the logits and then the features, build the graph."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from graphs import AttributionGraph
from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import eager_attention
from replacement_models.process import one_call
from replacement_models.speed.allocator import give_back, keep_freed
from tracer.attention.steering import keep_attention as keeping_attention
from tracer.attribution import product
from tracer.attribution.assemble import Traced, assemble, metadata
from tracer.attribution.blocks import Plan, Progress, finished_blocks
from tracer.attribution.finished import FinishedRows, Sums
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.memory import (
    Estimate,
    check,
    estimate,
    rows_bytes,
    sizes_of,
    with_room_to_rank,
    with_rows_on_disk,
)
from tracer.attribution.sizes import PATTERNS, Sizes
from tracer.attribution.skip_alone import skip_alone
from tracer.attribution.spill import Spill, spilled
from tracer.attribution.targets import (
    LogitTargets,
    Target,
    logit_targets,
    target_name,
)
from tracer.attribution.tensor_cores import on_tensor_cores, said_of_cores
from tracer.errors import TraceError
from tracer.features.beside import store_of
from tracer.features.labels.on_nodes import with_labels
from tracer.features.store import FeatureStore
from tracer.interrupts import stopped_once
from tracer.nothing_aside import nothing_aside

SPARE = 1 << 24
"""Bytes of finished effects after which memory that was freed on the way is given back."""
ROOMY = 1e9
"""Bytes below which a trace keeps what it frees for its next tensor."""


@one_call()
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
    tensor_cores: str | None = None,
    products: Mapping[str, str] | None = None,
    memory_limit: float | None = None,
    spill_above: float = 1.0,
    store: FeatureStore | str | Path | None = None,
    keep_attention: bool = False,
    on_recording: Callable[[Recording], None] | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    on_graph: Callable[[AttributionGraph], AttributionGraph] | None = None,
    progress: Progress | None = None,
    keep_partial: bool = False,
) -> AttributionGraph:
    """Attribution graph of one prompt: every direct effect between its active features.

    Calls in several threads wait for each other; a call leaves the process as it found it.

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
            kernel compiled at first use (native/); effects differ by 1e-5 of the largest.
        tensor_cores: make float32 products of the sweep on an NVIDIA GPU's tensor cores: "tf32", or
            "3xtf32" for three of them, nearly as exact as float32; None makes them in float32. The
            metadata say under `tensor_cores` how far the targets' effects differ for it.
        products: the way that each class of large float32 products goes on the CPU, as
            `metadata["versions"]["products"]` of a graph has it: on the same machine the same bytes
            again; None, and for classes that it leaves out, is what is fastest here, measured once.
        memory_limit: gigabytes (10^9 bytes) that tracing may take once the prompt is recorded;
            None is what the model's device has free, infinity never refuses.
        spill_above: gigabytes that a trace must be estimated to take for its rows to go to disk as
            they are made (in the cache folder, `XDG_CACHE_HOME`), as they do where they would not
            fit in memory; the same trace again, after the process was killed, then goes on where it
            was. Infinity never writes.
        store: feature store, or its folder, whose labels the nodes get; None is the one that stands
            beside the dictionary (`FOLDER.features`), if any.
        keep_attention: find out what steers attention as well (`tracer.keep_attention`), in about
            three more sweeps, so that pruning keeps it; not of an interrupted trace.
        on_recording: called with the forward pass that is traced, which ends at `position` and has
            the logits there.
        on_estimate: called with the memory that tracing will take, before it starts.
        on_graph: called with the graph before it gets the labels of a store; what it returns gets
            them, as `AttributionGraph.prune` does for what is left.
        progress: called after every block of rows.
        keep_partial: when interrupted (Ctrl-C or SIGTERM, in the main thread), return the graph of
            the rows finished so far; its metadata says `partial`. Further signals wait for it.

    Returns:
        The unpruned graph, or what `on_graph` made of it, edges in units of the target's
        pre-activation or logit.

    Raises:
        TraceError: an argument is out of range, `store` is another dictionary's, a target cannot be
            resolved, split products, tensor cores or `products` cannot be had, or memory will not
            do: the message says how much is needed and what would fit, the error's `proposals` in
            parts.
        ModelError: the prompt does not fit the model.

    Source: Ameisen et al. 2025, "Circuit Tracing".
    """
    splitting = product.split_products() if split_products else nullcontext()
    cores = on_tensor_cores(tensor_cores, model.device, model.dtype)
    noting = product.noted_products(products)
    tokens = model.tokenize(prompt)
    _check_counts(max_features, rank_every, skip_positions)
    _check_amounts(edge_floor, memory_limit, spill_above)
    last = _position(position, len(tokens))
    known, refused = store_of(model, store)
    with stopped_once() if keep_partial else nullcontext(), noting as used:
        keep = _fits(model, last + 1) if recompute_patterns is None else not recompute_patterns
        recording = model.record(tokens[: last + 1], keep_patterns=keep, last_logits=True)
        if on_recording is not None:
            on_recording(recording)
        logits = logit_targets(model, recording, targets, max_logits, logit_mass)
        sizes = sizes_of(
            model,
            recording,
            skip_positions=skip_positions,
            logits=len(logits.rows),
            max_features=max_features,
            rank_every=rank_every,
            edge_floor=edge_floor,
        )
        sizes = replace(sizes, keep_attention=keep_attention)
        sizes = _make_room(model, sizes, (memory_limit, spill_above), on_estimate)
        bare = skip_alone(model, recording, logits, skip_positions)
        local = linearise(model, recording, skip_positions, sizes.explained)
        give_back()
        plan = Plan(
            features=sizes.explained,
            rank_every=sizes.rank_every,
            edge_floor=edge_floor,
            progress=progress,
            keep_partial=keep_partial,
            ranked_there=sizes.ranked_there,
        )
        settings = {
            "max_features": max_features,
            "rank_every": rank_every,
            "max_logits": max_logits,
            "logit_mass": logit_mass,
            "targets": None if targets is None else [target_name(target) for target in targets],
            "position": position,
            "skip_positions": skip_positions,
            "edge_floor": edge_floor,
            "recompute_patterns": recompute_patterns,
            "split_products": split_products,
            **({} if tensor_cores is None else {"tensor_cores": tensor_cores}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
        what = [settings, products, sizes.explained, sizes.rank_every]
        aside: AbstractContextManager[Spill | None] = nullcontext()
        if sizes.on_disk:
            aside = spilled(model, recording, local, (logits.rows, what), rows_bytes(sizes))
        # Eager attention is for patterns made anew, from several threads.
        with aside as spill:
            with eager_attention(model.host.model), splitting, cores:
                traced = _sweep_all(model, recording, local, logits, plan, spill)
            whole = traced.complete
            about = metadata(model, prompt, tokens, settings) | bare
            about |= said_of_cores(tensor_cores, local, logits.rows)
            graph = assemble(model, local, logits, traced, about)
            if spill is not None and whole:
                spill.done()
    if keep_attention and "partial" not in graph.metadata:
        graph = keeping_attention(model, graph)
    graph = _labelled(graph if on_graph is None else on_graph(graph), known, refused)
    # Labels made products of their own.
    graph.metadata["versions"]["products"] = dict(sorted(used.items()))
    return graph


def _labelled(
    graph: AttributionGraph, known: FeatureStore | None, refused: str | None
) -> AttributionGraph:
    """With the labels of a store, or word of why one has none for it."""
    if known is not None:
        return with_labels(graph, known)
    if refused:
        graph.metadata["labels_refused"] = refused
    return graph


def _check_counts(max_features: int | None, rank_every: int | None, skip_positions: int) -> None:
    for name, count, least in (
        ("max_features", max_features, 0),
        ("rank_every", rank_every, 1),
        ("skip_positions", skip_positions, 0),
    ):
        if count is not None and count < least:
            raise TraceError(f"{name} is {count}, expected {least} or more")


def _check_amounts(edge_floor: float, memory_limit: float | None, spill_above: float) -> None:
    if not spill_above >= 0:
        raise TraceError(f"spill_above is {spill_above} GB, expected 0 or more")
    if not 0 <= edge_floor < 1:
        raise TraceError(f"edge_floor is {edge_floor}, expected a share from 0 to below 1")
    if memory_limit is not None and not memory_limit > 0:
        raise TraceError(f"memory_limit is {memory_limit} GB, expected more than 0")


def _make_room(
    model: ReplacementModel,
    sizes: Sizes,
    limits: tuple[float | None, float],
    on_estimate: Callable[[Estimate], None] | None,
) -> Sizes:
    """Settle what becomes of freed memory and of finished rows; refuse what does not fit.

    Args:
        model: what is traced.
        sizes: what was recorded.
        limits: gigabytes that may be taken, and from which on rows go to disk.
        on_estimate: told of the memory that will be taken.
    """
    if sizes.keep_attention:
        nothing_aside(model, "keep_attention")
    memory_limit, spill_above = limits
    sizes = with_room_to_rank(model, sizes, memory_limit)
    sizes = with_rows_on_disk(model, sizes, memory_limit, spill_above)
    if sizes.on_cpu:
        expected = estimate(sizes).whole
        keep_freed(expected < ROOMY, expected)
        give_back()
    need = check(model, sizes, memory_limit)
    if on_estimate is not None:
        on_estimate(need)
    return sizes


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


def _sweep_all(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    logits: LogitTargets,
    plan: Plan,
    spill: Spill | None,
) -> Traced:
    """Sweep the logit rows, then features block by block; an interruption keeps what is done."""
    done: list[FinishedRows] = []
    complete, held = True, 0
    try:
        for block in finished_blocks(model, recording, local, logits, plan, spill):
            done.append(block)
            held += sum(run.nbytes for run in block.effects)
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
        effects=[run for block in done for run in block.effects],
        constant=np.concatenate([block.constant for block in done]),
        value=np.concatenate([block.value for block in done]),
        sums=Sums.joined([block.sums for block in done]),
        complete=complete,
    )
