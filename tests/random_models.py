"""Small random models and dictionaries of every kind, for laws that must hold for any weights."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from replacement_models import (
    CrossLayerTranscoder,
    DenseDecoder,
    JumpReLU,
    PerLayerTranscoder,
    ReadPoint,
    ReLU,
    ReplacementModel,
    TopK,
    Transcoder,
    TranscoderLayer,
)

LAYERS, WIDTH, FEATURES, VOCABULARY = 3, 16, 24, 29
PROMPT = (1, 7, 12, 5, 22, 9)


def gpt2(dtype: torch.dtype = torch.float64) -> Any:
    """A GPT-2 with every bias at work."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        attn_implementation="eager",
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _randomised(GPT2LMHeadModel(config), dtype)


def llama(dtype: torch.dtype = torch.float64) -> Any:
    """A Llama with grouped queries and attention biases."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        attention_bias=True,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=2,
    )
    return _randomised(LlamaForCausalLM(config), dtype)


FAMILIES = {"gpt2": gpt2, "llama": llama}


def _randomised(model: Any, dtype: torch.dtype) -> Any:
    """All parameters random, those of norms around their usual value; the same every time."""
    generator = torch.Generator().manual_seed(0)
    model = model.to(dtype).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = (1 + 0.3 * noise if is_norm else 0.35 * noise).to(dtype)
    return model


def transcoder(
    kind: str = "cross_layer",
    skip: bool = False,
    read: ReadPoint = ReadPoint.NORMED,
    activation: str = "relu",
    seed: int = 1,
) -> Transcoder:
    """A random dictionary in which about a third of the features fire."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int, size: float = 0.4) -> torch.Tensor:
        return size * torch.randn(shape, generator=generator, dtype=torch.float64)

    of_kind = {"cross_layer": CrossLayerTranscoder, "per_layer": PerLayerTranscoder}[kind]
    activations = {
        "relu": ReLU(),
        "jump_relu": JumpReLU(noise(FEATURES).abs()),
        "topk": TopK(7),
    }
    layers = [
        TranscoderLayer(
            W_enc=noise(FEATURES, WIDTH),
            b_enc=noise(FEATURES) - (0.4 if activation == "relu" else 0),
            decoder=DenseDecoder(
                noise(FEATURES, LAYERS - layer if kind == "cross_layer" else 1, WIDTH)
            ),
            b_dec=noise(WIDTH),
            activation=activations[activation],
            W_skip=noise(WIDTH, WIDTH, size=0.2) if skip else None,
        )
        for layer in range(LAYERS)
    ]
    return of_kind(layers, read=read)


def replacement_model(
    family: str = "gpt2", dtype: torch.dtype = torch.float64, **options: Any
) -> ReplacementModel:
    """A random model with a random dictionary; options as `transcoder`'s."""
    return ReplacementModel.from_huggingface(
        FAMILIES[family](dtype), None, transcoder(**options), name=f"random-{family}"
    )
