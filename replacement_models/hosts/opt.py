"""OPT, XGLM, BioGPT: learned or sinusoidal positions; a layer holds its MLP's two maps itself."""

from typing import Any

from torch import nn

from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections, unembedding


def opt(model: Any) -> Host:
    """Name the parts of an `OPTForCausalLM`.

    Raises:
        ModelError: norms stand behind the sum (OPT-350m), or embeddings have a width of their own.
    """
    body = model.model.decoder
    if not model.config.do_layer_norm_before or body.final_layer_norm is None:
        raise ModelError("this OPT norms the residual stream itself, which is not supported")
    if body.project_in is not None:
        raise ModelError("this OPT projects its embeddings to another width; not supported")
    return _host(model, body, body.final_layer_norm, model.lm_head)


def xglm(model: Any) -> Host:
    """Name the parts of an `XGLMForCausalLM`."""
    return _host(model, model.model, model.model.layer_norm, model.lm_head)


def biogpt(model: Any) -> Host:
    """Name the parts of a `BioGptForCausalLM`."""
    return _host(model, model.biogpt, model.biogpt.layer_norm, model.output_projection)


def _host(model: Any, body: Any, last: nn.Module, head: nn.Module) -> Host:
    final_norm = norm_of(last)
    weight, bias = unembedding(head, final_norm.weight)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=[_block(module, model.config.num_attention_heads) for module in body.layers],
        embedding=body.embed_tokens,
        position_embedding=body.embed_positions,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=model.config.max_position_embeddings,
    )


def _block(module: Any, heads: int) -> Block:
    attention, norm = module.self_attn, norm_of(module.self_attn_layer_norm)
    maps = projections(attention.v_proj, attention.out_proj, heads, heads, norm.weight)
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.final_layer_norm),
        mlp=module.fc1,
        mlp_out=module.fc2,
        mlp_maps=module,
        **vars(maps),
    )
