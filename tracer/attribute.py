"""Trace a prompt: record, linearise, sweep the logits and then the features, build the graph."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy import sparse

from graphs import AttributionGraph
from replacement_models import Recording, ReplacementModel
from tracer.assemble import Traced, assemble, metadata
from tracer.errors import TraceError
from tracer.frontier import Frontier
from tracer.linear import LocalModel, linearise
from tracer.sweep import sweep
from tracer.targets import (
    Difference,
    Direction,
    LogitTargets,
    Rows,
    Target,
    feature_rows,
    logit_targets,
)

BLOCK = 512
"""Rows held dense at once; finished blocks are kept sparse."""
PATTERNS = 1 << 30
"""Bytes of attention patterns kept in memory; beyond, they are made anew layer by layer."""


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

    Returns:
        The unpruned graph, edges in units of the target's pre-activation or logit.

    Raises:
        TraceError: an argument is out of range, or a target cannot be resolved.
        ModelError: the prompt does not fit the model.

    Source: Ameisen et al. 2025, "Circuit Tracing".
    """
    tokens = model.tokenize(prompt)
    _check_counts(max_features, rank_every, skip_positions)
    last = _position(position, len(tokens))
    recording = model.record(tokens[: last + 1], keep_patterns=_fits(model, last + 1))
    logits = logit_targets(model, recording, targets, max_logits, logit_mass)
    local = linearise(model, recording, skip_positions)
    traced = _sweep_all(model, recording, local, logits, (max_features, rank_every))
    settings = {
        "max_features": max_features,
        "rank_every": rank_every,
        "max_logits": max_logits,
        "logit_mass": logit_mass,
        "targets": None if targets is None else [_target_name(target) for target in targets],
        "position": position,
        "skip_positions": skip_positions,
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
        return {"direction": target.label, "weight": target.weight, "layer": target.layer}
    return target


def _sweep_all(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    logits: LogitTargets,
    cap: tuple[int | None, int | None],
) -> Traced:
    """Sweep the logit rows, then features block by block, ranked where there is a cap."""
    features = local.features
    order = _reference_order(local)
    limit = min(len(features), len(features) if cap[0] is None else cap[0])
    ranked = limit < len(features)
    every = cap[1] or max(64, math.ceil(limit / 8))
    frontier = Frontier.over(order)
    parts = [_block(local, logits.rows)]
    if ranked:
        frontier.add(parts[0][0], *_own(logits.rows), np.array(logits.weight))
    columns: list[np.ndarray] = []
    while (done := sum(map(len, columns))) < limit:
        take = min(every if ranked else BLOCK, limit - done)
        chosen = frontier.next(take) if ranked else order[done : done + take]
        for begin in range(0, len(chosen), BLOCK):
            block = chosen[begin : begin + BLOCK]
            at = torch.as_tensor(block, device=features.layer.device)
            rows = feature_rows(model, recording, local, at)
            parts.append(_block(local, rows))
            columns.append(block)
            if ranked:
                frontier.add(parts[-1][0], *_own(rows, block), np.zeros(len(block)))
    return Traced(
        np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64),
        sparse.csr_array(sparse.vstack([effects for effects, _, _ in parts], format="csr")),
        np.concatenate([constant for _, constant, _ in parts]),
        np.concatenate([value for _, _, value in parts]),
    )


def _block(local: LocalModel, rows: Rows) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    effects = sweep(local, rows)
    return (
        sparse.csr_array(effects.sources.cpu().numpy()),
        effects.constant.double().cpu().numpy(),
        rows.value.double().cpu().numpy(),
    )


def _own(rows: Rows, columns: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sites of some rows and the columns of their own nodes, -1 for logits."""
    site = rows.site.cpu().numpy()
    return site, np.full(len(site), -1) if columns is None else columns


def _reference_order(local: LocalModel) -> Int[np.ndarray, " features"]:
    """Feature columns in the order (layer, position, feature)."""
    found = local.features
    layer, position, feature = (
        part.cpu().numpy() for part in (found.layer, found.position, found.feature)
    )
    return np.lexsort((feature, position, layer))
