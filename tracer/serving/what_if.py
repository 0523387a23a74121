"""What the model answers when features of a graph are changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graphs import AttributionGraph, NodeKind
from tracer.errors import TraceError

if TYPE_CHECKING:
    from replacement_models import ReplacementModel
    from tracer.interventions.intervene import Change
    from tracer.interventions.values import Intervention

MODES: dict[str, dict[str, Any]] = {
    "free": {"mode": "free"},
    "held": {"mode": "free", "freeze_attention": True},
    "direct": {"mode": "direct"},
}
"""As the page names them -> settings of `tracer.intervene`."""
MOST_CHANGES = 1000
LARGEST = 1e30
"""Of a value or a factor: float32, in which models run, ends at 3.4e38."""
STRONGEST = 5
"""Tokens that are listed beside the graph's own answers, before and after."""


@dataclass(frozen=True)
class WhatIf:
    """A model that is asked, loaded when it is first needed."""

    load: Callable[[], "ReplacementModel"] = field(repr=False)

    @cached_property
    def model(self) -> "ReplacementModel":
        """The model, loaded once."""
        return self.load()

    def answer(self, graph: AttributionGraph, wanted: object) -> dict[str, Any]:
        """The likeliest next tokens before and after a change.

        Args:
            graph: of this model.
            wanted: `{mode: free | held | direct, changes: [{layer, position, feature, and value or
                scale}]}`, as JSON gave it.

        Returns:
            `{answers: [{token, text, before, after}]}`, probabilities; the graph's own answers, and
            the likeliest tokens before and after.

        Raises:
            TraceError: the request is anything else, the graph is of another model, or a change
                does not fit the model.
        """
        from tracer.interventions.intervene import intervene

        mode, changes = checked(wanted)
        tokens = self.prompt(graph)
        change = intervene(self.model, tokens, changes, **MODES[mode])
        return {"answers": self.listed(graph, change)}

    def prompt(self, graph: AttributionGraph) -> list[int]:
        """Token ids of the prompt, up to the position explained.

        Returns:
            Ids.

        Raises:
            TraceError: the graph does not have them, or is of another model.
        """
        about = graph.metadata
        ours = {"model": self.model.name, "transcoders_hash": self.model.transcoder_hash}
        for name, value in ours.items():
            if about.get(name) != value:
                raise TraceError(
                    f"the graph has {name} {about.get(name)!r}, but the model's is {value!r}: "
                    "name the model it was traced from with --model and --transcoders"
                )
        ids = about.get("token_ids")
        if not isinstance(ids, list):
            raise TraceError("the graph does not say which tokens it is of: trace it again")
        return ids[: about.get("position", len(ids) - 1) + 1]

    def listed(self, graph: AttributionGraph, change: "Change") -> list[dict[str, Any]]:
        """Answers of the graph and of the model, with both probabilities, likeliest before first.

        Returns:
            One dict a token: token, text, before, after.
        """
        before, after = (
            logits[-1].double().softmax(-1) for logits in (change.base.logits, change.logits)
        )
        own = [
            row["token"]
            for row in graph.nodes.to_pylist()
            if row["kind"] == NodeKind.LOGIT and row["token"] is not None
        ]
        most = [int(token) for one in (before, after) for token in one.topk(STRONGEST).indices]
        tokens = sorted(dict.fromkeys([*own, *most]), key=lambda token: -float(before[token]))
        return [
            {
                "token": token,
                "text": self.model.token_string(token),
                "before": float(before[token]),
                "after": float(after[token]),
            }
            for token in tokens
        ]


def checked(wanted: object) -> tuple[str, list["Intervention"]]:
    """The mode and the changes that a page asks for.

    Args:
        wanted: whatever JSON gave.

    Returns:
        A key of `MODES`, and interventions.

    Raises:
        TraceError: it is anything else.
    """
    mode = wanted.get("mode") if isinstance(wanted, dict) else None
    changes = wanted.get("changes") if isinstance(wanted, dict) else None
    if mode not in MODES or not isinstance(changes, list) or not 0 < len(changes) <= MOST_CHANGES:
        raise TraceError(f"expected a mode ({', '.join(MODES)}) and 1 to {MOST_CHANGES} changes")
    return str(mode), [_change(one) for one in changes]


def _change(one: object) -> "Intervention":
    from tracer.interventions.values import Intervention

    if isinstance(one, Mapping):
        place = [one.get(name) for name in ("layer", "position", "feature")]
        layer, position, feature = (at if type(at) is int else None for at in place)
        how = {
            name: float(number)
            for name in ("value", "scale")
            if isinstance(number := one.get(name), int | float) and abs(number) <= LARGEST
        }
        if layer is not None and position is not None and feature is not None and len(how) == 1:
            return Intervention(layer=layer, position=position, feature=feature, **how)
    raise TraceError(
        f"{str(one)[:80]!r} is no change: expected layer, position, feature, and value or scale"
    )
