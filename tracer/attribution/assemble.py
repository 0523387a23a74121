"""From finished rows to an attribution graph: nodes in computation order, effects between them."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from graphs import AttributionGraph, NodeKind
from replacement_models import ReplacementModel
from replacement_models.sites import Site, Stage
from replacement_models.speed.allocator import give_back
from tracer.attribution.finished import RowRun, Sums
from tracer.attribution.local_model import LocalModel
from tracer.attribution.sizes import Sizes
from tracer.attribution.targets import LogitTargets
from tracer.features.promoted import labelled

NODE, ACTIVE = 1500, 400
"""Bytes that one node, and one active feature, take in tables and lists. Measured."""
BUILD = 19
"""Bytes an edge that checking a graph and its first influence take beside two copies. Measured."""
GATHER = 24
"""Bytes an entry of one block while it is brought into node order."""


@dataclass(frozen=True, eq=False)
class Traced:
    """Finished rows: logits first, then features in the order they were taken."""

    columns: Int[np.ndarray, " features"]
    """Column of every feature row, in row order."""
    effects: list[RowRun]
    """All rows. `assemble` empties the list, so that they are not held twice."""
    constant: Float[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]
    """What the forward pass recorded for each row."""
    sums: Sums
    complete: bool = True
    """False when the trace was interrupted."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where every node of the graph stands in the sweep's numbering."""

    column: Int[np.ndarray, " nodes"]
    """Column as a source; -1 for logits."""
    row: Int[np.ndarray, " nodes"]
    """Row as a target; -1 for tokens and errors."""


def assemble(
    model: ReplacementModel,
    local: LocalModel,
    logits: LogitTargets,
    traced: Traced,
    metadata: dict[str, Any],
) -> AttributionGraph:
    """Build the graph of some finished rows; features without a row are left out.

    Args:
        model: what was traced.
        local: its local model.
        logits: the logit nodes.
        traced: the rows.
        metadata: as `metadata` made it; conservation and feature count are added.
    """
    places = _places(local, logits, traced)
    texts = metadata["tokens"]
    nodes = _nodes(model, local, logits, places, texts)
    effect, left_out = _effect(local, traced, places)
    give_back()
    by_row = {
        "constant": traced.constant,
        "left_out": left_out[:, 0],
        "left_out_absolute": left_out[:, 1],
        "pre_activation": traced.value,
    }
    for name, values in by_row.items():
        nodes[name] = [float(values[row]) if row >= 0 else None for row in places.row]
    found = {
        "active_features": len(local.features),
        "conservation": _conservation(traced, places, nodes["id"]),
        **_losses(traced),
    }
    floored = np.where(places.row >= 0, traced.sums.floored[places.row, 1], 0.0)
    graph = AttributionGraph.build(nodes, effect, metadata | found, lost=floored)
    return graph.relabel(labelled(graph, model, local, places.column))


