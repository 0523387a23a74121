"""Dictionaries compared: weights, and what they compute."""

from collections.abc import Sequence

import torch
from torch import Tensor

from replacement_models import Transcoder


def weights_of(transcoder: Transcoder) -> dict[str, Tensor]:
    """Every weight by layer and name."""
    found = {}
    for index, layer in enumerate(transcoder.layers):
        named = {
            "W_enc": layer.W_enc,
            "b_enc": layer.b_enc,
            "W_dec": layer.decoder.rows(torch.arange(len(layer.W_enc))),
            "b_dec": layer.b_dec,
            "W_skip": layer.W_skip,
            "threshold": getattr(layer.activation, "threshold", None),
        }
        found |= {f"{index} {key}": value for key, value in named.items() if value is not None}
    return found


def assert_same(got: Transcoder, expected: Transcoder) -> None:
    """The two are equal to the last bit, in everything but the place decoder rows are kept."""
    for name in ("kind", "read", "write", "model", "features", "d_model"):
        assert getattr(got, name) == getattr(expected, name), name
    for ours, theirs in zip(got.layers, expected.layers, strict=True):
        assert ours.activation.name == theirs.activation.name
        assert getattr(ours.activation, "k", None) == getattr(theirs.activation, "k", None)
    found, wanted = weights_of(got), weights_of(expected)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def computed(transcoder: Transcoder, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Activations and outputs of every layer."""
    active = [transcoder.encode(layer, x)[1] for layer, x in enumerate(inputs)]
    return active, transcoder.decode(active, inputs)
