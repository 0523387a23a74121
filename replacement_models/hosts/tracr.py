"""Models that Tracr compiled, and any other without norms (replacement_models/tracr_model.py)."""

from typing import Any

import torch

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import outside
from replacement_models.hosts.projections import projections, unembedding
from replacement_models.hosts.weights import read


def tracr(model: Any) -> Host:
    """Name the parts of a `TracrForCausalLM`: attention and MLPs read the stream as it is."""
    like = read(model.embed_tokens)[0]
    weight, _ = unembedding(model.lm_head, like)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=[_block(module, model.config.num_attention_heads, like) for module in model.layers],
        embedding=model.embed_tokens,
        position_embedding=model.embed_positions,
        final_norm=outside(model.final, torch.ones_like(like)),
        unembedding=weight,
        context=model.config.max_position_embeddings,
    )


def _block(module: Any, heads: int, like: torch.Tensor) -> Block:
    attention = module.attention
    return Block(
        module=module,
        attention_norm=None,
        attention=attention,
        mlp_norm=None,
        mlp=module.mlp,
        **vars(projections(attention.v_proj, attention.o_proj, heads, heads, like)),
    )
