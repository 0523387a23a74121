"""What an intervention is, as values: features, directions, named groups, and their positions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from graphs import AttributionGraph, NodeKind
from graphs.groups import find
from replacement_models import ReplacementModel
from tracer.errors import TraceError

OVERFLOWN = "the answer is no number after these changes: they are too large for the model's dtype"
SAME = 1e-6
"""Of several directions to remove, those that add less than this share of length to the span."""


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """What to do to one feature at some positions: exactly one of set, scale, add."""

    layer: int
    position: int | slice
    """One position, or a slice of them; negative ones count from the end of the prompt."""
    feature: int
    value: float | None = None
    """The activation to set."""
    scale: float | None = None
    """The factor on its activation; 0 ablates."""
    add: float | None = None
    """What to add to its activation."""

    def __post_init__(self) -> None:
        given = [x for x in (self.value, self.scale, self.add) if x is not None]
        if len(given) != 1:
            raise TraceError(
                f"intervention at layer {self.layer}, feature {self.feature}: give exactly one of "
                f"value, scale, add; got {len(given)}"
            )
        if not abs(given[0]) < float("inf"):
            raise TraceError(
                f"intervention at layer {self.layer}, feature {self.feature}: {given[0]} is no "
                "finite number"
            )

    def change(self, activation: Float[Tensor, " positions"]) -> Float[Tensor, " positions"]:
        """By how much the activation changes.

        Raises:
            TraceError: the number is too large for the type of the activations.
        """
        number = self.value if self.value is not None else self.scale or self.add or 0.0
        if abs(number) > torch.finfo(activation.dtype).max:
            raise TraceError(
                f"intervention at layer {self.layer}, feature {self.feature}: {number:g} is more "
                f"than {str(activation.dtype).removeprefix('torch.')} can hold"
            )
        if self.value is not None:
            return self.value - activation
        if self.scale is not None:
            return (self.scale - 1) * activation
        assert self.add is not None
        return torch.full_like(activation, self.add)


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """A direction to add to the residual stream, or to take out of it.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition"; Arditi et
    al. 2024, "Refusal in Language Models Is Mediated by a Single Direction", for removal.
    """

    layer: int
    """The stream entering this layer is changed (L: the one entering the final norm)."""
    vector: Sequence[float] | Float[Tensor, " d_model"] | Float[Tensor, "directions d_model"]
    """One direction; to remove, also several, whose span is removed."""
    position: int | slice = field(default_factory=lambda: slice(None))
    scale: float = 1.0
    """What is added is the vector times this; of what is removed, this share."""
    remove: bool = False
    """Take away what the stream has along the vector, whatever its length, instead of adding."""

    def changed(self, stream: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The stream with the direction added, or projected out."""
        vector = torch.as_tensor(self.vector, dtype=stream.dtype, device=stream.device)
        if not self.remove:
            return stream + self.scale * vector
        _, sizes, basis = torch.linalg.svd(torch.atleast_2d(vector).double(), full_matrices=False)
        span = basis[sizes > SAME * sizes.max()].to(stream.dtype)
        return stream - self.scale * (stream @ span.T) @ span


@dataclass(frozen=True)
class Supernode:
    """A named group of features that is read and changed as one."""

    name: str
    features: tuple[tuple[int, int | slice, int], ...]
    """(layer, position or slice of positions, feature) of every member."""

    def __post_init__(self) -> None:
        if not self.features:
            raise TraceError(f"supernode {self.name!r} has no features; name at least one")

    @classmethod
    def of(cls, graph: AttributionGraph, name: str) -> "Supernode":
        """A group of a graph, to be read or changed in the model.

        Raises:
            GraphError: no group has the name.
            TraceError: a member is no feature of an MLP, so nothing can change it.
        """
        members = set(find(graph.groups, name).members)
        rows = [row for row in graph.nodes.to_pylist() if row["id"] in members]
        for row in rows:
            if row["kind"] != NodeKind.FEATURE or not row["site"].startswith("mlp_out."):
                raise TraceError(
                    f"group {name!r} has the member {row['id']}, {row['kind']} at {row['site']}: "
                    "only features of MLPs can be changed; leave it out of the group"
                )
        return cls(name, tuple((row["layer"], row["position"], row["feature"]) for row in rows))

    def set(self, value: float) -> list[Intervention]:
        """Set every member's activation to the same value."""
        return [
            Intervention(layer=layer, position=position, feature=feature, value=value)
            for layer, position, feature in self.features
        ]

    def added(self, amount: float) -> list[Intervention]:
        """Add the same amount to every member's activation."""
        return [
            Intervention(layer=layer, position=position, feature=feature, add=amount)
            for layer, position, feature in self.features
        ]

    def scaled(self, factor: float) -> list[Intervention]:
        """Multiply every member's activation; 0 ablates the group."""
        return [
            Intervention(layer=layer, position=position, feature=feature, scale=factor)
            for layer, position, feature in self.features
        ]

    def steered(
        self, multiple: float, maxima: Float[Tensor, "layers features"]
    ) -> list[Intervention]:
        """Set every member to a multiple of its own maximum (`tracer.feature_maxima`)."""
        return [
            Intervention(
                layer=layer,
                position=position,
                feature=feature,
                value=multiple * float(maxima[layer, feature]),
            )
            for layer, position, feature in self.features
        ]

    def activation(self, activations: Float[Tensor, "layers positions features"]) -> float:
        """Sum of the members' activations, as in `Change.activations`."""
        return sum(
            float(activations[layer, position, feature].sum())
            for layer, position, feature in self.features
        )


