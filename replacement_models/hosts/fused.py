"""CodeGen, DBRX, GPT-BigCode, StarCoder: one matrix for query, key and value."""

from typing import Any

from torch import Tensor

from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import by_group, last, projections, unembedding


def gpt_bigcode(model: Any) -> Host:
    """Name the parts of a `GPTBigCodeForCausalLM`: one value for all heads, or one for each."""
    body, config = model.transformer, model.config
    final_norm = norm_of(body.ln_f)
    return Host(
        family="gpt_bigcode",
        model=model,
        blocks=[_bigcode_block(module, config) for module in body.h],
        embedding=body.wte,
        position_embedding=body.wpe,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=config.max_position_embeddings,
    )


def _bigcode_block(module: Any, config: Any) -> Block:
    attention, norm, heads = module.attn, norm_of(module.ln_1), config.num_attention_heads
    shared = config.multi_query
    maps = projections(
        attention.c_attn,
        attention.c_proj,
        heads,
        1 if shared else heads,
        norm.weight,
        pick=last(attention.head_dim) if shared else by_group(heads, heads),
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.ln_2),
        mlp=module.mlp,
        **vars(maps),
    )


def codegen(model: Any) -> Host:
    """Name the parts of a `CodeGenForCausalLM`: attention and MLP side by side behind one norm."""
    body, config = model.transformer, model.config
    final_norm = norm_of(body.ln_f)
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    return Host(
        family="codegen",
        model=model,
        blocks=[_codegen_block(module, config.n_head) for module in body.h],
        embedding=body.wte,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=config.n_positions,
    )


def _codegen_block(module: Any, heads: int) -> Block:
    attention, norm = module.attn, norm_of(module.ln_1)

    def of_four(out: Tensor) -> Tensor:
        """Queries, values, keys of every fourth of the heads: it was trained on four devices."""
        return out.unflatten(-1, (4, 3, -1))[..., 1, :].flatten(-2)

    maps = projections(
        attention.qkv_proj, attention.out_proj, heads, heads, norm.weight, pick=of_four
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm,
        mlp=module.mlp,
        parallel=True,
        **vars(maps),
    )


def dbrx(model: Any) -> Host:
    """Name the parts of a `DbrxForCausalLM`."""
    body, config = model.transformer, model.config
    final_norm = norm_of(body.norm_f)
    return Host(
        family="dbrx",
        model=model,
        blocks=[_dbrx_block(module, config) for module in body.blocks],
        embedding=body.wte,
        final_norm=final_norm,
        unembedding=unembedding(model.lm_head, final_norm.weight)[0],
        context=config.max_seq_len,
    )


def _dbrx_block(module: Any, config: Any) -> Block:
    around, kv_heads = module.norm_attn_norm, config.attn_config.kv_n_heads
    attention, norm = around.attn, norm_of(around.norm_1)
    maps = projections(
        attention.Wqkv,
        attention.out_proj,
        config.n_heads,
        kv_heads,
        norm.weight,
        pick=last(kv_heads * attention.head_dim),
    )
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(around.norm_2),
        mlp=module.ffn,
        **vars(maps),
    )
