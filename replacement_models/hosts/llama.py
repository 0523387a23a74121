"""Llama 2 and 3: RMSNorm, rotary positions, grouped queries, gated MLP."""

from typing import Any

from replacement_models.host import Block, Host, Norm


def llama(model: Any) -> Host:
    """Name the parts of a `LlamaForCausalLM`."""
    body, config = model.model, model.config
    head_bias = model.lm_head.bias
    return Host(
        family="llama",
        model=model,
        blocks=[_block(module, config) for module in body.layers],
        embedding=body.embed_tokens,
        final_norm=_norm(body.norm),
        unembedding=model.lm_head.weight.detach(),
        unembedding_bias=None if head_bias is None else head_bias.detach(),
        context=config.max_position_embeddings,
    )


def _norm(module: Any) -> Norm:
    return Norm(module, module.weight.detach(), None, module.variance_epsilon, centred=False)


def _block(module: Any, config: Any) -> Block:
    attention = module.self_attn
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    value, output = attention.v_proj, attention.o_proj
    d_model = value.weight.shape[1]
    return Block(
        module=module,
        attention_norm=_norm(module.input_layernorm),
        attention=attention,
        mlp_norm=_norm(module.post_attention_layernorm),
        mlp=module.mlp,
        value=value.weight.detach().reshape(kv_heads, -1, d_model),
        value_bias=None if value.bias is None else value.bias.detach().reshape(kv_heads, -1),
        output=output.weight.detach().T.reshape(heads, -1, d_model),
        output_bias=None if output.bias is None else output.bias.detach(),
        values=value,
        project=output,
    )