Placed = tuple[Intervention, list[int]]
"""An intervention and the positions it reaches."""


def check_feature(model: ReplacementModel, wanted: Intervention) -> None:
    """Refuse a feature that does not exist.

    Raises:
        TraceError: the layer or the feature is out of range.
    """
    layers = len(model.host.blocks)
    if not 0 <= wanted.layer < layers:
        raise TraceError(f"intervention: layer {wanted.layer} is not in 0..{layers - 1}")
    width = len(model.transcoder.layers[wanted.layer].b_enc)
    if width == 0:
        raise TraceError(f"intervention: layer {wanted.layer} has no dictionary, so no features")
    if not 0 <= wanted.feature < width:
        raise TraceError(
            f"intervention: feature {wanted.feature} is not in 0..{width - 1}, the features of "
            f"layer {wanted.layer}"
        )


def check_steering(model: ReplacementModel, wanted: Steering) -> None:
    """Refuse a direction that does not fit the residual stream.

    Raises:
        TraceError: the layer is out of range, the vector does not fit or is not finite, or there is
            nothing to remove.
    """
    layers = len(model.host.blocks)
    if not 0 <= wanted.layer <= layers:
        raise TraceError(f"steering: layer {wanted.layer} is not in 0..{layers}")
    vector = torch.as_tensor(wanted.vector)
    width = model.host.d_model
    several = wanted.remove and vector.ndim == 2 and vector.shape[1] == width and len(vector) > 0
    if not (vector.shape == (width,) or several) or not vector.isfinite().all():
        also = f" or (directions, {width})" if wanted.remove else ""
        raise TraceError(
            f"steering: the vector has shape {tuple(vector.shape)}, expected ({width},){also}, "
            "finite"
        )
    if wanted.remove and not vector.any():
        raise TraceError("steering: the vector to remove is zero; it names no direction")


def positions_in(position: int | slice, prompt: int, first: int, end: int) -> list[int]:
    """The positions named that lie in first..end-1, counted from `first`.

    Args:
        position: negative ones count from the end of the prompt; an open slice goes on through
            the continuation.
        prompt: tokens of the prompt.
        first: first position of the forward pass at hand.
        end: one behind its last.
    """
    if isinstance(position, int):
        at = position + prompt if position < 0 else position
        return [at - first] if first <= at < end else []
    low, high = (
        bound + prompt if bound is not None and bound < 0 else bound
        for bound in (position.start, position.stop)
    )
    named = range(
        *slice(max(low or 0, 0), end if high is None else high, position.step).indices(end)
    )
    return [at - first for at in named if at >= first]


def check_position(position: int | slice, prompt: int, length: int) -> None:
    """Refuse a position that no token of the prompt or its continuation has.

    Raises:
        TraceError: nothing lies there.
    """
    if isinstance(position, slice):
        if position.step is not None and position.step < 1:
            raise TraceError(f"intervention: {position} steps backward; give a positive step")
        if not positions_in(position, prompt, 0, length):
            raise TraceError(f"intervention: {position} holds none of {length} positions")
    elif not -prompt <= position < length:
        raise TraceError(f"intervention: position {position} is not in {-prompt}..{length - 1}")
