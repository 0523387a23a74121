"""Phi-3 and Phi-4: as Llama, with one matrix for query, key and value."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import outside
from replacement_models.hosts.norms import rms_norm
from replacement_models.hosts.projections import projections


def phi3(model: Any) -> Host:
    """Name the parts of a `Phi3ForCausalLM`."""
    blocks = [_block(module, model.config) for module in model.model.layers]
    return Host(final_norm=rms_norm(model.model.norm), blocks=blocks, **outside(model))


def _block(module: Any, config: Any) -> Block:
    attention = module.self_attn
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = kv_heads * attention.head_dim
    maps = projections(
        attention.qkv_proj, attention.o_proj, heads, kv_heads, pick=lambda out: out[..., -width:]
    )
    return Block(
        module=module,
        attention_norm=rms_norm(module.input_layernorm),
        attention=attention,
        mlp_norm=rms_norm(module.post_attention_layernorm),
        mlp=module.mlp,
        **vars(maps),
    )
