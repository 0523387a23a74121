"""Small random hybrids: linear attention and state-space layers, every part of them active."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from replacement_models import ReplacementModel
from tests.family_configs import ROUTED
from tests.random_models import COMMON, GROUPED, PAIRED, randomised, transcoder

MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
}
MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12,
    "decoder_sparse_step": 1,
}
NEXT = {**GROUPED, **DELTA, **MIXED, "attention_bias": True, "partial_rotary_factor": 0.5}

SCAN = {
    **GROUPED,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 4,
    "mamba_expand": 2,
    "mamba_proj_bias": True,
    "attention_bias": True,
    "head_dim": 4,
}
MAMBA = {
    **GROUPED,
    "head_dim": 8,
    "num_heads": 4,
    "state_size": 5,
    "n_groups": 2,
    "conv_kernel": 3,
    "chunk_size": 4,
    "expand": 2,
    "use_bias": True,
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": False,
}
GRANITE = {
    **SCAN,
    "layers_block_type": ["linear_attention", "full_attention", "linear_attention"],
    "shared_intermediate_size": 12,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
}
FALCON = {
    **SCAN,
    "projectors_bias": True,
    "mlp_bias": True,
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.6,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.9,
    "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3],
    "mlp_multipliers": [0.8, 0.5],
}
KIMI = {
    **PAIRED,
    **ROUTED,
    **MIXED,
    "num_key_value_heads": 4,
    "attention_bias": True,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "linear_head_dim": 4,
    "linear_num_heads": 3,
    "linear_conv_kernel_dim": 3,
}
LFM = {
    **GROUPED,
    "layer_types": ["conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "head_dim": 4,
}

ZAMBA = {
    **COMMON,
    "num_hidden_layers": 2,
    "layers_block_type": ["linear_attention", "hybrid"],
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_ngroups": 2,
    "n_mamba_heads": 4,
    "chunk_size": 4,
    "adapter_rank": 3,
    "use_shared_attention_adapter": True,
    "use_mem_rope": True,
}
"""A hybrid layer is two blocks: a shared one, and a Mamba 2."""

HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("qwen3_next", {**NEXT, **MIXTURE, "mlp_only_layers": [1]}),
    "qwen3_5": ("qwen3_5", {"text_config": NEXT}),
    "bamba": ("bamba", {**SCAN, "attn_layer_indices": [1]}),
    "granite": ("granitemoehybrid", {**GRANITE, "num_local_experts": 0}),
    "granite_moe": (
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "mamba2": ("mamba2", MAMBA),
    "nemotron_h": (
        "nemotron_h",
        {
            **MAMBA,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 5,
            "layers_block_type": [
                *("linear_attention", "mlp", "full_attention", "linear_attention", "moe"),
            ],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "moe_shared_expert_intermediate_size": 12,
            "mlp_bias": True,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.3,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {**FALCON, "mamba_d_ssm": 32, "mamba_rms_norm": True, "mamba_norm_before_gate": True},
    ),
    "falcon_h1_bare": (
        "falcon_h1",
        {**FALCON, "mamba_d_ssm": 12, "mamba_rms_norm": False, "mamba_d_head": 3},
    ),
    "mamba": ("mamba", {**MAMBA, "time_step_rank": 3}),
    "falcon_mamba": ("falcon_mamba", {**MAMBA, "time_step_rank": 3}),
    "jamba": (
        "jamba",
        {**GROUPED, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4}
        | {"num_experts_per_tok": 2, "expert_layer_period": 2, "mamba_d_state": 5}
        | {"mamba_d_conv": 3, "mamba_dt_rank": 3, "mamba_proj_bias": True},
    ),
    "lfm2": ("lfm2", LFM),
    "lfm2_biased": ("lfm2", {**LFM, "conv_bias": True}),
    "lfm2_moe": ("lfm2_moe", {**LFM, **MIXTURE, "num_dense_layers": 1, "use_expert_bias": False}),
    "olmo_hybrid": (
        "olmo_hybrid",
        {**GROUPED, **DELTA, **MIXED, "linear_allow_neg_eigval": True, "attention_bias": True},
    ),
    "kimi_linear": ("kimi_linear", KIMI),
    "bailing_hybrid": (
        "bailing_hybrid",
        {**KIMI, "head_dim": 5, "short_conv_kernel_size": 3, "num_mtp_layers": 0},
    ),
    "qwen3_5_moe": ("qwen3_5_moe", {"text_config": {**NEXT, **MIXTURE}}),
    "zamba": (
        "zamba",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "layers_block_type": ["linear_attention", "hybrid"],
            "num_key_value_heads": 2,
            "mamba_d_state": 5,
            "mamba_d_conv": 3,
            "mamba_dt_rank": 3,
            "n_mamba_heads": 2,
            "mamba_proj_bias": True,
        },
    ),
    "zamba2": ("zamba2", ZAMBA),
    "zamba2_grouped": (
        "zamba2",
        {**ZAMBA, "layers_block_type": ["hybrid", "linear_attention"], "num_key_value_heads": 2}
        | {"use_shared_attention_adapter": False, "add_bias_linear": True},
    ),
}
"""Name of a case to its `model_type` and what its configuration takes."""


ASIDE = ("zamba", "zamba2", "zamba2_grouped")
"""Cases with blocks that add nothing to the residual stream."""


def hybrid_language_model(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of one of HYBRIDS, as transformers builds it."""
    model_type, options = HYBRIDS[family]
    config = AutoConfig.for_model(model_type, **{**options, **changes})
    return randomised(AutoModelForCausalLM.from_config(config), dtype)


def hybrid(family: str, dtype: torch.dtype = torch.float64, **options: Any) -> ReplacementModel:
    """A random hybrid with a random dictionary; options as `transcoder`'s."""
    dictionary = transcoder(**{"skip": True, **options})
    return ReplacementModel.from_huggingface(hybrid_language_model(family, dtype), None, dictionary)
