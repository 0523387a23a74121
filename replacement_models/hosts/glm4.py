"""GLM-4 (0414): norms before and after attention and MLP."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import of_layers, separate
from replacement_models.hosts.norms import norm_of


def glm4(model: Any) -> Host:
    """Name the parts of a `Glm4ForCausalLM`."""
    return of_layers(model, _block)


def _block(module: Any, config: Any) -> Block:
    norm = norm_of(module.input_layernorm)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn,
        attention_post_norm=norm_of(module.post_self_attn_layernorm),
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        mlp_post_norm=norm_of(module.post_mlp_layernorm),
        **vars(separate(module.self_attn, config, norm.weight)),
    )
