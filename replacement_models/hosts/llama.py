"""Llama and what is built like it: RMSNorm before attention and MLP, rotary positions.

Mistral (sliding window), Qwen 2 and 2.5 (value biases), Qwen 3 (norms on queries and keys),
Mixtral, Qwen 3 MoE and GPT-OSS (experts; attention sinks) differ only in how a pattern or an MLP
output comes about, and both are recorded.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from replacement_models.host import Block, Host, Norm
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import Projections, projections, unembedding


def llama(model: Any) -> Host:
    """Name the parts of a `LlamaForCausalLM` or of a model of the same shape."""
    return of_layers(model, llama_block)


def llama_block(module: Any, config: Any) -> Block:
    """One decoder layer, its parts named as Llama's."""
    norm = norm_of(module.input_layernorm)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.block_sparse_moe if hasattr(module, "block_sparse_moe") else module.mlp,
        **vars(separate(module.self_attn, config, norm.weight)),
    )


def separate(attention: Any, config: Any, like: Tensor) -> Projections:
    """Maps of an attention module with one matrix each for query, key and value."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return projections(attention.v_proj, attention.o_proj, heads, kv_heads, like)


def of_layers(model: Any, block: Callable[[Any, Any], Block]) -> Host:
    """A host built like Llama but for its layers, which `block` names from module and config."""
    blocks = [block(module, model.config) for module in model.model.layers]
    return host(model, blocks, norm_of(model.model.norm))


def host(model: Any, blocks: Sequence[Block], final_norm: Norm) -> Host:
    """A host whose parts outside the blocks are named as in Llama."""
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=blocks,
        embedding=model.model.embed_tokens,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=model.config.max_position_embeddings,
    )
