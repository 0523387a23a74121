"""Layers of unequal width, for formats whose layers all have as many features."""

from dataclasses import replace

import torch
from torch.nn.functional import pad

from replacement_models.dictionaries.activation import JumpReLU, ReLU
from replacement_models.transcoder import DenseDecoder, Transcoder, TranscoderLayer

ONE_WIDTH = ("circuit-tracer", "crosslayer-coding", "openmoss")
"""Formats that hold one width only."""


def of_one_width(transcoder: Transcoder) -> Transcoder:
    """The same features under the same numbers, narrow layers widened by some that never fire.

    A layer without a dictionary stays without, and what is no ReLU or JumpReLU stays as it is.
    """
    layers = [_widened(layer, transcoder.features) for layer in transcoder.layers]
    if all(one is other for one, other in zip(layers, transcoder.layers, strict=True)):
        return transcoder
    read, write, model = transcoder.read, transcoder.write, transcoder.model
    return type(transcoder)(layers, read=read, write=write, model=model)


def _widened(layer: TranscoderLayer, width: int) -> TranscoderLayer:
    more, activation = width - len(layer.W_enc), layer.activation
    if layer.is_empty or not more or not isinstance(activation, ReLU | JumpReLU):
        return layer
    if isinstance(activation, JumpReLU):  # nothing is above a threshold that nothing reaches
        activation = JumpReLU(pad(activation.threshold, (0, more), value=1.0))
    rows = layer.decoder.rows(torch.arange(width - more))
    return replace(
        layer,
        W_enc=pad(layer.W_enc, (0, 0, 0, more)),
        b_enc=pad(layer.b_enc, (0, more)),
        decoder=DenseDecoder(pad(rows, (0, 0, 0, 0, 0, more))),
        activation=activation,
    )
