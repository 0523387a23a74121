"""BLOOM and MPT: ALiBi, which is in the pattern; modules that add to the stream themselves."""

from typing import Any

from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import by_group, last, projections, unembedding


def bloom(model: Any) -> Host:
    """Name the parts of a `BloomForCausalLM`.

    Raises:
        ModelError: it computes in slices, as if on several devices.
    """
    body, config = model.transformer, model.config
    if config.pretraining_tp > 1 and config.slow_but_exact:
        raise ModelError("this BLOOM computes in slices; set slow_but_exact to false")
    final_norm = norm_of(body.ln_f)
    return Host(
        family="bloom",
        model=model,
        blocks=[_block(module, config.n_head) for module in body.h],
        embedding=body.word_embeddings,
        embedding_norm=norm_of(body.word_embeddings_layernorm),
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
    )


def _block(module: Any, heads: int) -> Block:
    attention, norm = module.self_attention, norm_of(module.input_layernorm)
    maps = projections(
        attention.query_key_value,
        attention.dense,
        heads,
        heads,
        norm.weight,
        pick=by_group(heads, heads),
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        attention_out=attention.dense,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp.dense_h_to_4h,
        mlp_out=module.mlp.dense_4h_to_h,
        mlp_maps=module.mlp,
        **vars(maps),
    )


def mpt(model: Any) -> Host:
    """Name the parts of an `MptForCausalLM`."""
    body, config = model.transformer, model.config
    final_norm = norm_of(body.norm_f)
    return Host(
        family="mpt",
        model=model,
        blocks=[_mpt_block(module, config.n_heads) for module in body.blocks],
        embedding=body.wte,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=config.max_seq_len,
    )


def _mpt_block(module: Any, heads: int) -> Block:
    attention, norm = module.attn, norm_of(module.norm_1)
    pick = last(attention.hidden_size)
    maps = projections(attention.Wqkv, attention.out_proj, heads, heads, norm.weight, pick=pick)
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.norm_2),
        mlp=module.ffn.up_proj,
        mlp_out=module.ffn.down_proj,
        mlp_maps=module.ffn,
        **vars(maps),
    )