def metadata(
    model: ReplacementModel,
    prompt: str | Sequence[int],
    tokens: Sequence[int],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What a graph says of how it was made."""
    texts = [model.token_string(token) for token in tokens]
    return {
        "prompt": prompt if isinstance(prompt, str) else "".join(texts),
        "tokens": texts,
        "token_ids": list(tokens),
        "position": settings["position"] % len(tokens),
        "layers": len(model.host.blocks),
        "vocabulary": model.host.vocabulary,
        **names(model),
        "settings": settings,
        "versions": versions(),
    }


def names(model: ReplacementModel) -> dict[str, str]:
    """What a graph says of which model and dictionary it is of."""
    return {
        "model": model.name,
        "model_revision": model.revision,
        "transcoders": model.transcoder_name,
        "transcoders_hash": model.transcoder_hash,
        **({"elsewhere": model.elsewhere} if model.elsewhere else {}),
        **_held(model),
    }


def versions() -> dict[str, Any]:
    """Of the programs that a trace goes through."""
    return {
        "tracer": version_of("tracer"),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "python": platform.python_version(),
    }


def _held(model: ReplacementModel) -> dict[str, Any]:
    """Layers whose decay and gates are held with the pattern; nothing for softmax alone."""
    blocks = list(enumerate(model.host.blocks))
    kernels = [layer for layer, block in blocks if block.by_kernel]
    factors = [layer for layer, block in blocks if not (block.plain or block.by_kernel)]
    return {"held": {"kernels": kernels, "factors": factors}} if kernels or factors else {}


@cache
def version_of(package: str) -> str:
    """The version of a package, in words where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _places(local: LocalModel, logits: LogitTargets, traced: Traced) -> Places:
    """Tokens; layer by layer features, then errors; logits."""
    layer, position, feature = (part[traced.columns] for part in local.table)
    order = np.lexsort((feature, position, layer))
    counted = range(local.skip_positions, local.positions)
    column = [np.array([local.token_column(p) for p in range(local.positions)])]
    row = [np.full(local.positions, -1)]
    for index in range(len(local.layers)):
        here = order[layer[order] == index]
        errors = np.array([local.error_column(index, p) for p in counted], dtype=np.int64)
        column += [traced.columns[here], errors]
        row += [len(logits.token) + here, np.full(len(errors), -1)]
    column.append(np.full(len(logits.token), -1))
    row.append(np.arange(len(logits.token)))
    return Places(np.concatenate(column), np.concatenate(row))


def _effect(
    local: LocalModel, traced: Traced, places: Places
) -> tuple[sparse.csr_array, Float[np.ndarray, "rows 2"]]:
    """(nodes, nodes), rows and columns in node order; what the rows lost, and its size.

    Uses up the effects.
    """
    nodes = len(places.column)
    node = np.full(local.columns, -1, dtype=np.int32)
    sources = np.flatnonzero(places.column >= 0)
    node[places.column[sources]] = sources
    kept: list[sparse.csr_array] = []
    sums = []
    while traced.effects:
        rows = traced.effects.pop(0).among(node, nodes)
        kept.append(rows.effects)
        lossy = np.full(len(rows.signed), not rows.whole)
        sums.append(np.stack([rows.signed, rows.absolute, lossy], axis=1))
    signed, absolute, lossy = np.concatenate(sums).T
    of = traced.sums
    left_out = np.stack([of.signed - signed, of.absolute - absolute], axis=1)
    nothing = (lossy == 0) & (of.floored[:, 1] == 0)
    return _ordered(kept, places.row, nodes), np.where(nothing[:, None], 0.0, left_out)


def _ordered(kept: list[sparse.csr_array], row: np.ndarray, nodes: int) -> sparse.csr_array:
    """Bring rows into node order. Uses up `kept`."""
    targets = np.flatnonzero(row >= 0)
    target = np.empty(len(targets), dtype=np.int64)
    target[row[targets]] = targets
    start = np.zeros(nodes + 1, dtype=np.int64)
    start[target + 1] = np.concatenate([np.diff(rows.indptr) for rows in kept])
    start = start.cumsum()
    data = np.empty(start[-1], dtype=kept[0].data.dtype)
    index = np.empty(start[-1], dtype=np.int32)
    done = 0
    while kept:
        rows = kept.pop(0)
        ends = rows.indptr[1:]
        for at, begin, end in zip(target[done:], rows.indptr, ends, strict=False):
            here = slice(start[at], start[at] + end - begin)
            data[here], index[here] = rows.data[begin:end], rows.indices[begin:end]
        done += len(ends)
    few = start[-1] < np.iinfo(np.int32).max
    start = start.astype(np.int32) if few else start
    return sparse.csr_array((data, index, start), shape=(nodes, nodes))


def _conservation(traced: Traced, places: Places, ids: list[str]) -> dict[str, Any]:
    """The worst row of the conservation law: inputs and constant against the forward pass."""
    wrong = np.abs(traced.sums.signed + traced.constant - traced.value)
    worst = int(wrong.argmax())
    size = float(np.abs(traced.value).max())
    node = int(np.flatnonzero(places.row == worst)[0])
    return {
        "worst": float(wrong[worst]),
        "relative": float(wrong[worst]) / size if size else 0.0,
        "node": ids[node],
    }


def _losses(traced: Traced) -> dict[str, Any]:
    """What a graph with an edge floor or an interrupted trace must say of itself."""
    found: dict[str, Any] = {}
    dropped = float(traced.sums.floored[:, 1].sum())
    if dropped:
        found["floored_share"] = dropped / float(traced.sums.absolute.sum())
    if not traced.complete:
        found["partial"] = {"features": len(traced.columns)}
    return found


def _nodes(
    model: ReplacementModel,
    local: LocalModel,
    logits: LogitTargets,
    places: Places,
    texts: list[str],
) -> dict[str, list[Any]]:
    """Columns that say what each node is."""
    parts = [_tokens(local, texts)]
    for layer in range(len(local.layers)):
        parts += [_features(local, places, layer, texts), _errors(local, layer, texts)]
    parts.append(_logits(model, local, logits))
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _part(count: int, kind: NodeKind, **columns: Any) -> dict[str, list[Any]]:
    """Node columns of one kind; a single value stands for all, what is missing is null."""
    names = ("id", "kind", "layer", "site", "position", "feature", "token", "text", "label")
    part = {"kind": kind.value, **columns}
    return {
        name: value if isinstance(value := part.get(name), list) else [value] * count
        for name in (*names, "activation", "probability")
    }


def _tokens(local: LocalModel, texts: list[str]) -> dict[str, list[Any]]:
    texts = texts[: local.positions]
    return _part(
        local.positions,
        NodeKind.EMBEDDING,
        id=[f"E_{token}_{position}" for position, token in enumerate(local.tokens)],
        layer=-1,
        site=str(Site.embed()),
        position=list(range(local.positions)),
        token=list(local.tokens),
        text=texts,
        label=texts,
    )


def _features(
    local: LocalModel, places: Places, layer: int, texts: list[str]
) -> dict[str, list[Any]]:
    features = places.column[(places.row >= 0) & (places.column >= 0)]
    at = torch.as_tensor(features, device=local.features.layer.device)
    at = at[local.features.layer[at] == layer]
    chosen = local.features[at]
    position, feature = chosen.position.tolist(), chosen.feature.tolist()
    return _part(
        len(at),
        NodeKind.FEATURE,
        id=[f"{layer}_{f}_{p}" for f, p in zip(feature, position, strict=True)],
        layer=layer,
        site=str(Site(layer, Stage.MLP_OUT)),
        position=position,
        feature=feature,
        text=[texts[p] for p in position],
        label=[f"· {texts[p].strip()}" for p in position],
        activation=chosen.activation.tolist(),
    )


def _errors(local: LocalModel, layer: int, texts: list[str]) -> dict[str, list[Any]]:
    position = list(range(local.skip_positions, local.positions))
    return _part(
        len(position),
        NodeKind.ERROR,
        id=[f"{layer}_-1_{p}" for p in position],
        layer=layer,
        site=str(Site(layer, Stage.MLP_OUT)),
        position=position,
        text=[texts[p] for p in position],
        label=[f"error · {texts[p].strip()}" for p in position],
    )


def _logits(
    model: ReplacementModel, local: LocalModel, logits: LogitTargets
) -> dict[str, list[Any]]:
    layers, last = len(local.layers), local.positions - 1
    numbers = [
        model.host.vocabulary + index if token is None else token
        for index, token in enumerate(logits.token)
    ]
    return _part(
        len(numbers),
        NodeKind.LOGIT,
        id=[f"{layers + 1}_{number}_{last}" for number in numbers],
        layer=layers,
        site=list(map(str, logits.site)),
        position=last,
        token=list(logits.token),
        text=list(logits.label),
        label=list(logits.label),
        probability=list(logits.weight),
    )


def table_bytes(sizes: Sizes) -> float:
    """Bytes of the node table and of lists of features."""
    others = sizes.logits + (sizes.layers + 1) * sizes.positions
    return float(sizes.active * ACTIVE + NODE * (sizes.explained + others))


def graph_bytes(edges: float, entry: int) -> float:
    """Bytes of a graph's edges while it is checked: two copies, and what its influence takes."""
    return edges * (2 * entry + BUILD)
