"""GPT-2: LayerNorm, learned positions, one matrix for query, key and value."""

from typing import Any

from torch import Tensor, nn

from replacement_models.host import Block, Host, Norm


def gpt2(model: Any) -> Host:
    """Name the parts of a `GPT2LMHeadModel`."""
    body = model.transformer
    return Host(
        family="gpt2",
        model=model,
        blocks=[_block(module, model.config.n_head) for module in body.h],
        embedding=body.wte,
        position_embedding=body.wpe,
        final_norm=_norm(body.ln_f),
        unembedding=model.lm_head.weight.detach(),
        context=model.config.n_positions,
    )


def _norm(module: nn.LayerNorm) -> Norm:
    bias = None if module.bias is None else module.bias.detach()
    return Norm(module, module.weight.detach(), bias, module.eps, centred=True)


def _block(module: Any, heads: int) -> Block:
    attention = module.attn
    d_model = attention.embed_dim
    weight, bias = attention.c_attn.weight.detach(), attention.c_attn.bias.detach()

    def values(hidden: Tensor) -> Tensor:
        out: Tensor = attention.c_attn(hidden)[..., 2 * d_model :]
        return out

    return Block(
        module=module,
        attention_norm=_norm(module.ln_1),
        attention=attention,
        mlp_norm=_norm(module.ln_2),
        mlp=module.mlp,
        value=weight[:, 2 * d_model :].T.reshape(heads, -1, d_model),
        value_bias=bias[2 * d_model :].reshape(heads, -1),
        output=attention.c_proj.weight.detach().reshape(heads, -1, d_model),
        output_bias=attention.c_proj.bias.detach(),
        values=values,
        project=attention.c_proj,
    )
