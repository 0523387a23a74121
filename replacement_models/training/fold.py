"""From normalised units to a finished dictionary: scales folded into the weights.

Gradients flow through, so that the end-to-end stage runs what will be written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.dictionaries.activation import (
    Activation,
    BatchTopK,
    JumpReLU,
    ReLU,
    ReLUTopK,
)
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.sites import ReadPoint, Stage, WritePoint
from replacement_models.training.firing import jump
from replacement_models.training.trainee import Trainee
from replacement_models.transcoder import DenseDecoder, Transcoder, TranscoderLayer


@dataclass(frozen=True, eq=False)
class SoftJump:
    """JumpReLU whose thresholds have gradients."""

    threshold: Float[Tensor, " features"]
    bandwidth: float
    name = "jump_relu"

    def __call__(self, hidden: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        """Pre-activations above their feature's threshold."""
        return jump(hidden, self.threshold.expand_as(hidden), self.bandwidth)

    def to(self, device: torch.device, dtype: torch.dtype) -> "SoftJump":
        """Thresholds on `device`, in `dtype`."""
        return SoftJump(self.threshold.to(device, dtype), self.bandwidth)

    def check(self, features: int) -> None:
        """Made to fit."""


def folded(trainee: Trainee, layers: int, model: str, soft: bool = False) -> Transcoder:
    """The dictionary that a trainee is.

    Args:
        trainee: parameters.
        layers: of the model.
        model: its name.
        soft: keep gradients, of thresholds too.

    Returns:
        A dictionary for every layer, empty where none was trained; span padded with zeros.
    """
    chosen, present = trainee.config.dictionary, trainee.wiring.layers
    cross = chosen.kind == "cross_layer"
    like = trainee.b_dec[0].detach()
    found = []
    for layer in range(layers):
        above = sum(one >= layer for one in present)
        if layer in present:
            made = _layer(trainee, present.index(layer), above if cross else 1, soft)
            found.append(made if soft else _detached(made))
        else:
            found.append(TranscoderLayer.empty(like, above if cross else 1))
    where: dict[str, Any] = {"read": ReadPoint(chosen.read), "write": WritePoint(chosen.write)}
    if chosen.kind == "sae":
        stage = Stage[chosen.site.upper()]
        staged = [replace(one, stage=stage) for one in found]
        return SparseAutoencoder(staged, write=WritePoint.POST_NORM, model=model)
    kind: Callable[..., Transcoder] = CrossLayerTranscoder if cross else PerLayerTranscoder
    return kind(found, model=model, **where)


def _layer(trainee: Trainee, at: int, slots: int, soft: bool) -> TranscoderLayer:
    reads, writes = trainee.reads[at], trainee.writes[at]
    weight = trainee.W_enc[at] / reads.deviation
    shift = weight @ reads.mean
    bias, activation = trainee.b_enc[at] - shift, _activation(trainee, at, soft)
    if len(trainee.gain):
        gain = trainee.gain[at].exp()
        weight, bias = gain[:, None] * weight, trainee.b_gain[at] - gain * shift
    targets = trainee.wiring.slots(at)
    scale = torch.stack([trainee.writes[target].deviation for target in targets])
    rows = trainee.decoders(at) * scale[:, None]
    if slots > len(targets):
        rows = torch.nn.functional.pad(rows, (0, 0, 0, slots - len(targets)))
    b_dec = trainee.b_dec[at] * writes.deviation + writes.mean
    skip = None
    if len(trainee.W_skip):
        skip = trainee.W_skip[at] * (writes.deviation / reads.deviation)
        b_dec = b_dec - reads.mean @ skip
    return TranscoderLayer(weight, bias, DenseDecoder(rows), b_dec, activation, skip)


def _activation(trainee: Trainee, at: int, soft: bool) -> Activation:
    firing = trainee.firing[at]
    if firing.name == "topk":
        return ReLUTopK(int(firing.l0))
    if firing.name == "batch_topk":
        return BatchTopK(trainee.limit[at].reshape(1).clone())
    if firing.name == "gated":
        limit = trainee.b_gain[at] - trainee.gain[at].exp() * trainee.b_enc[at]
        limit = limit.clamp(min=0)
        return SoftJump(limit, firing.bandwidth) if soft else JumpReLU(limit)
    if firing.name == "jump_relu":
        limit = trainee.threshold[at]
        return SoftJump(limit, firing.bandwidth) if soft else JumpReLU(limit)
    return ReLU()


def _detached(layer: TranscoderLayer) -> TranscoderLayer:
    activation = layer.activation
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(activation.threshold.detach().clone())
    assert isinstance(layer.decoder, DenseDecoder)
    return replace(
        layer,
        W_enc=layer.W_enc.detach(),
        b_enc=layer.b_enc.detach(),
        decoder=DenseDecoder(layer.decoder.weight.detach()),
        b_dec=layer.b_dec.detach(),
        W_skip=None if layer.W_skip is None else layer.W_skip.detach(),
        activation=activation,
    )
