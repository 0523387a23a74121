"""Do the circuit's edges matter, and not only its nodes?

Every feature of the circuit is set to what it would be without what other features write to it
along the circuit's edges: its recorded pre-activation less those direct effects, through its
activation function. Nothing else is changed, all features keep writing, and everything downstream
is recomputed. Beside it the edges into the same features that the circuit leaves out are cut
instead: a circuit that holds the composition should need the former and spare the latter.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.values import Intervention, Placed
from tracer.validation.faithfulness import DEFAULT, EDGES
from tracer.validation.held import HELD, holding
from tracer.validation.response import Prediction
from tracer.validation.subject import Subject


@torch.no_grad()
def composition(prediction: Prediction) -> dict[str, Any] | None:
    """Cut edges between the default circuit's features, and those it leaves out.

    Args:
        prediction: the graph, with its effects among features.

    Returns:
        Edges between features that were cut (`edges`) and what is left of the lead by what was
        held (`cut`); the same of all edges into the same features that the circuit leaves out
        (`other_edges`, `others_cut`). None where the circuit has no edge between features.
    """
    subject, inside = prediction.subject, _edges(prediction.subject)
    if not inside.any():
        return None
    others = (prediction.effects != 0) & inside.any(1, keepdim=True) & ~inside
    rows = [_without(prediction, inside), _without(prediction, others)]
    tokens = subject.tokens.expand(len(rows), -1)
    clean = subject.aim.lead(subject.recording.logits_before_cap[-1:])
    left: dict[str, list[float]] = {}
    for held in HELD:
        frozen = holding(subject.recording, held)
        outcome = run(subject.model, tokens, Run(edit=FeatureEdits(rows), frozen=frozen))
        left[held] = (subject.aim.lead(outcome.logits_before_cap[:, -1]) / clean).tolist()
    return {
        "edges": int(inside.sum()),
        "cut": {held: one for held, (one, _) in left.items()},
        "other_edges": int(others.sum()),
        "others_cut": {held: other for held, (_, other) in left.items()},
    }


def _edges(subject: Subject) -> Bool[Tensor, "features features"]:
    """Which edges between features the default circuit has: [target, source]."""
    small = subject.graph.prune(DEFAULT, EDGES)
    ids = subject.graph.nodes["id"].take(subject.rows).to_pylist()
    number = {name: at for at, name in enumerate(ids)}
    names, count = small.nodes["id"].to_pylist(), len(ids)
    inside = torch.zeros(count, count, dtype=torch.bool, device=subject.model.device)
    for source, target in zip(*(small.edges[end].to_pylist() for end in ENDS), strict=True):
        if names[source] in number and names[target] in number:
            inside[number[names[target]], number[names[source]]] = True
    return inside


ENDS = ("source", "target")


def _without(prediction: Prediction, cut: Bool[Tensor, "features features"]) -> list[Placed]:
    """Set features to what is left of them without the effects along some edges."""
    lost, places = (prediction.effects * cut).sum(1), prediction.places
    transcoder, inputs = prediction.subject.model.transcoder, prediction.subject.recording.inputs
    placed: list[Placed] = []
    for layer, hidden in enumerate(prediction.hidden):
        here = (cut.any(1) & (places[:, 0] == layer)).nonzero()[:, 0]
        position, feature = places[here, 1:].to(hidden.device).T
        moved = hidden.clone()
        moved[position, feature] -= lost[here].to(hidden.device)
        active = transcoder.activate(layer, moved, inputs[layer])[position, feature]
        for at, number, value in zip(
            position.tolist(), feature.tolist(), active.tolist(), strict=True
        ):
            one = Intervention(layer=layer, position=at, feature=number, value=value)
            placed.append((one, [at]))
    return placed
