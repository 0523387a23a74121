"""Small random models and dictionaries of every kind, for laws that must hold for any weights."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from replacement_models import (
    CrossLayerTranscoder,
    DenseDecoder,
    JumpReLU,
    PerLayerTranscoder,
    ReadPoint,
    ReLU,
    ReLUTopK,
    ReplacementModel,
    TopK,
    Transcoder,
    TranscoderLayer,
    WritePoint,
)

LAYERS, WIDTH, FEATURES, VOCABULARY = 3, 16, 24, 29
PROMPT = (1, 7, 12, 5, 22, 9)
WINDOW = 3
"""Of sliding attention: it binds on PROMPT."""
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PAIRED = {**COMMON, "num_key_value_heads": 2}
GROUPED = {**PAIRED, "head_dim": 6}
SLIDING = {"sliding_window": WINDOW}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {**GROUPED, **MIXED, "attention_bias": True, "query_pre_attn_scalar": 5}
CAPPED = {"final_logit_softcapping": 4.0}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
IMAGES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", COMMON),
    "gpt_neox": ("gpt_neox", {**COMMON, "rotary_pct": 0.5}),
    "gpt_neox_sequential": ("gpt_neox", {**COMMON, "use_parallel_residual": False}),
    "gpt_neo": (
        "gpt_neo",
        {**COMMON, "num_layers": LAYERS, "num_heads": 4, "window_size": WINDOW}
        | {"attention_types": [[["global", "local", "global"], 1]]},
    ),
    "gptj": ("gptj", {**COMMON, "rotary_dim": 2}),
    "phi": ("phi", {**PAIRED, "partial_rotary_factor": 0.5}),
    "cohere": ("cohere", {**PAIRED, "attention_bias": True, "logit_scale": 0.3}),
    "cohere2": ("cohere2", {**GROUPED, **MIXED, "logit_scale": 0.3}),
    "glm4": ("glm4", {**GROUPED, "attention_bias": True}),
    "llama": ("llama", {**PAIRED, "attention_bias": True}),
    "llama_multi_head": ("llama", {**COMMON, "mlp_bias": True}),
    "mistral": ("mistral", {**GROUPED, **SLIDING, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {**PAIRED, **MIXED, "use_sliding_window": True}),
    "qwen3": ("qwen3", {**GROUPED, "attention_bias": True}),
    "gemma2": ("gemma2", {**GEMMA, **CAPPED, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", {**GEMMA, **CAPPED}),
    "gemma3": (
        "gemma3",
        {
            "text_config": GEMMA,
            "vision_config": IMAGES,
            "mm_tokens_per_image": 4,
            "attn_implementation": "eager",
            "tie_word_embeddings": False,
        },
    ),
    "phi3": ("phi3", {**PAIRED, **SLIDING}),
    "olmo2": ("olmo2", {**PAIRED, "attention_bias": True}),
    "gpt_oss": (
        "gpt_oss",
        {
            **GROUPED,
            **MIXED,
            **EXPERTS,
            "attention_bias": True,
            "max_position_embeddings": 131_072,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **GROUPED,
            "num_experts_per_tok": 2,
            "num_experts": 4,
            "moe_intermediate_size": 8,
            "mlp_only_layers": [1],
            "attention_bias": True,
        },
    ),
    "mixtral": ("mixtral", {**PAIRED, **SLIDING, **EXPERTS}),
}
"""Name of a case to its `model_type` and what its configuration takes."""


def language_model(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of one of FAMILIES, as transformers builds it."""
    model_type, options = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**options, **changes})
    return randomised(AutoModelForCausalLM.from_config(config), dtype)


def randomised(model: Any, dtype: torch.dtype) -> Any:
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
    write: WritePoint = WritePoint.MLP_OUTPUT,
    seed: int = 1,
    at: Sequence[int] = range(LAYERS),
) -> Transcoder:
    """A random dictionary in which about a third of the features fire, at some of the layers.

    Of `LAYERS` layers, or as many as `at` names.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int, size: float = 0.4) -> torch.Tensor:
        return size * torch.randn(shape, generator=generator, dtype=torch.float64)

    of_kind = {"cross_layer": CrossLayerTranscoder, "per_layer": PerLayerTranscoder}[kind]
    activations = {
        "relu": ReLU(),
        "jump_relu": JumpReLU(noise(FEATURES).abs()),
        "topk": TopK(7),
        "relu_topk": ReLUTopK(7),
    }

    def targets(layer: int) -> int:
        return 1 if kind == "per_layer" else sum(target >= layer for target in at)

    layers = [
        TranscoderLayer(
            W_enc=noise(FEATURES, WIDTH),
            b_enc=noise(FEATURES) - (0.4 if activation == "relu" else 0),
            decoder=DenseDecoder(noise(FEATURES, targets(layer), WIDTH)),
            b_dec=noise(WIDTH),
            activation=activations[activation],
            W_skip=noise(WIDTH, WIDTH, size=0.2) if skip else None,
        )
        if layer in at
        else TranscoderLayer.empty(noise(WIDTH), targets(layer))
        for layer in range(max(LAYERS, *(layer + 1 for layer in at)) if at else LAYERS)
    ]
    return of_kind(layers, read=read, write=write)


def replacement_model(
    family: str = "gpt2",
    dtype: torch.dtype = torch.float64,
    elsewhere: str | None = None,
    **options: Any,
) -> ReplacementModel:
    """A random model with a random dictionary; options as `transcoder`'s."""
    return ReplacementModel.from_huggingface(
        language_model(family, dtype),
        None,
        transcoder(**options),
        name=f"random-{family}",
        elsewhere=elsewhere,
    )
