"""GPT-2: LayerNorm, learned positions, one matrix for query, key and value."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections, unembedding


def gpt2(model: Any) -> Host:
    """Name the parts of a `GPT2LMHeadModel`."""
    body = model.transformer
    final_norm = norm_of(body.ln_f)
    return Host(
        family="gpt2",
        model=model,
        blocks=[_block(module, model.config.n_head) for module in body.h],
        embedding=body.wte,
        position_embedding=body.wpe,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=model.config.n_positions,
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
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.ln_2),
        mlp=module.mlp,
        **vars(maps),
    )
