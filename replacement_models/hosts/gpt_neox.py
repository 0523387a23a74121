"""GPT-NeoX and Pythia: parallel or sequential blocks, query, key and value interleaved by head."""

from typing import Any

from torch import Tensor

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections, unembedding


def gpt_neox(model: Any) -> Host:
    """Name the parts of a `GPTNeoXForCausalLM`."""
    body, config = model.gpt_neox, model.config
    final_norm = norm_of(body.final_layer_norm)
    return Host(
        family="gpt_neox",
        model=model,
        blocks=[_block(module, config.num_attention_heads) for module in body.layers],
        embedding=body.embed_in,
        final_norm=final_norm,
        unembedding=unembedding(model.get_output_embeddings(), final_norm.weight)[0],
        context=config.max_position_embeddings,
    )


def _block(module: Any, heads: int) -> Block:
    attention = module.attention

    def values(out: Tensor) -> Tensor:
        return out.unflatten(-1, (heads, 3, -1))[..., 2, :].flatten(-2)

    norm = norm_of(module.input_layernorm)
    maps = projections(
        attention.query_key_value, attention.dense, heads, heads, norm.weight, pick=values
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        parallel=module.use_parallel_residual,
        **vars(maps),
    )
