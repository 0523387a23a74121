"""Where features lie in a plane by what they write: a map of a dictionary's decoders.

Decoders of unit length are projected on the two directions in which they spread most (principal
components of all features together), so that features which write alike lie close. The reverse
does not hold: two axes hold little of hundreds of dimensions, and `share` says how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from replacement_models import ReplacementModel
from tracer.features.promoted import written_by

AXES = 2
AT_ONCE = 4096
"""Features whose decoders are read together."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Two directions and the middle of all decoders."""

    centre: Float[Tensor, " d_model"]
    axes: Float[Tensor, "d_model axes"]
    share: tuple[float, ...]
    """Of the decoders' spread, what lies along each axis."""

    @classmethod
    def of(cls, model: ReplacementModel) -> "Plane":
        """Principal components of what one unit of each feature writes, at unit length.

        The largest entry of an axis is positive, so that a map does not flip.
        """
        width, device = model.host.d_model, model.device
        count, total = 0, torch.zeros(width, dtype=torch.float64, device=device)
        square = torch.zeros(width, width, dtype=torch.float64, device=device)
        for layer in model.transcoder.present:
            for rows in _unit(model, layer):
                count += len(rows)
                total += rows.sum(0)
                square += rows.T @ rows
        mean = total / count
        sizes, directions = torch.linalg.eigh(square / count - mean[:, None] * mean)
        axes = directions[:, -AXES:].flip(1)
        largest = axes.gather(0, axes.abs().argmax(0)[None])[0]
        whole = float(sizes.clamp(min=0).sum()) or 1.0
        share = tuple(float(size) / whole for size in sizes[-AXES:].flip(0))
        return cls(mean, axes * largest.sign(), share)

    def places(self, model: ReplacementModel, layer: int) -> Float[Tensor, "features axes"]:
        """Where one layer's features lie, float32."""
        parts = [(rows - self.centre) @ self.axes for rows in _unit(model, layer)]
        return torch.cat(parts).float()


def _unit(model: ReplacementModel, layer: int) -> Iterator[Float[Tensor, "some d_model"]]:
    """Decoders of one layer at unit length, float64, some at a time."""
    count = len(model.transcoder.layers[layer].W_enc)
    parts = torch.arange(count, device=model.device).split(AT_ONCE)
    for part in parts:
        yield normalize(written_by(model, layer, part).double(), dim=1)
