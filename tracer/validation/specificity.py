"""Does ablating the circuit's features break other prompts less than its own?

Positions mean nothing in another prompt, so the circuit's features are put at their corpus mean at
every counted position, in its own prompt as well; errors are left alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.values import Intervention, Placed
from tracer.validation.circuit import Circuit
from tracer.validation.means import Means, batches
from tracer.validation.spread import spread
from tracer.validation.subject import Subject

Prompt = str | Sequence[int]
OTHERS = 24
"""Other prompts tried, drawn at random."""


@torch.no_grad()
def specificity(
    subject: Subject, means: Means, circuit: Circuit, prompts: Sequence[Prompt], seed: int = 0
) -> dict[str, Any] | None:
    """Ablate a circuit's features in its own prompt and in others.

    Args:
        subject: what is validated.
        means: of the corpus.
        circuit: whose features are ablated.
        prompts: others; OTHERS of them are drawn, without those that begin as the circuit's own.
        seed: of the draw.

    Returns:
        `own`: share of the target's lead that is left in the circuit's own prompt. Of the next
        tokens at all counted positions of the others: `changed`, the share whose likeliest token
        becomes another; `lead`, the spread of what is left of its lead over the runner-up;
        `prompts` and `positions`, how many there are. None without another prompt or a feature.
    """
    model, own = subject.model, list(subject.recording.tokens)
    listed = [list(model.tokenize(prompt)) for prompt in prompts]
    listed = [one for one in listed if one[: len(own)] != own and len(one) > subject.skipped]
    order = np.random.default_rng(seed).permutation(len(listed))[:OTHERS]
    if not (len(order) and circuit.features):
        return None
    clean, ablated = next(_pairs(subject, means, circuit, [own]))
    left = subject.aim.lead(ablated[-1:]) / subject.aim.lead(clean[-1:])
    changed, leads = [], []
    for before, after in _pairs(subject, means, circuit, [listed[number] for number in order]):
        top = before[subject.skipped :].topk(2, dim=-1).indices
        changed += (after[subject.skipped :].argmax(-1) != top[:, 0]).tolist()
        lead = [_lead(logits[subject.skipped :], top) for logits in (before, after)]
        leads += (lead[1] / lead[0])[lead[0] > 0].tolist()
    return {
        "own": float(left),
        "changed": float(np.mean(changed)),
        "lead": spread(leads),
        "prompts": len(order),
        "positions": len(changed),
    }


def _lead(logits: Tensor, top: Tensor) -> Tensor:
    """(positions,): the first of two tokens' lead over the second at every position."""
    both = logits.gather(-1, top)
    return both[:, 0] - both[:, 1]


def _pairs(
    subject: Subject, means: Means, circuit: Circuit, prompts: Sequence[Sequence[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (P, V) before the cap without and with the circuit's features at their mean.

    One pair a prompt, those of one length together.
    """
    chosen = sorted({(layer, feature) for layer, _, feature in circuit.features})
    for batch in batches(subject.model, prompts, rows=2):
        positions = list(range(subject.skipped, batch.shape[1]))
        placed: list[Placed] = [
            (_mean(means, layer, feature), positions) for layer, feature in chosen
        ]
        edit = FeatureEdits([[], placed] * len(batch))
        outcome = run(subject.model, batch.repeat_interleave(2, 0), Run(edit=edit, keep=False))
        for pair in outcome.logits_before_cap.unflatten(0, (-1, 2)):
            yield pair[0], pair[1]


def _mean(means: Means, layer: int, feature: int) -> Intervention:
    value = float(means.activations[layer][feature])
    return Intervention(layer=layer, position=slice(None), feature=feature, value=value)
