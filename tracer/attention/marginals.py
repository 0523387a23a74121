"""Marginals of a head's scores: one side as it is, the other split over all nodes, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.attention.explained import Explained, pulled_to_stream
from tracer.attention.plain_streams import (
    head_gradients,
    mixed_values,
    pulled_values,
    streams,
)
from tracer.attention.queries_keys import QueryKeyMap, Reached
from tracer.attention.sources import LEAVES, Sources, constant_sources
from tracer.attention.spot import Spot
from tracer.attribution.sweep import sweep_gradients


@dataclass(frozen=True, eq=False)
class Side:
    """All marginals of one side."""

    sources: Float[Tensor, " columns"]
    constants: Float[Tensor, " leaves"]
    """Of LEAVES."""
    heads: Sequence[Float[Tensor, " heads"]]
    """What each head below wrote of it, a layer each; every layer is a split of its own."""

    @property
    def total(self) -> float:
        """What the side adds up to, a sink aside."""
        return float(self.sources.double().sum() + self.constants.double().sum())


def marginals(
    about: Explained, place: QueryKeyMap, reached: Reached, spot: Spot
) -> tuple[Side, Side]:
    """Two rows of the engine: what every node contributes to the query, and to the keys."""
    gradients, own = _both_sides(about, place, reached, spot)
    leaves = _leaves(about, gradients, own, spot.layer)
    heads = _writers(about, gradients, spot.layer)
    found = sweep_gradients(about.local, spot.layer, gradients)
    leaves, own = (part.to(found.constant.device) for part in (leaves, own))
    sides = []
    for side in range(2):
        constants = leaves[side].clone()
        biases = found.constant[side] - (constants.sum() - own[side])
        constants[LEAVES.index("biases")] += biases.to(constants.dtype)
        sides.append(Side(found.sources[side], constants, [one[side] for one in heads]))
    return sides[0], sides[1]


def _writers(
    about: Explained, gradients: Float[Tensor, "2 positions d_model"], layer: int
) -> list[Float[Tensor, "2 heads"]]:
    """What heads of the layers below have written of what the gradients weigh."""
    local, found = about.local, []
    gradient = gradients
    for below in range(layer - 1, -1, -1):
        maps = local.layers[below]
        gradient = gradient.to(maps.device)
        stays = gradient
        if maps.skip is not None:
            stays = gradient + (gradient @ maps.skip.T) * maps.skip_scale
        worth = head_gradients(maps, gradient if maps.parallel else stays)
        pattern = maps.transposed_pattern(0, local.positions)
        read = about.recording.residuals[below]
        mixed = mixed_values(pattern, maps.write_values(read)[None])[0]
        found.append(torch.einsum("sqhi,qhi->sh", worth.unflatten(-1, mixed.shape[1:]), mixed))
        gradient = stays + pulled_values(maps, worth)
    return found[::-1]


def _both_sides(
    about: Explained, place: QueryKeyMap, reached: Reached, spot: Spot
) -> tuple[Float[Tensor, "2 positions d_model"], Float[Tensor, " 2"]]:
    """Gradients of the stream, of query and keys, and what projection and norm add of their own."""
    scores, key_head = spot.scores, spot.scores.key_head(spot.head)
    zero = place.scores(torch.zeros_like(place.hidden)).scores
    weighed = scores.scaling * (spot.weights @ scores.keys[key_head])
    queries, keys = torch.zeros_like(scores.queries), torch.zeros_like(scores.keys)
    queries[spot.head, spot.query] = weighed
    keys[key_head] = scores.scaling * spot.weights[:, None] * scores.queries[spot.head, spot.query]
    pulled = torch.cat([reached.pulled(queries[None], None), reached.pulled(None, keys[None])])
    gradients, bias = pulled_to_stream(about, spot.layer, pulled)
    own = torch.stack([(queries * zero.queries).sum(), (keys * zero.keys).sum()])
    return gradients, own.detach() + bias


def _leaves(
    about: Explained,
    gradients: Float[Tensor, "2 positions d_model"],
    own: Float[Tensor, " 2"],
    layer: int,
) -> Float[Tensor, "2 leaves"]:
    """Learned positions and skipped positions by themselves; the biases of the head alone."""
    found = gradients.new_zeros(2, len(LEAVES))
    found[:, LEAVES.index("biases")] = own
    stream = entering(about, constant_sources(about.local), layer)
    for leaf in ("positions", "skipped"):
        at = LEAVES.index(leaf)
        found[:, at] = torch.einsum("spd,pd->s", gradients, stream[at])
    return found


def entering(about: Explained, sources: Sources, layer: int) -> Tensor:
    """The stream entering a layer, by source."""
    every = streams(about.local, sources)
    for _ in range(layer):
        next(every)
    return next(every)
