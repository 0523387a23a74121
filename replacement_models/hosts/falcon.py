"""Falcon: one matrix for query, key and value in three orders; blocks parallel or not."""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import by_group, projections, unembedding


def falcon(model: Any) -> Host:
    """Name the parts of a `FalconForCausalLM`."""
    body, config = model.transformer, model.config
    final_norm = norm_of(body.ln_f)
    return Host(
        family="falcon",
        model=model,
        blocks=[_block(module, config) for module in body.h],
        embedding=body.word_embeddings,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=None if config.alibi else config.max_position_embeddings,
    )


def _block(module: Any, config: Any) -> Block:
    two = hasattr(module, "ln_attn")
    norm = norm_of(module.ln_attn if two else module.input_layernorm)
    parallel = config.new_decoder_architecture or config.parallel_attn
    if two:
        before_mlp = norm_of(module.ln_mlp)
    else:
        before_mlp = norm if parallel else norm_of(module.post_attention_layernorm)
    attention, heads = module.self_attention, config.num_attention_heads
    kv_heads = config.num_kv_heads if config.new_decoder_architecture else heads
    if config.multi_query and not config.new_decoder_architecture:
        kv_heads = 1
    pick = by_group(kv_heads, heads)
    maps = projections(
        attention.query_key_value, attention.dense, heads, kv_heads, norm.weight, pick=pick
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=before_mlp,
        mlp=module.mlp,
        parallel=parallel,
        **vars(maps),
    )
