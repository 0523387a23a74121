"""Gates on heads' outputs: AFMoE (Trinity) and Laguna; BitNet's norm there. All are held."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from replacement_models.around import Call, Factors, Watch
from replacement_models.host import Block, Host
from replacement_models.hosts.llama import of_layers, separate
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections


def afmoe(model: Any) -> Host:
    """Name the parts of an `AfmoeForCausalLM`: norms on both sides, every output gated."""
    plain = of_layers(model, _afmoe_block)
    if not model.config.mup_enabled:
        return plain
    return replace(plain, embedding_scale=model.config.hidden_size**0.5)


def _afmoe_block(module: Any, config: Any) -> Block:
    norm, attention = norm_of(module.input_layernorm), module.self_attn
    heads = config.num_attention_heads

    def factors(calls: Mapping[str, Call]) -> Factors:
        return Factors(outputs=calls["gate"].output[0].sigmoid().unflatten(-1, (heads, -1)))

    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        attention_post_norm=norm_of(module.post_attention_layernorm),
        mlp_norm=norm_of(module.pre_mlp_layernorm),
        mlp=module.mlp,
        mlp_post_norm=norm_of(module.post_mlp_layernorm),
        watch=Watch(modules={"gate": attention.gate_proj}, factors=factors),
        **vars(separate(attention, config, norm.weight)),
    )


def laguna(model: Any) -> Host:
    """Name the parts of a `LagunaForCausalLM`, whose layers differ in their number of heads."""
    return of_layers(model, _laguna_block)


def _laguna_block(module: Any, config: Any) -> Block:
    norm, attention = norm_of(module.input_layernorm), module.self_attn
    heads, kv_heads = attention.num_heads, config.num_key_value_heads

    def factors(calls: Mapping[str, Call]) -> Factors:
        gate = nn.functional.softplus(calls["gate"].output[0].float())
        return Factors(outputs=gate.to(norm.weight.dtype).unflatten(-1, (heads, -1)))

    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        watch=Watch(modules={"gate": attention.g_proj}, factors=factors),
        **vars(projections(attention.v_proj, attention.o_proj, heads, kv_heads, norm.weight)),
    )


def bitnet(model: Any) -> Host:
    """Name the parts of a `BitNetForCausalLM`: a norm over all heads' outputs, before their map."""
    return of_layers(model, _bitnet_block)


def _bitnet_block(module: Any, config: Any) -> Block:
    norm, attention = norm_of(module.input_layernorm), module.self_attn
    inner, heads = norm_of(attention.attn_sub_norm), config.num_attention_heads

    def factors(calls: Mapping[str, Call]) -> Factors:
        held = inner.weight / inner.scale(calls["inner"].inputs[0][0])
        return Factors(outputs=held.unflatten(-1, (heads, -1)))

    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        watch=Watch(modules={"inner": inner.module}, factors=factors),
        **vars(separate(attention, config, norm.weight)),
    )
