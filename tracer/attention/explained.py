"""A graph beside the model it was traced from, ready for questions about attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from graphs import AttributionGraph, NodeKind
from graphs.schema import is_kind
from replacement_models import Recording, ReplacementModel
from tracer.attention.queries_keys import QueryKeyMap, query_key_maps
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.sizes import PATTERNS
from tracer.attribution.targets import Difference, Target, TargetRows, feature_rows, logit_targets
from tracer.errors import TraceError
from tracer.nothing_aside import nothing_aside

ANSWERS = "what attention has to do with edges"
"""Loadings, chains and explanations of heads, first-order effects, `keep_attention`."""


@dataclass(frozen=True, eq=False)
class Explained:
    """A graph, its prompt recorded again, and the local model in which gradients go everywhere."""

    model: ReplacementModel
    graph: AttributionGraph
    recording: Recording
    local: LocalModel

    @cached_property
    def ids(self) -> list[str]:
        """Node id of every column of the local model, nodes of the graph or not."""
        local, found = self.local, []
        for layer, position, feature in zip(*self.local.table, strict=True):
            found.append(f"{layer}_{feature}_{position}")
        for layer in range(len(local.layers)):
            found += [f"{layer}_-1_{position}" for position in range(local.positions)]
        return found + [f"E_{token}_{position}" for position, token in enumerate(local.tokens)]

    @cached_property
    def column(self) -> dict[str, int]:
        """Column of every node id."""
        return {name: column for column, name in enumerate(self.ids)}

    @cached_property
    def position(self) -> Int[np.ndarray, " columns"]:
        """Where the source of every column stands."""
        features = len(self.local.features)
        found = (np.arange(self.local.columns) - features) % self.local.positions
        found[:features] = self.local.table[1]
        return found

    @cached_property
    def logits(self) -> dict[str, int]:
        """Number of every target of the graph, by node id."""
        nodes = self.graph.nodes
        names = zip(nodes["id"].to_pylist(), nodes["kind"].to_pylist(), strict=True)
        found = [name for name, kind in names if kind == NodeKind.LOGIT]
        return {name: number for number, name in enumerate(found)}

    def rows(self, ids: Sequence[str]) -> TargetRows:
        """Rows of some features and logits of the graph, in the order given.

        Raises:
            TraceError: a node is neither, or a logit whose vector no graph stores.
        """
        features = [(place, name) for place, name in enumerate(ids) if name not in self.logits]
        logits = [(place, name) for place, name in enumerate(ids) if name in self.logits]
        for _, name in features:
            if self.column.get(name, self.local.columns) >= len(self.local.features):
                raise TraceError(f"node {name!r} has no inputs; give a feature or a logit")
        columns = np.array([self.column[name] for _, name in features], dtype=np.int64)
        parts = [feature_rows(self.model, self.recording, self.local, columns)]
        if logits:
            wanted = [self._target(name) for _, name in logits]
            parts.append(logit_targets(self.model, self.recording, wanted, 1, 1.0).rows)
        order = np.array([place for place, _ in (*features, *logits)], dtype=np.int64)
        return _joined(parts)[np.argsort(order)]

    def _target(self, name: str) -> Target:
        """What a logit node explains."""
        number = self.logits[name]
        row = self.graph.nodes["id"].to_pylist().index(name)
        token = self.graph.nodes["token"][row].as_py()
        if token is not None:
            return int(token)
        wanted = (self.graph.metadata["settings"].get("targets") or [])[number]
        if isinstance(wanted, dict) and "difference" in wanted:
            return Difference(*wanted["difference"])
        raise TraceError(
            f"target {name} is a direction, which graphs do not store; choose edges into other "
            "targets, or trace tokens or differences"
        )

    def query_keys(self, layers: Sequence[int]) -> dict[int, QueryKeyMap]:
        """Attention of some layers, as far as its scores."""
        recording = self.recording
        scales = [layer.attention_scale for layer in recording.layers]
        return query_key_maps(self.model, recording.tokens, layers, recording.residuals, scales)


def _joined(parts: Sequence[TargetRows]) -> TargetRows:
    return TargetRows(
        site=np.concatenate([part.site for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        vector=torch.cat([part.vector for part in parts]),
        bias=torch.cat([part.bias for part in parts]),
        value=torch.cat([part.value for part in parts]),
    )


def explained(model: ReplacementModel, graph: AttributionGraph) -> Explained:
    """Record a graph's prompt again, and linearise it.

    Raises:
        TraceError: the graph is of another model or dictionary, or the model's shared blocks stand
            aside of the stream.
    """
    check_model(model, graph)
    nothing_aside(model, ANSWERS)
    about = graph.metadata
    tokens = about["token_ids"][: about["position"] + 1]
    heads = sum(len(block.output) for block in model.host.blocks)
    keep = heads * len(tokens) ** 2 * model.dtype.itemsize <= PATTERNS
    recording = model.record(tokens, keep_patterns=keep, last_logits=True)
    skipped = int(about["settings"]["skip_positions"])
    rows = int(np.count_nonzero(is_kind(graph.nodes, NodeKind.FEATURE)))
    local = linearise(model, recording, skipped, rows, plain=True)
    return Explained(model, graph, recording, local)


def check_model(model: ReplacementModel, graph: AttributionGraph) -> None:
    """Refuse a graph of another model.

    Raises:
        TraceError: name or dictionary differ, or the graph was not traced here.
    """
    about = graph.metadata
    for name, ours in (("model", model.name), ("transcoders_hash", model.transcoder_hash)):
        if about.get(name) != ours:
            raise TraceError(
                f"graph has {name} {about.get(name)!r}, but the model's is {ours!r}; load the "
                "model it was traced from"
            )
    for name in ("token_ids", "position", "settings"):
        if name not in about:
            raise TraceError(f"graph does not say its {name}; give one that tracer traced")


def chosen_layer(model: ReplacementModel, layer: int) -> int:
    """Check a layer.

    Raises:
        TraceError: the model has none of that number.
    """
    layers = len(model.host.blocks)
    if not 0 <= layer < layers:
        raise TraceError(f"layer {layer} does not exist, expected 0..{layers - 1}")
    return layer


def chosen_head(model: ReplacementModel, layer: int, head: int) -> int:
    """Check a head of a layer.

    Raises:
        TraceError: the layer has none of that number.
    """
    heads = len(model.host.blocks[layer].output)
    if not 0 <= head < heads:
        raise TraceError(f"head {layer}.{head} does not exist: layer {layer} has 0..{heads - 1}")
    return head


def chosen_position(positions: int, position: int, name: str) -> int:
    """Check a position, and count negative ones from the end.

    Raises:
        TraceError: the prompt has no such position.
    """
    if not -positions <= position < positions:
        raise TraceError(
            f"{name} is position {position}, but the prompt has {positions} up to the one "
            f"explained: expected {-positions}..{positions - 1}"
        )
    return position % positions


def pulled_to_stream(found: Explained, layer: int, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of what a layer's attention reads, pulled back through the norm in front of it.

    Returns:
        The gradients (rows, positions, d_model), and what the norm's bias contributes (rows,).
    """
    norm = found.model.host.blocks[layer].attention_norm
    if norm is None:
        return gradient, gradient.new_zeros(len(gradient))
    bias = gradient.new_zeros(len(gradient))
    if norm.bias is not None:
        bias = (gradient @ norm.bias).sum(1)
    scale = found.recording.layers[layer].attention_scale
    return norm.centre(gradient * norm.weight) / scale, bias
