"""GPT-2 and GPT-Neo: LayerNorm, learned positions; GPT-2 makes query, key, value at once."""

from typing import Any

from replacement_models.host import Block, Host, Norm
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import Projections, projections, unembedding


def gpt2(model: Any) -> Host:
    """Name the parts of a `GPT2LMHeadModel`."""
    return _host(model, [_block(module, model.config.n_head) for module in model.transformer.h])


def gpt_neo(model: Any) -> Host:
    """Name the parts of a `GPTNeoForCausalLM`."""
    return _host(
        model, [_neo_block(module, model.config.num_heads) for module in model.transformer.h]
    )


def _host(model: Any, blocks: list[Block]) -> Host:
    body = model.transformer
    final_norm = norm_of(body.ln_f)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=blocks,
        embedding=body.wte,
        position_embedding=body.wpe,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=model.config.max_position_embeddings,
    )


def _block(module: Any, heads: int) -> Block:
    attention = module.attn
    width = attention.embed_dim
    norm = norm_of(module.ln_1)
    maps = projections(
        attention.c_attn,
        attention.c_proj,
        heads,
        heads,
        norm.weight,
        pick=lambda out: out[..., 2 * width :],
    )
    return _assembled(module, norm, maps)


def _neo_block(module: Any, heads: int) -> Block:
    attention, norm = module.attn.attention, norm_of(module.ln_1)
    maps = projections(attention.v_proj, attention.out_proj, heads, heads, norm.weight)
    return _assembled(module, norm, maps)


def _assembled(module: Any, norm: Norm, maps: Projections) -> Block:
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.attn,
        mlp_norm=norm_of(module.ln_2),
        mlp=module.mlp,
        **vars(maps),
    )
