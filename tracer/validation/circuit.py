"""The original model with everything outside a circuit at its corpus mean.

Features inside answer as they will, with everything downstream recomputed; features outside, fired
or not, are held at their mean. Errors inside keep what they were in the clean run, being constants
of the local replacement model; those outside are held at their mean. Skipped positions are the
model's own, attention and norms too unless they are held (`held.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphs import AttributionGraph, NodeKind
from replacement_models.replaced import Writes
from tracer.interventions.forward import Changes, Run, run
from tracer.validation.held import NOTHING, holding
from tracer.validation.means import Means
from tracer.validation.subject import Subject

BATCH = 32
"""Circuits in one forward pass."""


@dataclass(frozen=True)
class Circuit:
    """Which features and errors are left as they are."""

    features: frozenset[tuple[int, int, int]]
    """(layer, position, feature)."""
    errors: frozenset[tuple[int, int]]
    """(layer, position)."""
    ablated: frozenset[tuple[int, int, int]] | None = None
    """Put only these at their mean (but for those in the circuit); None: every feature of the
    dictionary, whether it fired in the clean run or not."""

    @property
    def size(self) -> int:
        """Nodes."""
        return len(self.features) + len(self.errors)

    def without_errors(self) -> "Circuit":
        """The same features, every error at its mean."""
        return Circuit(self.features, frozenset())

    def silent_left(self, whole: "Circuit") -> "Circuit":
        """The same nodes; features that never fired are left to answer for themselves."""
        return replace(self, ablated=whole.features)

    def complement(self, whole: "Circuit") -> "Circuit":
        """What of `whole` is not in it."""
        return Circuit(whole.features - self.features, whole.errors - self.errors)

    def removed(self, layers: int, positions: int) -> "Circuit":
        """The model with this circuit alone at its mean; all else, silent or not, is left."""
        every = frozenset(product(range(layers), range(positions)))
        return Circuit(frozenset(), every - self.errors, ablated=self.features)

    def drawn(self, whole: "Circuit", random: np.random.Generator) -> "Circuit":
        """As many features and as many errors, at random out of `whole`."""
        parts: list[list[tuple[int, ...]]] = []
        for mine, every in ((self.features, whole.features), (self.errors, whole.errors)):
            listed = sorted(every)
            chosen = random.permutation(len(listed))[: len(mine)]
            parts.append([listed[index] for index in chosen])
        return Circuit(frozenset(parts[0]), frozenset(parts[1]))  # type: ignore[arg-type]


def circuit_of(graph: AttributionGraph) -> Circuit:
    """The features and errors of a graph."""
    nodes = graph.nodes.to_pylist()
    return Circuit(
        frozenset(
            (node["layer"], node["position"], node["feature"])
            for node in nodes
            if node["kind"] == NodeKind.FEATURE
        ),
        frozenset(
            (node["layer"], node["position"]) for node in nodes if node["kind"] == NodeKind.ERROR
        ),
    )


@dataclass
class Ablation:
    """The edit that leaves one circuit a row; made for one forward pass."""

    subject: Subject
    means: Means
    features: Sequence[Bool[Tensor, "rows positions features"]]
    """What to leave as it is, a layer each."""
    errors: Bool[Tensor, "rows layers positions"]
    writes: Writes = field(init=False)
    """Of this pass's activations, unchanged."""

    def __post_init__(self) -> None:
        self.writes = Writes(self.subject.model.transcoder)

    def reads(self, layer: int) -> bool:
        """Every layer."""
        return True

    def changes(
        self, layer: int, active: Float[Tensor, "rows positions features"]
    ) -> Changes | None:
        """Activations outside to zero, inside less the mean; `output` adds the mean to all."""
        keep, mean = self.features[layer], self.means.activations[layer]
        skipped = self.subject.skipped
        used = ((active != 0) | keep).flatten(0, 1).any(0).nonzero()[:, 0]
        amount = torch.where(keep[..., used], -mean[used].expand_as(active[..., used]), 0.0)
        amount = torch.where(keep[..., used], amount, -active[..., used])
        amount[:, :skipped] = 0
        self.writes.add(layer, used, active[..., used])
        return used, amount

    def output(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """What features write, plus errors: recorded ones inside the circuit, mean ones outside."""
        skipped = self.subject.skipped
        decoded = self.writes.output(layer, x) + self.means.written[layer]
        inside = self.errors[:, layer, :, None].to(x.device)
        error = torch.where(inside, self.subject.errors[layer], self.means.errors[layer])
        return torch.cat([output[:, :skipped], (decoded + error)[:, skipped:]], dim=1)


@dataclass(frozen=True, eq=False)
class Kept:
    """What the model answers with circuits alone."""

    lead: Float[np.ndarray, " circuits"]
    """The target's lead over the clean run's strongest competitor, in logits."""
    answers: Int[np.ndarray, " circuits"]
    """The likeliest next token."""


@torch.no_grad()
def alone(subject: Subject, means: Means, circuits: Sequence[Circuit], held: str = NOTHING) -> Kept:
    """Run each circuit alone, many in one forward pass.

    Args:
        subject: what is validated.
        means: of the corpus.
        circuits: each left as it is, with all else at its mean.
        held: what stays as recorded meanwhile, one of `held.HELD`.
    """
    found: list[float] = []
    answers: list[int] = []
    frozen = holding(subject.recording, held)
    for start in range(0, len(circuits), BATCH):
        batch = circuits[start : start + BATCH]
        edit = Ablation(subject, means, *_masks(subject, batch))
        tokens = subject.tokens.expand(len(batch), -1)
        outcome = run(subject.model, tokens, Run(edit=edit, frozen=frozen, keep=False))
        logits = outcome.logits_before_cap[:, -1]
        found += subject.aim.lead(logits).tolist()
        answers += logits.argmax(-1).tolist()
    return Kept(np.array(found), np.array(answers, dtype=np.int64))


def leads(
    subject: Subject, means: Means, circuits: Sequence[Circuit], held: str = NOTHING
) -> Float[np.ndarray, " circuits"]:
    """The target's lead over the clean run's strongest competitor, in each circuit alone."""
    return alone(subject, means, circuits, held).lead


def _masks(subject: Subject, circuits: Sequence[Circuit]) -> tuple[list[Tensor], Tensor]:
    positions, device = len(subject.tokens), subject.model.device
    weights = subject.model.transcoder.layers
    features = [
        layer.b_enc.new_zeros(len(circuits), positions, len(layer.b_enc), dtype=torch.bool)
        for layer in weights
    ]
    errors = torch.zeros(len(circuits), len(weights), positions, dtype=torch.bool, device=device)
    for row, circuit in enumerate(circuits):
        if circuit.ablated is not None:
            for mask in features:
                mask[row] = True
            for layer, position, feature in circuit.ablated:
                features[layer][row, position, feature] = False
        for layer, position, feature in circuit.features:
            features[layer][row, position, feature] = True
        for layer, position in circuit.errors:
            errors[row, layer, position] = True
    return features, errors
