"""Values that hold tensors print one line each, however large they are."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tracer
from replacement_models import (
    DenseDecoder,
    PerLayerTranscoder,
    ReplacementModel,
    TranscoderLayer,
)
from replacement_models.one_line import brief
from replacement_models.replaced import run
from tests.random_models import PROMPT, replacement_model
from tracer import Intervention
from tracer.attribution.local_model import linearise


def test_a_model_says_what_it_is():
    model = ReplacementModel.load()
    assert repr(model) == (
        f"ReplacementModel(embedded/model, gpt2, embedded/clt, {model.transcoder!r}, "
        "float32 on cpu)"
    )
    assert repr(model.transcoder).startswith("CrossLayerTranscoder(4 layers x ")
    assert repr(replacement_model("llama", kind="per_layer")) == (
        "ReplacementModel(random-llama, llama, PerLayerTranscoder(3 layers x 24 features, reads "
        "normed, writes mlp_output), float64 on cpu)"
    )


def test_a_dictionary_says_its_least_and_its_largest_width():
    layers = [TranscoderLayer.empty(torch.zeros(2), 1)]
    for width in (5, 3, 4):
        weights = {"W_enc": torch.zeros(width, 2), "b_enc": torch.zeros(width)}
        decoder = DenseDecoder(torch.zeros(width, 1, 2))
        layers.append(replace(layers[0], **weights, decoder=decoder))
    said = "PerLayerTranscoder({} features, reads normed, writes mlp_output)"
    assert repr(PerLayerTranscoder(layers)) == said.format("3 of 4 layers x 3 to 5")
    assert repr(PerLayerTranscoder(layers[:2])) == said.format("1 of 2 layers x 5")
    assert repr(PerLayerTranscoder(layers[:1])) == said.format("0 of 1 layers x 0")


def shown(model: ReplacementModel) -> list[Any]:
    """One of every kind."""
    recording, block = model.record(PROMPT), model.host.blocks[0]
    change = Intervention(layer=1, position=2, feature=3, value=1.0)
    layer = model.transcoder.layers[0]
    found = run(model, torch.tensor([PROMPT]))
    return [
        *(model, model.host, block, block.mlp_norm),
        *(model.transcoder, layer, layer.decoder, layer.activation),
        *(recording, recording.features, recording.layers[0]),
        *(found, found.layers[0]),
        linearise(model, recording, skip_positions=1),
        tracer.intervene(model, PROMPT, [change]),
        tracer.corpus_means(model, [PROMPT]),
        tracer.validate(model, tracer.trace(model, PROMPT), [PROMPT], draws=1),
    ]


def test_every_value_is_one_line_and_none_is_long():
    for value in shown(replacement_model("gpt2", activation="jump_relu")):
        line = repr(value)
        assert line.startswith(f"{type(value).__name__}(")
        assert "\n" not in line
        assert len(line) < 900, line


def test_a_recording_names_its_fields_and_their_shapes():
    line = repr(replacement_model("gpt2").record(PROMPT))
    assert "tokens=(1, 7, 12, 5, 22, 9)" in line
    assert "layers=3 x FrozenLayer" in line
    assert "residuals=4 x float64 (6, 16)" in line
    assert "logits=float64 (6, 29)" in line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), "bfloat16 (2, 3)"),
        (None, "None"),
        ("gpt2", "'gpt2'"),
        ("x" * 99, f"'{'x' * 36}..."),
        ([1, 2], "[1, 2]"),
        (list(range(99)), "99 values"),
        ([torch.zeros(1), torch.zeros(2)], "2 values"),
        ({1: 2}, "1 entries"),
        ((), "()"),
        (torch.relu, "builtin_function_or_method"),
    ],
)
def test_a_field_is_short_whatever_it_holds(value: Any, expected: str):
    assert brief(value) == expected
