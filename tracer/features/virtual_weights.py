"""What features read from each other through the residual stream, and which ones write alike.

The virtual weight from a feature to one of a later layer, at the same position, is the product of
what the first writes before the second reads with what the second reads: decoder row times encoder
row, the weights of the norms between them included and their denominators left out (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits", section "Virtual weights"). It is a
property of the dictionary alone: attention takes no part, and whether the two ever fire together
does not either. Only a feature's strongest few are kept, so memory grows with features and not with
their square; time does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from replacement_models import ReplacementModel
from replacement_models.folding import mlp_post_norm, read_back, written
from tracer.features.promoted import written_by

NOBODY = -1
AT_ONCE = 4096
"""Features on either side of one product."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """The few features of largest weight, by size, for every feature; columns count all layers'."""

    weights: Float[Tensor, "features count"]
    columns: Int[Tensor, "features count"]
    """NOBODY where there are fewer."""

    @classmethod
    def empty(cls, features: int, count: int, like: Tensor) -> "Nearest":
        """Nothing seen yet."""
        columns = torch.full((features, count), NOBODY, device=like.device)
        return cls(like.new_zeros(features, count), columns)

    def add(
        self, rows: slice, weights: Float[Tensor, "some others"], columns: Int[Tensor, " others"]
    ) -> None:
        """See the weights between some features and some others."""
        count = self.weights.shape[1]
        near = weights.abs().topk(min(count, weights.shape[1]), dim=1).indices
        values = torch.cat([self.weights[rows], weights.gather(1, near)], 1)
        places = torch.cat([self.columns[rows], columns[near]], 1)
        best = values.abs().topk(count, dim=1).indices
        self.weights[rows] = values.gather(1, best)
        self.columns[rows] = places.gather(1, best)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of every feature, those it reads most from, writes most to and resembles."""

    starts: dict[int, int]
    """Where each layer's features begin among all."""
    inputs: Nearest
    outputs: Nearest
    similar: Nearest
    """Weights are cosines between decoders, summed over the layers written to."""

    def place(self, column: int) -> tuple[int, int]:
        """Layer and number of a feature among all."""
        layer = max(at for at, start in self.starts.items() if start <= column)
        return layer, column - self.starts[layer]


@torch.no_grad()
def neighbours(model: ReplacementModel, count: int) -> Neighbours:
    """The strongest neighbours of every feature of a dictionary.

    Args:
        model: the model.
        count: of each kind, a feature.
    """
    starts, total = {}, 0
    for layer in model.transcoder.present:
        starts[layer] = total
        total += len(model.transcoder.layers[layer].W_enc)
    like = model.host.unembedding
    found = Neighbours(starts, *(Nearest.empty(total, count, like) for _ in range(3)))
    for layer in model.transcoder.present:
        _connect(model, layer, found)
        _compare(model, layer, found)
    return found


def _connect(model: ReplacementModel, layer: int, found: Neighbours) -> None:
    """Weights from one layer's features to those of all later ones."""
    for rows, features in _parts(model, layer, found.starts[layer]):
        ours = _columns(rows, model)
        for reader, wrote in _before_each(model, layer, features):
            for others, wanted in _parts(model, reader, found.starts[reader]):
                weights = wrote @ _reads(model, reader, wanted).T
                found.outputs.add(rows, weights, _columns(others, model))
                found.inputs.add(others, weights.T, ours)


def _before_each(
    model: ReplacementModel, layer: int, features: Int[Tensor, " some"]
) -> Iterator[tuple[int, Float[Tensor, "some d_model"]]]:
    """Later layers with a dictionary, and what features have written before they read."""
    rows = model.transcoder.decoder_rows(layer, features)
    slots = {target: slot for slot, target in enumerate(model.transcoder.targets(layer))}
    blocks, total = model.host.blocks, None
    for below in range(layer, len(blocks) - 1):
        if below in slots and not blocks[below].aside:
            post = mlp_post_norm(blocks[below], model.transcoder.write_at(below))
            wrote = written(rows[:, slots[below]], post)
            total = wrote if total is None else total + wrote
        reads = below + 1 in model.transcoder.present and not blocks[below + 1].aside
        if reads and total is not None:
            yield below + 1, total.to(model.device)


def _reads(
    model: ReplacementModel, layer: int, features: Int[Tensor, " some"]
) -> Float[Tensor, "some d_model"]:
    """Encoder rows pulled back to the residual stream."""
    rows, norm = model.transcoder.encoder_rows(layer, features), model.host.blocks[layer].mlp_norm
    return read_back(rows, norm, model.transcoder.read_at(layer)).to(model.device)


def _compare(model: ReplacementModel, layer: int, found: Neighbours) -> None:
    """Cosines between one layer's decoders and those of its own and all later layers."""
    for rows, features in _parts(model, layer, found.starts[layer]):
        ours = normalize(written_by(model, layer, features), dim=1)
        for other in model.transcoder.present:
            if other < layer:
                continue
            for others, wanted in _parts(model, other, found.starts[other]):
                cosines = ours @ normalize(written_by(model, other, wanted), dim=1).T
                if others.start == rows.start:
                    cosines.fill_diagonal_(0)
                found.similar.add(rows, cosines, _columns(others, model))
                if other > layer:
                    found.similar.add(others, cosines.T, _columns(rows, model))


def _parts(
    model: ReplacementModel, layer: int, start: int
) -> Iterator[tuple[slice, Int[Tensor, " some"]]]:
    """A layer's features, some at a time: where they stand among all, and their numbers."""
    count = len(model.transcoder.layers[layer].W_enc)
    for first in range(0, count, AT_ONCE):
        end = min(first + AT_ONCE, count)
        numbers = torch.arange(first, end, device=model.device)
        yield slice(start + first, start + end), numbers


def _columns(rows: slice, model: ReplacementModel) -> Int[Tensor, " some"]:
    return torch.arange(rows.start, rows.stop, device=model.device)
