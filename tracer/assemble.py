"""From finished rows to an attribution graph: nodes in computation order, effects between them."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from graphs import AttributionGraph, NodeKind
from replacement_models import ReplacementModel
from tracer.labels import labelled
from tracer.linear import LocalModel
from tracer.targets import LogitTargets


@dataclass(frozen=True, eq=False)
class Traced:
    """Finished rows: logits first, then features in the order they were taken."""

    columns: Int[np.ndarray, " features"]
    """Column of every feature row, in row order."""
    effects: sparse.csr_array
    """(rows, columns of the local model)."""
    constant: Float[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]
    """What the forward pass recorded for each row."""
    floored: Float[np.ndarray, "rows 2"]
    """What an edge floor dropped from each row: the sum, and the sum of sizes."""
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
    left_out = np.ones(local.columns)
    left_out[len(local.features) :] = 0
    left_out[traced.columns] = 0
    exact = traced.effects.astype(np.float64)
    by_row = {
        "constant": traced.constant,
        "left_out": exact @ left_out + traced.floored[:, 0],
        "left_out_absolute": abs(exact) @ left_out + traced.floored[:, 1],
        "pre_activation": traced.value,
    }
    for name, values in by_row.items():
        nodes[name] = [float(values[row]) if row >= 0 else None for row in places.row]
    found = {
        "active_features": len(local.features),
        "conservation": _conservation(traced, exact, places, nodes["id"]),
        **_losses(traced, exact),
    }
    floored = np.where(places.row >= 0, traced.floored[places.row, 1], 0.0)
    graph = AttributionGraph.build(nodes, _effect(traced, places), metadata | found, lost=floored)
    return graph.relabel(labelled(graph, model, local))


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
        "model": model.name,
        "model_revision": model.revision,
        "transcoders": model.transcoder_name,
        "transcoders_hash": model.transcoder_hash,
        "settings": settings,
        "versions": {
            "tracer": _version("tracer"),
            "torch": torch.__version__,
            "transformers": _version("transformers"),
            "python": platform.python_version(),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _places(local: LocalModel, logits: LogitTargets, traced: Traced) -> Places:
    """Tokens; layer by layer features, then errors; logits."""
    found = local.features
    layer, position, feature = (
        part.cpu().numpy()[traced.columns] for part in (found.layer, found.position, found.feature)
    )
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


def _effect(traced: Traced, places: Places) -> sparse.csr_array:
    """(nodes, nodes), rows and columns in node order."""
    nodes = len(places.column)
    targets = np.flatnonzero(places.row >= 0)
    sources = np.flatnonzero(places.column >= 0)
    between = traced.effects[places.row[targets]][:, places.column[sources]]
    between.sort_indices()
    counts = np.zeros(nodes + 1, dtype=np.int64)
    counts[targets + 1] = np.diff(between.indptr)
    return sparse.csr_array(
        (between.data, sources[between.indices], np.cumsum(counts)), shape=(nodes, nodes)
    )


def _conservation(
    traced: Traced, exact: sparse.csr_array, places: Places, ids: list[str]
) -> dict[str, Any]:
    """The worst row of the conservation law: inputs and constant against the forward pass."""
    total = exact.sum(axis=1) + traced.floored[:, 0] + traced.constant
    wrong = np.abs(total - traced.value)
    worst = int(wrong.argmax())
    size = float(np.abs(traced.value).max())
    node = int(np.flatnonzero(places.row == worst)[0])
    return {
        "worst": float(wrong[worst]),
        "relative": float(wrong[worst]) / size if size else 0.0,
        "node": ids[node],
    }


def _losses(traced: Traced, exact: sparse.csr_array) -> dict[str, Any]:
    """What a graph with an edge floor or an interrupted trace must say of itself."""
    found: dict[str, Any] = {}
    dropped, kept = float(traced.floored[:, 1].sum()), float(abs(exact).sum())
    if dropped:
        found["floored_share"] = dropped / (dropped + kept)
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
    names = ("id", "kind", "layer", "position", "feature", "token", "text", "label")
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
        position=last,
        token=list(logits.token),
        text=list(logits.label),
        label=list(logits.label),
        probability=list(logits.weight),
    )
