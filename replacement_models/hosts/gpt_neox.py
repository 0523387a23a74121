"""GPT-NeoX, Pythia, Persimmon: query, key and value interleaved by head."""

from dataclasses import replace
from typing import Any

import torch

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import host
from replacement_models.hosts.norms import norm_of, outside
from replacement_models.hosts.projections import by_group, projections, unembedding
from replacement_models.hosts.weights import read


def gpt_neox(model: Any) -> Host:
    """Name the parts of a `GPTNeoXForCausalLM`."""
    body, config = model.gpt_neox, model.config
    final_norm = norm_of(body.final_layer_norm)
    return Host(
        family="gpt_neox",
        model=model,
        blocks=[
            _block(module, module.attention, config.num_attention_heads) for module in body.layers
        ],
        embedding=body.embed_in,
        final_norm=final_norm,
        unembedding=unembedding(model.get_output_embeddings(), final_norm.weight)[0],
        context=config.max_position_embeddings,
    )


def gpt_neox_japanese(model: Any) -> Host:
    """Name the parts of a `GPTNeoXJapaneseForCausalLM`, whose last attention has a bias outside."""
    body, heads = model.gpt_neox_japanese, model.config.num_attention_heads
    final_norm = norm_of(body.final_layer_norm)
    return Host(
        family="gpt_neox_japanese",
        model=model,
        blocks=[_japanese(_block(module, module.attention, heads)) for module in body.layers],
        embedding=body.embed_in,
        final_norm=final_norm,
        unembedding=unembedding(model.embed_out, final_norm.weight)[0],
        context=model.config.max_position_embeddings,
    )


def _japanese(block: Block) -> Block:
    attention: Any = block.attention
    if attention.dense_bias is None:
        return block
    bias = read(attention, "dense_bias")
    return replace(block, attention_post_norm=outside(attention, torch.ones_like(bias), bias))


def persimmon(model: Any) -> Host:
    """Name the parts of a `PersimmonForCausalLM`."""
    heads = model.config.num_attention_heads
    blocks = [_block(module, module.self_attn, heads) for module in model.model.layers]
    return host(model, blocks, norm_of(model.model.final_layernorm))


def _block(module: Any, attention: Any, heads: int) -> Block:
    norm = norm_of(module.input_layernorm)
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
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        parallel=getattr(module, "use_parallel_residual", False),
        **vars(maps),
    )
