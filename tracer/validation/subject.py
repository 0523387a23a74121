"""What is validated: a graph, its model's recording of the same prompt, and the target's logit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graphs import AttributionGraph, NodeKind
from replacement_models import Recording, ReplacementModel
from tracer.attribution.targets import token_id
from tracer.errors import TraceError


@dataclass(frozen=True)
class Aim:
    """The graph's weightiest target, as a reading of logits before the cap."""

    row: int
    """Its node."""
    plus: int
    minus: int | None
    """The other token of a `Difference`; None for a token, whose logit is demeaned."""
    rival: int
    """The strongest competitor of `plus` in the clean run; `minus` where there is one."""

    def effect(self, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
        """The demeaned logit, or the difference traced."""
        other = logits.mean(-1) if self.minus is None else logits[:, self.minus]
        return logits[:, self.plus] - other

    def lead(self, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
        """By how much the target is ahead of the clean run's strongest competitor."""
        return logits[:, self.plus] - logits[:, self.rival]


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph beside the model it was traced from."""

    model: ReplacementModel
    graph: AttributionGraph
    recording: Recording
    aim: Aim
    features: tuple[tuple[int, int, int], ...]
    """(layer, position, feature) of every feature node, in node order."""
    rows: np.ndarray
    """Their rows in the node table."""

    @property
    def tokens(self) -> Tensor:
        """(P,) ids up to the position explained."""
        return torch.tensor(self.recording.tokens, device=self.model.device)

    @cached_property
    def errors(self) -> list[Float[Tensor, "positions d_model"]]:
        """What the transcoders miss of the recorded MLP outputs, a layer each."""
        transcoder, inputs = self.model.transcoder, self.recording.inputs
        active = [transcoder.encode(layer, x)[1] for layer, x in enumerate(inputs)]
        decoded = transcoder.decode(active, inputs)
        return [out - made for out, made in zip(self.recording.outputs, decoded, strict=True)]

    @property
    def skipped(self) -> int:
        """First positions whose features and errors are no nodes."""
        return int(self.graph.metadata["settings"]["skip_positions"])


def subject(model: ReplacementModel, graph: AttributionGraph) -> Subject:
    """Check that a graph is of this model, and record its prompt.

    Raises:
        TraceError: the graph is of another model or dictionary, or its targets cannot be read off
            logits.
    """
    about = graph.metadata
    for name, ours in (("model", model.name), ("transcoders_hash", model.transcoder_hash)):
        if about.get(name) != ours:
            raise TraceError(
                f"graph has {name} {about.get(name)!r}, but the model's is {ours!r}; load the "
                "model it was traced from"
            )
    if "pruned" in about:
        raise TraceError("graph is pruned; validate the unpruned graph that trace returned")
    recording = model.record(about["token_ids"][: about["position"] + 1])
    nodes = graph.nodes.to_pylist()
    rows = [row for row, node in enumerate(nodes) if node["kind"] == NodeKind.FEATURE]
    found = tuple((nodes[r]["layer"], nodes[r]["position"], nodes[r]["feature"]) for r in rows)
    aim = _aim(model, nodes, about["settings"]["targets"], recording.logits_before_cap[-1])
    return Subject(model, graph, recording, aim, found, np.array(rows, dtype=np.int64))


def _aim(
    model: ReplacementModel,
    nodes: Sequence[dict[str, Any]],
    targets: Sequence[Any] | None,
    logits: Float[Tensor, " vocabulary"],
) -> Aim:
    logit_rows = [row for row, node in enumerate(nodes) if node["kind"] == NodeKind.LOGIT]
    place = max(range(len(logit_rows)), key=lambda at: nodes[logit_rows[at]]["probability"])
    row = logit_rows[place]
    token = nodes[row]["token"]
    if token is None:
        wanted = (targets or [])[place]
        if not (isinstance(wanted, dict) and "difference" in wanted):
            raise TraceError(
                f"target {nodes[row]['label']!r} is a direction, which graphs do not store; "
                "validate a graph of tokens or differences"
            )
        plus, minus = (token_id(model, name) for name in wanted["difference"])
        return Aim(row, plus, minus, minus)
    others = logits.clone()
    others[token] = -torch.inf
    return Aim(row, token, None, int(others.argmax()))
