"""From normalised units to a finished dictionary: scales folded into the weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

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
from replacement_models.training.trainee import Trainee
from replacement_models.transcoder import DenseDecoder, Transcoder, TranscoderLayer


@torch.no_grad()
def folded(trainee: Trainee, layers: int, model: str) -> Transcoder:
    """The dictionary that a trainee is.

    Args:
        trainee: parameters.
        layers: of the model.
        model: its name.

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
            found.append(_layer(trainee, present.index(layer), above if cross else 1))
        else:
            found.append(TranscoderLayer.empty(like, above if cross else 1))
    where: dict[str, Any] = {"read": ReadPoint(chosen.read), "write": WritePoint(chosen.write)}
    if chosen.kind == "sae":
        stage = Stage[chosen.site.upper()]
        staged = [replace(one, stage=stage) for one in found]
        return SparseAutoencoder(staged, write=WritePoint.POST_NORM, model=model)
    kind: Callable[..., Transcoder] = CrossLayerTranscoder if cross else PerLayerTranscoder
    return kind(found, model=model, **where)


def _layer(trainee: Trainee, at: int, slots: int) -> TranscoderLayer:
    reads, writes = trainee.reads[at], trainee.writes[at]
    weight = trainee.W_enc[at] / reads.deviation
    shift = weight @ reads.mean
    bias, activation = trainee.b_enc[at] - shift, _activation(trainee, at)
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


def _activation(trainee: Trainee, at: int) -> Activation:
    firing = trainee.firing[at]
    if firing.name == "topk":
        return ReLUTopK(int(firing.l0))
    if firing.name == "batch_topk":
        return BatchTopK(trainee.limit[at].reshape(1).clone())
    if firing.name == "gated":
        limit = trainee.b_gain[at] - trainee.gain[at].exp() * trainee.b_enc[at]
        return JumpReLU(limit.clamp(min=0))
    if firing.name == "jump_relu":
        return JumpReLU(trainee.threshold[at].clone())
    return ReLU()
