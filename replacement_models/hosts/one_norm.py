"""GPT-J, Phi 1 and 2, Cohere: attention and MLP side by side behind one norm."""

from dataclasses import replace
from typing import Any

from replacement_models.host import Block, Host, Norm
from replacement_models.hosts.llama import host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import Projections, projections, unembedding


def gptj(model: Any) -> Host:
    """Name the parts of a `GPTJForCausalLM`."""
    body, heads = model.transformer, model.config.n_head
    final_norm = norm_of(body.ln_f)
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    blocks = []
    for module in body.h:
        norm, attention = norm_of(module.ln_1), module.attn
        maps = projections(attention.v_proj, attention.out_proj, heads, heads, norm.weight)
        blocks.append(_block(module, attention, norm, maps))
    return Host(
        family="gptj",
        model=model,
        blocks=blocks,
        embedding=body.wte,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=model.config.n_positions,
    )


def phi(model: Any) -> Host:
    """Name the parts of a `PhiForCausalLM`."""
    return host(model, _blocks(model, "dense"), norm_of(model.model.final_layernorm))


def cohere(model: Any) -> Host:
    """Name the parts of a `CohereForCausalLM` or `Cohere2ForCausalLM`, which scale their logits."""
    plain = host(model, _blocks(model, "o_proj"), norm_of(model.model.norm))
    return replace(plain, unembedding=plain.unembedding * model.logit_scale)


def _blocks(model: Any, output: str) -> list[Block]:
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    blocks = []
    for module in model.model.layers:
        norm, attention = norm_of(module.input_layernorm), module.self_attn
        mixing = getattr(attention, output)
        maps = projections(attention.v_proj, mixing, heads, kv_heads, norm.weight)
        blocks.append(_block(module, attention, norm, maps))
    return blocks


def _block(module: Any, attention: Any, norm: Norm, maps: Projections) -> Block:
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm,
        mlp=module.mlp,
        parallel=True,
        **vars(maps),
    )
