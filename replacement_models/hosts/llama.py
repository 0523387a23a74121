"""Llama and what is built like it: RMSNorm before attention and MLP, rotary positions.

Mistral (sliding window), Qwen 2 and 2.5 (value biases), Qwen 3 (norms on queries and keys),
Mixtral, Qwen 3 MoE and GPT-OSS (experts; attention sinks) differ only in how a pattern or an MLP
output comes about, and both are recorded.
"""

from typing import Any

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import rms_norm
from replacement_models.hosts.projections import Projections, projections
from replacement_models.hosts.weights import read


def llama(model: Any) -> Host:
    """Name the parts of a `LlamaForCausalLM` or of a model of the same shape."""
    blocks = [
        Block(
            module=module,
            attention_norm=rms_norm(module.input_layernorm),
            attention=module.self_attn,
            mlp_norm=rms_norm(module.post_attention_layernorm),
            mlp=module.block_sparse_moe if hasattr(module, "block_sparse_moe") else module.mlp,
            **vars(separate(module.self_attn, model.config)),
        )
        for module in model.model.layers
    ]
    return Host(final_norm=rms_norm(model.model.norm), blocks=blocks, **outside(model))


def separate(attention: Any, config: Any) -> Projections:
    """Maps of an attention module with one matrix each for query, key and value."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return projections(attention.v_proj, attention.o_proj, heads, kv_heads)


def outside(model: Any) -> dict[str, Any]:
    """Fields of a `Host` outside blocks and norms, where they are named as in Llama."""
    head = model.lm_head
    return {
        "family": model.config.model_type,
        "model": model,
        "embedding": model.model.embed_tokens,
        "unembedding": read(head),
        "unembedding_bias": None if head.bias is None else read(head, "bias"),
        "context": model.config.max_position_embeddings,
    }
