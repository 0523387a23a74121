"""Llama but for a name or a norm: Apertus, Llama 4, MiMo V2, nanochat, OLMo, VaultGemma."""

from dataclasses import replace
from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.gemma import gemma_host
from replacement_models.hosts.llama import host, of_layers, separate
from replacement_models.hosts.norms import norm_of, plain_norm, shifted_rms_norm
from replacement_models.hosts.projections import projections
from replacement_models.hosts.weights import read


def apertus(model: Any) -> Host:
    """Name the parts of an `ApertusForCausalLM`."""
    return of_layers(model, _apertus_block)


def _apertus_block(module: Any, config: Any) -> Block:
    norm = norm_of(module.attention_layernorm)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn,
        mlp_norm=norm_of(module.feedforward_layernorm),
        mlp=module.mlp,
        **vars(separate(module.self_attn, config, norm.weight)),
    )


def llama4(model: Any) -> Host:
    """Name the parts of a `Llama4ForCausalLM`."""
    return of_layers(model, _llama4_block)


def _llama4_block(module: Any, config: Any) -> Block:
    norm = norm_of(module.input_layernorm)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.feed_forward,
        **vars(separate(module.self_attn, config, norm.weight)),
    )


def mimo_v2(model: Any) -> Host:
    """Name the parts of a `MiMoV2FlashForCausalLM`: twice the value heads where windows slide."""
    return of_layers(model, _mimo_block)


def _mimo_block(module: Any, config: Any) -> Block:
    attention, norm = module.self_attn, norm_of(module.input_layernorm)
    heads, scale = config.num_attention_heads, attention.v_scale
    maps = projections(
        attention.v_proj,
        attention.o_proj,
        heads,
        heads // attention.num_key_value_groups,
        norm.weight,
        pick=lambda out: out * scale,
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        **vars(maps),
    )


def olmo(model: Any) -> Host:
    """Name the parts of an `OlmoForCausalLM`, whose norms have no weights."""
    return _without_weights(model)


def nanochat(model: Any) -> Host:
    """Name the parts of a `NanoChatForCausalLM`: no norm weights, and one norm at both ends."""
    plain = _without_weights(model)
    cap = model.config.final_logit_softcapping
    return replace(plain, embedding_norm=plain.final_norm, logit_cap=cap)


def _without_weights(model: Any) -> Host:
    like = read(model.lm_head)[0]

    def block(module: Any) -> Block:
        norm = plain_norm(module.input_layernorm, like)
        return Block(
            module=module,
            attention_norm=norm,
            attention=module.self_attn,
            mlp_norm=plain_norm(module.post_attention_layernorm, like),
            mlp=module.mlp,
            **vars(separate(module.self_attn, model.config, like)),
        )

    blocks = [block(module) for module in model.model.layers]
    return host(model, blocks, plain_norm(model.model.norm, like))


def vaultgemma(model: Any) -> Host:
    """Name the parts of a `VaultGemmaForCausalLM`: Gemma 2 without norms behind."""
    return gemma_host(model, _vaultgemma_block)


def _vaultgemma_block(module: Any, config: Any) -> Block:
    norm = shifted_rms_norm(module.input_layernorm)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn,
        mlp_norm=shifted_rms_norm(module.pre_feedforward_layernorm),
        mlp=module.mlp,
        **vars(separate(module.self_attn, config, norm.weight)),
    )
