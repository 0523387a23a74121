"""Which tokens a feature promotes and suppresses, beside what every other feature does to them.

A feature's decoder, summed over the layers it writes to, goes through the final norm's centring and
weight to the unembedding, whose mean row is taken off. On a real model that alone names the same
tokens for every feature: ` strugg`, ` comprom`, ` miscon`, whose rows are long and stand apart from
all others, so that any vector whatever moves them most. A token's score is therefore measured in
standard deviations of that token's own scores over all features of the dictionary, from their
mean: (u·w - mean) / sqrt(uᵀ C u), C the covariance of what features write. It takes no list of
tokens and no threshold; a token that everything moves needs a feature that moves it more than
others do.

Through a Jacobian lens the same is asked of what a decoder becomes on its way up: what it writes at
each layer is taken through the mean Jacobian of everything above that layer (lenses/jacobian.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.folding import mlp_post_norm, written
from tracer.features.promoted import written_by
from tracer.lenses.affine import AffineLens

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
    maps: Sequence[Float[Tensor, "d_model d_model"]] | None = None
    """Of the Jacobian lens through which features are seen, one a layer; None: as they write."""

    @classmethod
    def of(cls, model: ReplacementModel, lens: AffineLens | None = None) -> "Unembedded":
        """Measure every token's spread over all features, seen through a lens or as they write."""
        maps = None if lens is None else [one.to(model.host.unembedding) for one in lens.maps]
        width, device = model.host.d_model, model.device
        count, total = 0, torch.zeros(width, dtype=torch.float64, device=device)
        square = torch.zeros(width, width, dtype=torch.float64, device=device)
        for layer in model.transcoder.present:
            for _, read in _read(model, layer, maps):
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
        return cls(model, mean.to(model.dtype), scaled.to(model.dtype), maps)

    def scores(
        self, layer: int
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "some vocabulary"]]]:
        """Scores of a layer's features, some at a time with their numbers."""
        for features, read in _read(self.model, layer, self.maps):
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


def _read(
    model: ReplacementModel, layer: int, maps: Sequence[Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What some features of a layer write, as the unembedding reads it, with their numbers."""
    norm = model.host.final_norm
    for features in torch.arange(len(model.transcoder.layers[layer].W_enc)).split(AT_ONCE):
        wanted = features.to(model.device)
        writes = written_by if maps is None else partial(_taken_up, maps)
        yield features, norm.centre(writes(model, layer, wanted)) * norm.weight


def _taken_up(
    maps: Sequence[Tensor], model: ReplacementModel, layer: int, features: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_model"]:
    """What one unit of features becomes at the final norm, each write through what lies above."""
    rows = model.transcoder.decoder_rows(layer, features)
    total = torch.zeros_like(rows[:, 0])
    for slot, target in enumerate(model.transcoder.targets(layer)):
        post = mlp_post_norm(model.host.blocks[target], model.transcoder.write_at(target))
        wrote = written(rows[:, slot], post)
        total += wrote if target + 1 == len(maps) else wrote @ maps[target + 1].T
    return total
