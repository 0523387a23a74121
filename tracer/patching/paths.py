"""Path patching along an edge of a graph: what one node does through one other node alone."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from graphs import AttributionGraph, NodeKind
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.interventions.intervene import intervene
from tracer.interventions.values import Intervention
from tracer.patching.metrics import Metric


@one_call()
@torch.no_grad()
def path_patch(
    model: ReplacementModel,
    graph: AttributionGraph,
    edges: Sequence[tuple[str, str]],
    metric: Metric,
    scale: float = 0.0,
) -> pa.Table:
    """Change a feature, let only one other node see it, and measure what follows.

    The sender is changed in mode "direct", with all else frozen, to find the receiver's new
    activation; the receiver is then set to it in mode "free". A logit receives the change itself:
    there the metric is taken from the direct run.

    Args:
        model: the model the graph was traced from.
        graph: names the nodes.
        edges: (sender, receiver) ids; senders are features, receivers features or logits.
        metric: of the next token's logits.
        scale: factor on the sender's activation; 0 removes it.

    Returns:
        One row an edge: sender, receiver, activation and patched_activation of the receiver (null
        for logits), before, after, effect.

    Raises:
        TraceError: an id that is not in the graph, or of a kind that cannot send or receive.

    Source: Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching".
    """
    about = graph.metadata
    tokens = about["token_ids"][: about["position"] + 1]
    nodes = {node["id"]: node for node in graph.nodes.to_pylist()}
    rows = []
    for sender, receiver in edges:
        start = _node(nodes, sender, (NodeKind.FEATURE,))
        end = _node(nodes, receiver, (NodeKind.FEATURE, NodeKind.LOGIT))
        change = intervene(model, tokens, [_scaled(start, scale)], "direct")
        before = float(metric(model.record(tokens).logits[-1:])[0])
        row = {"sender": sender, "receiver": receiver, "before": before}
        if end["kind"] == NodeKind.LOGIT:
            row |= {"activation": None, "patched_activation": None}
            after = float(metric(change.logits[-1:])[0])
        else:
            place = (end["layer"], end["position"], end["feature"])
            value = float(change.activations[place])
            row |= {"activation": float(change.base.activations[place])}
            row |= {"patched_activation": value}
            patched = intervene(model, tokens, [_set(end, value)], "free")
            after = float(metric(patched.logits[-1:])[0])
        rows.append(row | {"after": after, "effect": after - before})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("sender", pa.string()),
        ("receiver", pa.string()),
        *(
            (name, pa.float64())
            for name in ("activation", "patched_activation", "before", "after", "effect")
        ),
    ]
)


def _node(
    nodes: dict[str, dict[str, Any]], name: str, kinds: tuple[NodeKind, ...]
) -> dict[str, Any]:
    if name not in nodes:
        raise TraceError(f"no node has the id {name!r}: take ids from the column 'id'")
    if nodes[name]["kind"] not in kinds:
        raise TraceError(
            f"node {name!r} is of kind {nodes[name]['kind']}, expected {' or '.join(kinds)}"
        )
    return nodes[name]


def _place(node: dict[str, Any]) -> dict[str, Any]:
    return {name: node[name] for name in ("layer", "position", "feature")}


def _scaled(node: dict[str, Any], scale: float) -> Intervention:
    return Intervention(**_place(node), scale=scale)


def _set(node: dict[str, Any], value: float) -> Intervention:
    return Intervention(**_place(node), value=value)
