"""Phi-3 and Phi-4: as Llama, with one matrix for query, key and value."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import of_layers
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import last, projections


def phi3(model: Any) -> Host:
    """Name the parts of a `Phi3ForCausalLM`."""
    return of_layers(model, _block)


def _block(module: Any, config: Any) -> Block:
    attention = module.self_attn
    norm = norm_of(module.input_layernorm)
    width = config.num_key_value_heads * attention.head_dim
    maps = projections(
        attention.qkv_proj,
        attention.o_proj,
        config.num_attention_heads,
        config.num_key_value_heads,
        norm.weight,
        pick=last(width),
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        **vars(maps),
    )
