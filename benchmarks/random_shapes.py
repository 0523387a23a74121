"""Models of real shapes with random weights, dictionaries of which a set number of features fire.

Both sides of a comparison load the same files: a Hugging Face folder and a transcoder folder in
circuit-tracer's layout. The cost of attribution does not depend on what the weights mean.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from replacement_models import (
    CrossLayerTranscoder,
    DenseDecoder,
    JumpReLU,
    PerLayerTranscoder,
    ReadPoint,
    ReLU,
    ReplacementModel,
    Transcoder,
    TranscoderLayer,
    save_transcoder,
)
from replacement_models.dictionaries.activation import Activation

VOCABULARY = 8192
GAPS = 16
"""Neighbouring activations between which a threshold is looked for."""

LAYERS = {"gpt2": 12, "llama": 16, "gemma": 26}
"""Of the models themselves: GPT-2, Llama-3.2-1B, Gemma-2-2B."""


def config(shape: str, layers: int) -> Any:
    """Hugging Face configuration of a named shape, with some of its layers."""
    common = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
    if shape == "gpt2":
        return GPT2Config(n_positions=1024, n_layer=layers, **common)
    common |= {"num_hidden_layers": layers, "max_position_embeddings": 2048}
    if shape == "llama":  # Llama-3.2-1B
        return LlamaConfig(
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            **common,
        )
    if shape == "gemma":  # Gemma-2-2B
        return Gemma2Config(
            hidden_size=2304,
            intermediate_size=9216,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            pad_token_id=None,
            **common,
        )
    raise ValueError(f"shape is {shape!r}, expected one of {', '.join(LAYERS)}")


def drawn_config(random: np.random.Generator) -> Any:
    """Hugging Face configuration of a shape that nothing here was made for."""
    layers, heads = int(random.integers(3, 13)), int(random.integers(2, 13))
    d_head = int(random.choice([32, 48, 64, 80, 128]))
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    common["tie_word_embeddings"] = False
    if random.random() < 0.5:
        width = heads * d_head
        return GPT2Config(n_positions=1024, n_layer=layers, n_head=heads, n_embd=width, **common)
    groups = [count for count in range(1, heads + 1) if heads % count == 0]
    width = heads * int(random.integers(256 // heads + 1, 1024 // heads + 1))
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=int(random.choice(groups)),
        head_dim=d_head,
        max_position_embeddings=2048,
        **common,
    )


def write_case(
    folder: Path,
    shape: tuple[str, int] | Any,
    kind: str,
    tokens: list[int],
    active: int,
    features: int,
) -> None:
    """Write `model/`, `transcoders/` and `case.json` into an empty folder.

    Args:
        folder: where.
        shape: name and layers, as `config`; or a Hugging Face configuration.
        kind: "per_layer" or "cross_layer".
        tokens: the prompt for which thresholds are set.
        active: features a token and layer that fire on it, on average.
        features: dictionary size a layer.
    """
    named = isinstance(shape, tuple)
    model = random_model(config(*shape) if named else shape)
    model.save_pretrained(folder / "model")
    dictionary = random_dictionary(model, kind, tokens, active, features)
    save_transcoder(dictionary, folder / "transcoders", "circuit-tracer")
    name = shape if named else shape.model_type
    case = {"shape": name, "kind": kind, "tokens": tokens, "active": active, "features": features}
    (folder / "case.json").write_text(json.dumps(case))


def random_model(settings: Any) -> Any:
    """A Hugging Face model of random weights, biases included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def random_dictionary(
    model: Any, kind: str, tokens: list[int], active: int, features: int
) -> Transcoder:
    """A dictionary of which `active` features a token and layer fire on `tokens`, on average."""
    of_kind = {"per_layer": PerLayerTranscoder, "cross_layer": CrossLayerTranscoder}[kind]
    layers = _layers(model.config, kind, features)
    open_wide = of_kind(layers, read=ReadPoint.NORMED)
    inputs = (
        ReplacementModel.from_huggingface(model, None, open_wide)
        .record(tokens, keep_patterns=False)
        .inputs
    )
    for index, layer in enumerate(layers):
        hidden = inputs[index] @ layer.W_enc.T + layer.b_enc
        ranked = hidden[1:].flatten().sort(descending=True).values
        threshold = _gap(ranked, active * (len(tokens) - 1)).expand(features).clone()
        layers[index] = TranscoderLayer(
            layer.W_enc, layer.b_enc, layer.decoder, layer.b_dec, JumpReLU(threshold)
        )
    return of_kind(layers, read=ReadPoint.NORMED)


def _gap(ranked: Tensor, count: int) -> Tensor:
    """The middle of the widest gap near `count`: no rounding decides which features fire."""
    near = ranked[max(0, count - GAPS // 2) : count + GAPS // 2 + 1]
    widest = (near[:-1] - near[1:]).argmax()
    return near[widest : widest + 2].mean()


def _layers(settings: Any, kind: str, features: int) -> list[TranscoderLayer]:
    count, width = settings.num_hidden_layers, settings.hidden_size
    return [
        random_layer(features, count - layer if kind == "cross_layer" else 1, width, ReLU())
        for layer in range(count)
    ]


def random_layer(
    features: int, targets: int, width: int, activation: Activation
) -> TranscoderLayer:
    """One layer of random weights, no encoder bias."""
    return TranscoderLayer(
        W_enc=torch.randn(features, width) / width**0.5,
        b_enc=torch.zeros(features),
        decoder=DenseDecoder(torch.randn(features, targets, width) / width),
        b_dec=torch.randn(width) / width,
        activation=activation,
    )
