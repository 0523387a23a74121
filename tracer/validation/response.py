"""Predicted against measured changes of activations downstream of a zeroed feature.

The prediction is the graph's own: the feature's write and the answers of other features are passed
along the edges in computation order, each feature's new pre-activation put through its activation
function. Attention, norms and errors stay frozen, and a silent feature stays silent; in the
measurement nothing does, and every feature of the dictionary counts. Measuring again with attention
held, then norms as well, shows how much of the gap each makes; what is left is the dictionary's.
Predicting again with what attention scores, then norms, answer to the first order
(tracer/attention/effects.py) shows how much of it that explains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graphs.schema import number
from tracer.attention.effects import FirstOrderEffects
from tracer.validation.ablation import Ablated
from tracer.validation.spread import spread
from tracer.validation.subject import Subject

EDGES, ANSWERS, ALL_ANSWER = "edges", "attention answers", "attention and norms answer"
"""By what is predicted: the graph's edges alone, or with first-order effects beside them."""
SILENT = 1e-5
"""Changes below this share of a layer's activations are rounding, not responses."""


@dataclass(frozen=True)
class Response:
    """One zeroed feature, one layer above it."""

    feature: int
    """Number in `Subject.features`."""
    distance: int
    """Layers above the feature."""
    cosine: float
    """0 where one of the two is silent and the other is not."""
    error: float | None
    """Squared size of the difference over that of the measured change; None where that is 0."""
    measured: float
    """Size of the measured change."""
    frozen: str = "nothing"
    """What was held while measuring: "nothing", "attention", or "attention and norms"."""
    predicted: str = EDGES


@dataclass(frozen=True)
class Prediction:
    """The graph as a model of what zeroing its features does."""

    subject: Subject
    beside: FirstOrderEffects | None = None
    """What is added to the edges."""
    norms: bool = False
    """Whether what norms answer is added as well."""

    @property
    def kind(self) -> str:
        """By what it predicts."""
        if self.beside is None:
            return EDGES
        return ALL_ANSWER if self.norms else ANSWERS

    @cached_property
    def effects(self) -> Float[Tensor, "features features"]:
        """effects[target, source] among features."""
        rows, model = self.subject.rows, self.subject.model
        effect = self.subject.graph.effect
        if self.beside is not None:
            effect = self.beside.beside(effect, self.norms)
        dense = effect[rows][:, rows].toarray()
        return torch.as_tensor(dense, dtype=model.dtype, device=model.device)

    @cached_property
    def activation(self) -> Float[Tensor, " features"]:
        """Recorded activations."""
        values = number(self.subject.graph.nodes, "activation")[self.subject.rows]
        model = self.subject.model
        return torch.as_tensor(values, dtype=model.dtype, device=model.device)

    @cached_property
    def hidden(self) -> list[Float[Tensor, "positions features"]]:
        """Recorded pre-activations of every layer."""
        transcoder, inputs = self.subject.model.transcoder, self.subject.recording.inputs
        return [transcoder.encode(layer, x)[0] for layer, x in enumerate(inputs)]

    @cached_property
    def places(self) -> Tensor:
        """(features, 3): layer, position, feature."""
        listed, device = self.subject.features, self.subject.model.device
        return torch.tensor(listed, dtype=torch.long, device=device).reshape(-1, 3)

    def changes(self, zeroed: range) -> list[Float[Tensor, "rows positions features"]]:
        """Predicted changes of activations in every layer, a row for each zeroed feature."""
        rows, transcoder = len(zeroed), self.subject.model.transcoder
        ratio = self.activation.new_zeros(rows, len(self.places))
        ratio[range(rows), list(zeroed)] = -1
        found = []
        for layer, hidden in enumerate(self.hidden):
            here = (self.places[:, 0] == layer).nonzero()[:, 0]
            position, feature = self.places[here, 1:].to(hidden.device).T
            moved = hidden.repeat(rows, 1, 1)
            moved[:, position, feature] += (ratio @ self.effects[here].T).to(hidden.device)
            x = self.subject.recording.inputs[layer]
            change = transcoder.activate(layer, moved, x) - transcoder.activate(layer, hidden, x)
            changed = change[:, position, feature].to(ratio.device)
            ratio[:, here] += changed / self.activation[here]
            found.append(change)
        return found


def responses(
    prediction: Prediction, ablated: Ablated, frozen: str = "nothing"
) -> Iterator[Response]:
    """Compare, for every zeroed feature and every layer above it."""
    predicted = prediction.changes(ablated.features)
    layers = [prediction.subject.features[number][0] for number in ablated.features]
    for layer, (guess, seen) in enumerate(zip(predicted, ablated.responses, strict=True)):
        size = float(prediction.hidden[layer].norm())
        a, b = guess.flatten(1).double(), seen.flatten(1).double()
        products = torch.stack([(a * b).sum(1), a.norm(dim=1), b.norm(dim=1), (a - b).norm(dim=1)])
        for row, (dot, mine, theirs, gap) in enumerate(products.T.tolist()):
            distance = layer - layers[row]
            limit = SILENT * size
            if distance < 1 or max(mine, theirs) <= limit:
                continue
            both = min(mine, theirs) > limit
            yield Response(
                feature=ablated.features[row],
                distance=distance,
                cosine=dot / (mine * theirs) if both else 0.0,
                error=(gap / theirs) ** 2 if theirs > limit else None,
                measured=theirs,
                frozen=frozen,
                predicted=prediction.kind,
            )


def by_distance(found: list[Response]) -> dict[str, dict[str, float | int | None]]:
    """Cosines and normalised errors for every number of layers.

    Returns:
        By distance: the mean cosine, median, quartiles and share below 0.5 of cosines and of errors
        where the measured change is not zero, and how many cosines there are.
    """
    summary: dict[str, dict[str, float | int | None]] = {}
    for distance in sorted({one.distance for one in found}):
        mine = [one for one in found if one.distance == distance]
        cosines = [one.cosine for one in mine]
        parts = {
            "cosine": spread(cosines),
            "error": spread([one.error for one in mine if one.error is not None]),
        }
        summary[str(distance)] = {
            "cosine": float(np.mean(cosines)),
            **{
                f"{name}_{part}": value
                for name, values in parts.items()
                for part, value in values.items()
                if part != "count"
            },
            "count": len(cosines),
        }
    return summary
