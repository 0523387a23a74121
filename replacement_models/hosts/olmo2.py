"""OLMo 2: norms after attention and MLP only, both read the residual stream itself."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import outside, separate
from replacement_models.hosts.norms import rms_norm


def olmo2(model: Any) -> Host:
    """Name the parts of an `Olmo2ForCausalLM`."""
    blocks = [
        Block(
            module=module,
            attention_norm=None,
            attention=module.self_attn,
            attention_post_norm=rms_norm(module.post_attention_layernorm),
            mlp_norm=None,
            mlp=module.mlp,
            mlp_post_norm=rms_norm(module.post_feedforward_layernorm),
            **vars(separate(module.self_attn, model.config)),
        )
        for module in model.model.layers
    ]
    return Host(final_norm=rms_norm(model.model.norm), blocks=blocks, **outside(model))
