"""A dictionary in training: its parameters in normalised units, and what they make of a batch.

Parameters are listed by number of the layer among those trained. Features are rows of every
parameter that has them, so that a shard of features is a slice of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement_models.training.config import TrainConfig
from replacement_models.training.firing import Active, Firing, active
from replacement_models.training.product import Product
from replacement_models.training.ranks import ALONE, Ranks
from replacement_models.training.scales import Scale
from replacement_models.training.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Batch:
    """Activations of some tokens, raw, a tensor for each layer trained."""

    inputs: Sequence[Float[Tensor, "tokens d_model"]]
    outputs: Sequence[Float[Tensor, "tokens d_model"]]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        return Batch([x.to(device) for x in self.inputs], [y.to(device) for y in self.outputs])

    def rows(self, chosen: Int[Tensor, " rows"] | slice) -> "Batch":
        """Some tokens."""
        return Batch([x[chosen] for x in self.inputs], [y[chosen] for y in self.outputs])


class Trainee(nn.Module):
    """The parameters of one run."""

    def __init__(
        self,
        config: TrainConfig,
        wiring: Wiring,
        reads: Sequence[Scale],
        writes: Sequence[Scale],
        ranks: Ranks = ALONE,
    ) -> None:
        """Make room; `start` fills it.

        Args:
            config: sizes.
            wiring: which layers.
            reads: scales of inputs, layer by layer.
            writes: scales of outputs, likewise.
            ranks: that share out the features; parameters have rows for its own.
        """
        super().__init__()
        chosen, width = config.dictionary, len(reads[0].mean)
        self.config, self.wiring, self.width = config, wiring, width
        self.reads, self.writes = list(reads), list(writes)
        self.features, self.ranks = chosen.features, ranks
        self.own = ranks.features(chosen.features)
        self.l0 = wiring.l0(chosen.l0)
        self.firing = [
            Firing(chosen.activation, l0, config.loss.bandwidth, ranks) for l0 in self.l0
        ]
        widths = [self.features_at(at) for at in range(len(wiring.layers))]
        rows = [len(range(count)[self.own]) for count in widths]
        like = reads[0].mean
        self.W_enc = _parameters([like.new_zeros(count, width) for count in rows])
        self.b_enc = _parameters([like.new_zeros(count) for count in rows])
        slots = [1 if chosen.tied else len(wiring.slots(at)) for at in range(len(rows))]
        self.W_dec = _parameters(
            [like.new_zeros(count, many * width) for count, many in zip(rows, slots, strict=True)]
        )
        self.b_dec = _parameters([like.new_zeros(width) for _ in rows])
        self.threshold = self._if(chosen.activation == "jump_relu", [(n,) for n in rows])
        self.gain = self._if(chosen.activation == "gated", [(n,) for n in rows])
        self.b_gain = self._if(chosen.activation == "gated", [(n,) for n in rows])
        self.W_skip = self._if(chosen.skip, [(width, width) for _ in rows])
        self.share = self._if(
            chosen.tied, [(n, len(wiring.slots(at))) for at, n in enumerate(rows)]
        )
        self.silent: Tensor
        self.limit: Tensor
        self.register_buffer("silent", torch.zeros(len(rows), max(rows), device=like.device))
        for at, count in enumerate(rows):
            self.silent[at, count:] = -torch.inf  # there is no such feature, so it never dies
        self.register_buffer("limit", torch.zeros(len(rows), device=like.device))

    def _if(self, wanted: bool, shapes: Sequence[tuple[int, ...]]) -> nn.ParameterList:
        like = self.reads[0].mean
        return _parameters([like.new_zeros(shape) for shape in shapes] if wanted else [])

    def features_at(self, at: int) -> int:
        """How many features a layer has, those of other ranks included."""
        return self.config.dictionary.features_of(len(self.wiring.layers))[at]

    def limits(self, at: int) -> Float[Tensor, " features"] | None:
        """Thresholds of a layer's features, where each has one."""
        return self.threshold[at] if len(self.threshold) else None

    def active(self, at: int, x: Tensor, product: Product, sparse: bool) -> Active:
        """What the features of layer number `at` make of its inputs in normalised units."""
        found = active(
            self.firing[at], x, self.W_enc[at], self.b_enc[at], self.limits(at), product, sparse
        )
        if len(self.gain):
            opened = (found.hidden.detach() > 0).to(x.dtype)
            found.values = self._gained(at, found) * opened
        return found

    def _gained(self, at: int, found: Active) -> Tensor:
        """Magnitudes of a gated layer, whose gate opens at pre-activations above zero."""
        gain, bias, gate = (
            found.of_feature(one) for one in (self.gain[at].exp(), self.b_gain[at], self.b_enc[at])
        )
        return (gain * (found.hidden - gate) + bias).relu()

    def writes_of(
        self, at: int, found: Active, values: Tensor, frozen: bool = False
    ) -> Float[Tensor, "tokens slots d_model"]:
        """What features write to each of their layers, in normalised units.

        Args:
            at: number of their layer.
            found: which fire.
            values: how strongly, shaped as its own.
            frozen: let no gradient reach the decoder.
        """
        weight = self.W_dec[at].detach() if frozen else self.W_dec[at]
        slots = len(self.wiring.slots(at))
        if not len(self.share):
            return found.decode(weight, values).unflatten(1, (slots, self.width))
        share = self.share[at].detach() if frozen else self.share[at]
        parts = [
            found.decode(weight, values * found.of_feature(share[:, slot].contiguous()))
            for slot in range(slots)
        ]
        return torch.stack(parts, 1)

    def base(self, at: int, x: Tensor) -> Float[Tensor, "tokens d_model"]:
        """What is written without features: bias, and skip of what is read there."""
        bias = self.b_dec[at].expand(len(x), -1)
        return bias + x @ self.W_skip[at] if len(self.W_skip) else bias

    def decoders(
        self, at: int, some: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "features slots d_model"]:
        """Decoder rows for each layer written to, of all features or of some."""
        rows = _rows(self.W_dec[at], some)
        if len(self.share):
            return _rows(self.share[at], some)[:, :, None] * rows[:, None]
        return rows.unflatten(1, (-1, self.width))

    def norms(self, at: int) -> Float[Tensor, " features"]:
        """Norm of each feature's whole decoder, in normalised units."""
        if len(self.share):
            return self.W_dec[at].norm(dim=1) * self.share[at].norm(dim=1)
        return self.W_dec[at].norm(dim=1)

    @torch.no_grad()
    def heard(self, at: int, fired: Float[Tensor, " features"], tokens: int) -> None:
        """Count the tokens that each feature of a layer has not fired on.

        Args:
            at: number of the layer.
            fired: tokens of a batch that each fires on.
            tokens: of the batch.
        """
        silent = self.silent[at, : len(fired)]
        silent.add_(tokens).masked_fill_(fired > 0, 0)

    def scales(self) -> dict[str, Tensor]:
        """Of every place, by name."""
        return {
            f"{side}.{at}.{name}": value
            for side, scales in (("reads", self.reads), ("writes", self.writes))
            for at, scale in enumerate(scales)
            for name, value in scale.tensors().items()
        }


def _parameters(tensors: Sequence[Tensor]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])


def _rows(parameter: Tensor, some: Tensor | None) -> Tensor:
    return parameter if some is None else parameter.index_select(0, some)
