"""Dictionaries: encode and decode are the formula; weights that do not fit are refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement_models import (
    CrossLayerTranscoder,
    DenseDecoder,
    JumpReLU,
    ModelError,
    PerLayerTranscoder,
    ReadPoint,
    ReLU,
    SparseAutoencoder,
    TopK,
    TranscoderLayer,
    WritePoint,
)
from tests.random_models import FEATURES, LAYERS, WIDTH, transcoder

KINDS = {
    "cross_layer": CrossLayerTranscoder,
    "per_layer": PerLayerTranscoder,
    "sae": SparseAutoencoder,
}


def inputs(positions: int = 5) -> list[Tensor]:
    """What the transcoder reads, a layer each."""
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(LAYERS, positions, WIDTH, generator=generator, dtype=torch.float64))


def layer(features: int = 4, width: int = 3, targets: int = 1, **changes: Any) -> TranscoderLayer:
    """A layer of ones, with something changed."""
    plain = TranscoderLayer(
        W_enc=torch.ones(features, width),
        b_enc=torch.ones(features),
        decoder=DenseDecoder(torch.ones(features, targets, width)),
        b_dec=torch.ones(width),
        activation=ReLU(),
    )
    return replace(plain, **changes)


def test_a_hand_computed_pair_of_layers():
    clt = CrossLayerTranscoder(
        [
            TranscoderLayer(
                W_enc=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
                b_enc=torch.tensor([0.0, -1.0]),
                decoder=DenseDecoder(
                    torch.tensor([[[1.0, 0.0], [0.0, 10.0]], [[2.0, 2.0], [3.0, 4.0]]])
                ),
                b_dec=torch.tensor([0.5, 0.0]),
                activation=ReLU(),
            ),
            TranscoderLayer(
                W_enc=torch.tensor([[1.0, 1.0]]),
                b_enc=torch.tensor([0.0]),
                decoder=DenseDecoder(torch.tensor([[[100.0, 0.0]]])),
                b_dec=torch.tensor([0.0, 0.25]),
                activation=JumpReLU(torch.tensor([3.0])),
                W_skip=torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
            ),
        ]
    )
    first, second = torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 2.0]])
    hidden, active = clt.encode(0, first)
    assert hidden.tolist() == [[3.0, 1.0]]
    above, late = clt.encode(1, second)
    assert above.tolist() == [[4.0]]
    outputs = clt.decode([active, late], [first, second])
    assert outputs[0].tolist() == [[3 + 2 + 0.5, 2.0]]
    # 3·(0, 10) + 1·(3, 4) from below, 4·(100, 0) of its own, b_dec, and the skip's (0, 2)
    assert outputs[1].tolist() == [[3 + 400, 30 + 4 + 0.25 + 2]]


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["cross_layer", "per_layer"])
def test_encode_and_decode_are_the_formula(kind: str, skip: bool, activation: str):
    dictionary = transcoder(kind, skip, activation=activation)
    x = inputs()
    active = []
    for index, weights in enumerate(dictionary.layers):
        hidden, fired = dictionary.encode(index, x[index])
        expected = torch.einsum("pd,fd->pf", x[index], weights.W_enc) + weights.b_enc
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
        assert torch.equal(fired, weights.activation(hidden))
        active.append(fired)
    outputs = dictionary.decode(active, x)
    for m in range(LAYERS):
        expected = dictionary.layers[m].b_dec.expand(5, WIDTH)
        for source in range(m + 1) if kind == "cross_layer" else [m]:
            rows = dictionary.layers[source].decoder.rows(torch.arange(FEATURES))
            expected = expected + active[source] @ rows[:, m - source]
        if skip:
            expected = expected + x[m] @ dictionary.layers[m].W_skip
        torch.testing.assert_close(outputs[m], expected, rtol=0, atol=1e-12)


def test_decode_of_silence_is_the_bias():
    dictionary = transcoder("cross_layer")
    silent = [torch.zeros(5, FEATURES, dtype=torch.float64)] * LAYERS
    for output, weights in zip(dictionary.decode(silent, inputs()), dictionary.layers, strict=True):
        assert torch.equal(output, weights.b_dec.expand(5, WIDTH))


def test_targets_are_what_the_kind_says():
    layers = {kind: [layer(targets=2), layer()] for kind in KINDS}
    layers["per_layer"] = layers["sae"] = [layer(), layer()]
    found = {
        kind: [list(KINDS[kind](layers[kind]).targets(index)) for index in (0, 1)] for kind in KINDS
    }
    assert found == {
        "cross_layer": [[0, 1], [1]],
        "per_layer": [[0], [1]],
        "sae": [[0], [1]],
    }


def test_rows_come_in_the_order_asked_for_and_repeated():
    dictionary = transcoder("cross_layer")
    wanted = torch.tensor([5, 2, 5, 0])
    whole = dictionary.layers[1].decoder.rows(torch.arange(FEATURES))
    assert torch.equal(dictionary.decoder_rows(1, wanted), whole[wanted])
    assert torch.equal(dictionary.encoder_rows(1, wanted), dictionary.layers[1].W_enc[wanted])
    assert dictionary.decoder_rows(1, wanted[:0]).shape == (0, 2, WIDTH)


def test_moving_changes_the_dtype_of_every_weight_and_keeps_the_points():
    dictionary = transcoder("per_layer", True, ReadPoint.RESIDUAL, "jump_relu")
    moved = dictionary.to("cpu", torch.float32)
    weights = moved.layers[0]
    found = [weights.W_enc, weights.b_enc, weights.b_dec, weights.W_skip]
    found += [weights.activation.threshold, weights.decoder.rows(torch.tensor([0]))]
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert (moved.kind, moved.read) == ("per_layer", ReadPoint.RESIDUAL)
    assert moved.write is WritePoint.MLP_OUTPUT
    assert dictionary.layers[0].W_enc.dtype == torch.float64


def test_layers_may_have_different_numbers_of_features():
    dictionary = PerLayerTranscoder([layer(features=4), layer(features=9)])
    assert (dictionary.features, dictionary.d_model) == (9, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": torch.ones(4)}, r"W_enc has shape \(4,\), expected \(features, d_model\)"),
        ({"W_enc": torch.ones(3, 4)}, r"b_enc has shape \(4,\), expected \(3,\)"),
        ({"b_enc": torch.ones(5)}, r"b_enc has shape \(5,\), expected \(4,\)"),
        ({"b_dec": torch.ones(4)}, r"b_dec has shape \(4,\), expected \(3,\)"),
        ({"W_skip": torch.ones(3)}, r"W_skip has shape \(3,\), expected \(3, 3\)"),
        (
            {"decoder": DenseDecoder(torch.ones(4, 2, 3))},
            r"W_dec has shape \(4, 2, 3\), expected \(4, 1, 3\)",
        ),
        ({"activation": JumpReLU(torch.ones(3))}, r"threshold has shape \(3,\), expected \(4,\)"),
        ({"activation": TopK(5)}, "k is 5, but there are only 4 features"),
    ],
)
def test_a_weight_that_does_not_fit_is_named_with_both_shapes(changes: Any, message: str):
    with pytest.raises(ModelError, match=f"per_layer transcoder, layer 0: .*{message}"):
        PerLayerTranscoder([layer(**changes)])


def test_a_layer_of_another_width_is_named():
    with pytest.raises(ModelError, match=r"layer 1: W_enc has shape \(4, 5\), expected \(f.*, 3\)"):
        PerLayerTranscoder([layer(), layer(width=5)])


def test_a_cross_layer_dictionary_must_write_to_every_later_layer():
    with pytest.raises(ModelError, match=r"layer 0: W_dec has shape \(4, 1, 3\), expected \(4, 2"):
        CrossLayerTranscoder([layer(), layer()])


def test_no_layers_is_refused():
    with pytest.raises(ModelError, match="at least one layer"):
        PerLayerTranscoder([])
