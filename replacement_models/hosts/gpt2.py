"""GPT-2: LayerNorm, learned positions, one matrix for query, key and value."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import layer_norm
from replacement_models.hosts.projections import projections
from replacement_models.hosts.weights import read


def gpt2(model: Any) -> Host:
    """Name the parts of a `GPT2LMHeadModel`."""
    body = model.transformer
    return Host(
        family="gpt2",
        model=model,
        blocks=[_block(module, model.config.n_head) for module in body.h],
        embedding=body.wte,
        position_embedding=body.wpe,
        final_norm=layer_norm(body.ln_f),
        unembedding=read(model.lm_head),
        context=model.config.n_positions,
    )


def _block(module: Any, heads: int) -> Block:
    attention = module.attn
    width = attention.embed_dim
    maps = projections(
        attention.c_attn, attention.c_proj, heads, heads, pick=lambda out: out[..., 2 * width :]
    )
    return Block(
        module=module,
        attention_norm=layer_norm(module.ln_1),
        attention=attention,
        mlp_norm=layer_norm(module.ln_2),
        mlp=module.mlp,
        **vars(maps),
    )
