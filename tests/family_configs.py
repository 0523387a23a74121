"""Small random configurations of many decoder types, every part of each at work."""

from typing import Any

from tests.random_models import EXPERTS, GROUPED, LAYERS, MIXED, PAIRED, SLIDING

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
SWA = {**SLIDING, "layer_types": MIXED["layer_types"], "layer_rope_theta": [1e4, 0.0, 1e4]}
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

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", BIASED),
    "aria_text": (
        "aria_text",
        {**GROUPED, "attention_bias": True, "moe_num_experts": 4, "moe_topk": 2}
        | {"moe_num_shared_experts": 1, "intermediate_size": 8},
    ),
    "biogpt": ("biogpt", {**PAIRED, "scale_embedding": True}),
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
        {**BIASED, **MIXED, "logit_scale": 0.3},
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
    "dots1": ("dots1", {**BIASED, **MIXED, **ROUTED, "first_k_dense_replace": 1}),
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
    "gpt_bigcode": ("gpt_bigcode", {**PAIRED, "n_inner": 24}),
    "gpt_bigcode_heads": ("gpt_bigcode", {**PAIRED, "n_inner": 24, "multi_query": False}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**PAIRED, "intermediate_multiple_size": 2}),
    "granite": ("granite", GRANITE),
    "granite_swa": ("granite_swa", {**GRANITE, **SWA}),
    "granitemoe": ("granitemoe", {**GRANITE, **EXPERTS}),
    "granitemoe_swa": ("granitemoe_swa", {**GRANITE, **EXPERTS, **SWA, **SHARED}),
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
    "phi4_multimodal": ("phi4_multimodal", {**PAIRED, **SLIDING}),
    "vaultgemma": (
        "vaultgemma",
        {**BIASED, **MIXED, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}
        | {"query_pre_attn_scalar": 5},
    ),
    "xglm": ("xglm", {**PAIRED, **FFN, "attention_heads": 4, "scale_embedding": True}),
}
"""Name of a case to its `model_type` and what its configuration takes."""
