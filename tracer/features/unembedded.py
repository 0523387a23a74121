"""Which tokens a feature promotes and suppresses, beside what every other feature does to them.

A feature's decoder, summed over the layers it writes to, goes through the final norm's centring and
weight to the unembedding, whose mean row is taken off. On a real model that alone names the same
tokens for every feature: ` strugg`, ` comprom`, ` miscon`, whose rows are long and stand apart from
all others, so that any vector whatever moves them most. A token's score is therefore measured in
standard deviations of that token's own scores over all features of the dictionary, from their
mean: (u·w - mean) / sqrt(uᵀ C u), C the covariance of what features write. It takes no list of
tokens and no threshold; a token that everything moves needs a feature that moves it more than
others do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from tracer.features.promoted import written_by

AT_ONCE = 1024
"""Features, or tokens, scored together."""


@dataclass(frozen=True, eq=False)
class Unembedded:
    """Token scores of one model's features."""

    model: ReplacementModel
    centre: Float[Tensor, " d_model"]
    """Mean of what all features write, as the unembedding reads it."""
    directions: Float[Tensor, "vocabulary d_model"]
    """Unembedding rows less their mean, each over its deviation over all features."""

    @classmethod
    def of(cls, model: ReplacementModel) -> "Unembedded":
        """Measure every token's spread over all features."""
        width, device = model.host.d_model, model.device
        count, total = 0, torch.zeros(width, dtype=torch.float64, device=device)
        square = torch.zeros(width, width, dtype=torch.float64, device=device)
        for layer in model.transcoder.present:
            for _, read in _read(model, layer):
                exact = read.double()
                count += len(exact)
                total += exact.sum(0)
                square += exact.T @ exact
        mean = total / count
        spread = square / count - mean[:, None] * mean
        rows = (model.host.unembedding - model.mean_unembedding).double()
        variance = torch.cat([((part @ spread) * part).sum(1) for part in rows.split(AT_ONCE)])
        least = torch.finfo(model.dtype).eps * variance.max()
        scaled = rows / variance.clamp(min=float(least)).sqrt()[:, None]
        return cls(model, mean.to(model.dtype), scaled.to(model.dtype))

    def scores(
        self, layer: int
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "some vocabulary"]]]:
        """Scores of a layer's features, some at a time with their numbers."""
        for features, read in _read(self.model, layer):
            yield features, (read - self.centre) @ self.directions.T

    def extremes(self, layer: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tokens each feature of a layer promotes most, and those it suppresses most.

        Returns:
            Scores and ids of the promoted, then of the suppressed ones, (features, count) each, the
            furthest first.
        """
        parts = []
        for _, scores in self.scores(layer):
            width = min(count, scores.shape[1])
            most, least = scores.topk(width), (-scores).topk(width)
            parts.append((most.values, most.indices, -least.values, least.indices))
        high, ids, low, low_ids = (torch.cat(column) for column in zip(*parts, strict=True))
        return high, ids, low, low_ids


def _read(model: ReplacementModel, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What some features of a layer write, as the unembedding reads it, with their numbers."""
    norm = model.host.final_norm
    for features in torch.arange(len(model.transcoder.layers[layer].W_enc)).split(AT_ONCE):
        wanted = features.to(model.device)
        yield features, norm.centre(written_by(model, layer, wanted)) * norm.weight
