"""Every feature of a graph zeroed alone, many at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.interventions.forward import FeatureEdits, Outcome, Run, run
from tracer.interventions.freezing import Freezing
from tracer.interventions.values import Intervention
from tracer.validation.subject import Subject

ENTRIES = 1 << 23
"""Activations held at once, in all layers of a batch."""
LARGEST = 256
"""Rows of a batch at most."""


@dataclass(frozen=True, eq=False)
class Ablated:
    """Some features, zeroed one a row; MLP outputs downstream are always recomputed."""

    features: range
    """Numbers in `Subject.features`."""
    effect: Float[Tensor, " rows"]
    """By how much the target's demeaned logit fell."""
    responses: list[Float[Tensor, "rows positions features"]]
    """Changes of activations, a layer each."""


@torch.no_grad()
def ablations(subject: Subject, frozen: Freezing | None = None) -> Iterator[Ablated]:
    """Zero every feature of the graph alone and measure; in mode "free" unless parts are frozen."""
    model, layers = subject.model, len(subject.model.host.blocks)
    size = layers * len(subject.tokens) * model.transcoder.features
    step = max(1, min(LARGEST, ENTRIES // size))
    clean = _run(subject, [[]], frozen)
    before = subject.aim.effect(clean.logits_before_cap[:, -1])
    for start in range(0, len(subject.features), step):
        chosen = range(start, min(start + step, len(subject.features)))
        rows = [[subject.features[number]] for number in chosen]
        outcome = _run(subject, rows, frozen)
        yield Ablated(
            features=chosen,
            effect=before - subject.aim.effect(outcome.logits_before_cap[:, -1]),
            responses=[
                after - base
                for after, base in zip(outcome.activations, clean.activations, strict=True)
            ],
        )


def _run(
    subject: Subject, rows: list[list[tuple[int, int, int]]], frozen: Freezing | None
) -> Outcome:
    placed = [
        [
            (Intervention(layer=layer, position=position, feature=feature, value=0.0), [position])
            for layer, position, feature in row
        ]
        for row in rows
    ]
    tokens = subject.tokens.expand(len(rows), -1)
    return run(subject.model, tokens, Run(edit=FeatureEdits(placed), frozen=frozen))
