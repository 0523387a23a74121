"""OLMo 2: norms after attention and MLP only, both read the residual stream itself."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import of_layers, separate
from replacement_models.hosts.norms import norm_of


def olmo2(model: Any) -> Host:
    """Name the parts of an `Olmo2ForCausalLM`."""
    return of_layers(model, post_normed)


def post_normed(module: Any, config: Any) -> Block:
    """A block with norms behind attention and MLP and none before."""
    post_norm = norm_of(module.post_attention_layernorm)
    return Block(
        module=module,
        attention_norm=None,
        attention=module.self_attn,
        attention_post_norm=post_norm,
        mlp_norm=None,
        mlp=module.mlp,
        mlp_post_norm=norm_of(module.post_feedforward_layernorm),
        **vars(separate(module.self_attn, config, post_norm.weight)),
    )
