"""Small random configurations of many decoder types, every part of each at work."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from tests.random_models import EXPERTS, GROUPED, LAYERS, MIXED, PAIRED, SLIDING, randomised

WITHOUT_NAMES = {
    key: value for key, value in PAIRED.items() if key not in ("num_key_value_heads", "hidden_size")
}
BIASED = {**GROUPED, "attention_bias": True}
GRANITE = {
    **PAIRED,
    "attention_bias": True,
    "mlp_bias": True,
    "residual_multiplier": 0.6,
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.7,
    "attention_multiplier": 0.4,
}
SHARED = {"shared_intermediate_size": 12}
ROUTED = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 2,
    "routed_scaling_factor": 1.3,
}
FALCON = {**WITHOUT_NAMES, "hidden_size": 16, "bias": True, "ffn_hidden_size": 24}
FFN = {"ffn_dim": 24, "word_embed_proj_dim": 16, "d_model": 16, "num_layers": LAYERS}

LATENT = {
    **PAIRED,
    **ROUTED,
    "num_key_value_heads": 4,
    "attention_bias": True,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "first_k_dense_replace": 1,
}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
INDEXED = {"index_topk": 4, "index_n_heads": 2, "index_head_dim": 4}

SEES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "crop_size": 28,
}
HEARS = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_blocks": 1,
    "num_attention_heads": 2,
    "ext_pw_out_channel": 8,
    "nemo_conv_channels": 8,
    "depthwise_separable_out_channel": 8,
    "input_size": 16,
    "nemo_final_size": 8,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "afmoe",
        {**GROUPED, **MIXED, **ROUTED, "num_dense_layers": 1, "mup_enabled": True}
        | {"num_shared_experts": 1},
    ),
    "apertus": ("apertus", BIASED),
    "aria_text": (
        "aria_text",
        {**GROUPED, "attention_bias": True, "moe_num_experts": 4, "moe_topk": 2}
        | {"moe_num_shared_experts": 1, "intermediate_size": 8},
    ),
    "axk1": ("axk1", {**LATENT, **SPARSE}),
    "biogpt": ("biogpt", {**PAIRED, "scale_embedding": True}),
    "bitnet": ("bitnet", {**PAIRED, "attention_bias": True}),
    "bloom": ("bloom", {**PAIRED, "n_layer": LAYERS, "n_head": 4}),
    "codegen": (
        "codegen",
        {**PAIRED, "n_embd": 16, "n_layer": LAYERS, "n_head": 4, "n_positions": 16}
        | {"rotary_dim": 2},
    ),
    "cohere2_moe": (
        "cohere2_moe",
        {**BIASED, **MIXED, **ROUTED, "num_shared_experts": 1, "logit_scale": 0.3}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "norm_topk_prob": True},
    ),
    "cohere_compass_text": (
        "cohere_compass_text",
        {**BIASED, **MIXED, "logit_scale": 0.3}
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": None,
            }
        },
    ),
    "dbrx": (
        "dbrx",
        {"d_model": 16, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 16, "vocab_size": 29}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 50.0, "rope_theta": 1e4}}
        | {
            "ffn_config": {"hidden_size": 16, "ffn_hidden_size": 8, "moe_num_experts": 4}
            | {"moe_top_k": 2}
        }
        | {"attn_implementation": "eager", "tie_word_embeddings": False, "pad_token_id": 0},
    ),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "n_group": 1, "topk_group": 1}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "deepseek_v32": ("deepseek_v32", {**LATENT, **INDEXED}),
    "dots1": ("dots1", {**BIASED, **MIXED, **ROUTED, "first_k_dense_replace": 1}),
    "emu3": ("emu3", {"text_config": {**GROUPED, "attention_bias": True}}),
    "falcon": ("falcon", {**FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon_heads": ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False}),
    "falcon_new": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_one_norm": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
        | {"num_ln_in_parallel_attn": 1, "parallel_attn": True},
    ),
    "falcon_alibi": (
        "falcon",
        {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False},
    ),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, **SPARSE}),
    "glm_moe_dsa": ("glm_moe_dsa", {**LATENT, **SPARSE, **INDEXED}),
    "gpt_bigcode": ("gpt_bigcode", {**PAIRED, "n_inner": 24}),
    "gpt_bigcode_heads": ("gpt_bigcode", {**PAIRED, "n_inner": 24, "multi_query": False}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**PAIRED, "intermediate_multiple_size": 2}),
    "granite": ("granite", GRANITE),
    "granitemoe": ("granitemoe", {**GRANITE, **EXPERTS}),
    "granitemoeshared": ("granitemoeshared", {**GRANITE, **EXPERTS, **SHARED}),
    "hyperclovax": ("hyperclovax", {**GRANITE, "head_dim": 4, "use_post_norm": False}),
    "hyperclovax_post_norm": (
        "hyperclovax",
        {**GRANITE, "head_dim": 4, "use_post_norm": True, "residual_multiplier": 1.0},
    ),
    "kolibri1": (
        "kolibri1",
        {**BIASED, **MIXED, **ROUTED, "shared_expert_intermediate_size": 12},
    ),
    "laguna": (
        "laguna",
        {**GROUPED, **MIXED, **ROUTED, **SPARSE, "num_attention_heads_per_layer": [4, 2, 4]}
        | {"shared_expert_intermediate_size": 12, "gating": "per-head"},
    ),
    "laguna_elementwise": (
        "laguna",
        {**GROUPED, **MIXED, **ROUTED, **SPARSE, "num_attention_heads_per_layer": [4, 2, 4]}
        | {"shared_expert_intermediate_size": 12, "gating": "per-element"},
    ),
    "llama4": (
        "llama4",
        {
            "text_config": {**BIASED, "num_experts_per_tok": 1, "num_local_experts": 4}
            | {"moe_layers": [], "intermediate_size_mlp": 24}
        },
    ),
    "llama4_text": (
        "llama4_text",
        {**BIASED, "num_experts_per_tok": 1, "num_local_experts": 4, "moe_layers": [1]}
        | {"intermediate_size_mlp": 24, "attention_chunk_size": 3},
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        {**BIASED, **MIXED, **ROUTED, "num_key_value_heads": 1, "v_head_dim": 5}
        | {"attention_value_scale": 0.7, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "minicpm3": (
        "minicpm3",
        {**LATENT, "scale_depth": 1.4, "scale_emb": 3.0, "dim_model_base": 10},
    ),
    "mpt": (
        "mpt",
        {**PAIRED, "d_model": 16, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 16},
    ),
    "nanochat": ("nanochat", {**PAIRED, "attention_bias": True, "final_logit_softcapping": 4.0}),
    "nemotron": (
        "nemotron",
        {**BIASED, "mlp_bias": True, "partial_rotary_factor": 0.5},
    ),
    "olmo": ("olmo", {**PAIRED, "attention_bias": True, "clip_qkv": 50.0}),
    "opt": ("opt", {**PAIRED, **FFN}),
    "persimmon": ("persimmon", {**PAIRED, "partial_rotary_factor": 0.5}),
    "phi4_multimodal": (
        "phi4_multimodal",
        {**PAIRED, **SLIDING, "vision_config": SEES, "audio_config": HEARS},
    ),
    "vaultgemma": (
        "vaultgemma",
        {**BIASED, **MIXED, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}
        | {"query_pre_attn_scalar": 5},
    ),
    "youtu": ("youtu", LATENT),
    "xglm": ("xglm", {**PAIRED, **FFN, "attention_heads": 4, "scale_embedding": True}),
}
"""Name of a case to its `model_type` and what its configuration takes."""

EXACT = {
    "biogpt", "bloom", "codegen", "dbrx", "falcon", "falcon_alibi", "falcon_heads", "falcon_new",
    "falcon_one_norm", "gpt_bigcode", "gpt_bigcode_heads", "gpt_neox_japanese", "mpt", "nemotron",
    "opt", "persimmon",
}  # fmt: skip
"""Cases whose norms honour float64; RMSNorm runs in float32 inside transformers."""
FLOAT32 = {"xglm"}
"""Cases whose code overflows in float64."""
WITHOUT_NEURONS = {
    "axk1", "bitnet", "dbrx", "llama4_text",
}  # fmt: skip
"""Cases whose MLPs are not taken apart, though traced as one with a dictionary."""
KNOWN = [
    name
    for name, (model_type, _) in CONFIGS.items()
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
]
"""Cases that the installed transformers has."""


def model_of_family(name: str) -> Any:
    """A random model of one of CONFIGS, as transformers builds it."""
    model_type, options = CONFIGS[name]
    config = AutoConfig.for_model(model_type, **options)
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    return randomised(AutoModelForCausalLM.from_config(config), dtype)
