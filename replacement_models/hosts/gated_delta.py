"""Qwen3-Next, Qwen 3.5, OLMo hybrid: gated delta nets beside softmax attention.

A gated delta net's values pass a short convolution and SiLU, its heads' outputs a gated norm; its
attention multiplies heads' outputs by a gate made with the queries, in Qwen. Norm weights are
stored less one there, but for the gated norm's. OLMo's attention has norms behind it, not before.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Call, Factors, Kernel, Watch
from replacement_models.host import Block, Host
from replacement_models.hosts.linear_layers import (
    check_silu,
    gated_norm,
    short_convolution,
    silu_slope,
)
from replacement_models.hosts.llama import of_layers, separate
from replacement_models.hosts.norms import norm_of, shifted_rms_norm
from replacement_models.hosts.olmo2 import post_normed
from replacement_models.hosts.projections import Projections, projections, unembedding
from replacement_models.hosts.weights import read

KERNEL = Kernel("torch_chunk_gated_delta_rule", "value")
Pick = Callable[[Tensor], Tensor]


def qwen3_next(model: Any) -> Host:
    """Name the parts of a `Qwen3NextForCausalLM`, `Qwen3_5ForCausalLM` or `Qwen3_5Moe...`."""
    body, config = model.model, model.config.get_text_config()
    final_norm = shifted_rms_norm(body.norm)
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=[_block(module, config) for module in body.layers],
        embedding=body.embed_tokens,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=config.max_position_embeddings,
    )


def _block(module: Any, config: Any) -> Block:
    norm = shifted_rms_norm(module.input_layernorm)
    linear = hasattr(module, "linear_attn")
    mixing = _delta(module.linear_attn, norm.weight) if linear else None
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.linear_attn if linear else module.self_attn,
        mlp_norm=shifted_rms_norm(module.post_attention_layernorm),
        mlp=module.mlp,
        **(_gated(module.self_attn, config, norm.weight) if mixing is None else mixing),
    )


def olmo_hybrid(model: Any) -> Host:
    """Name the parts of an `OlmoHybridForCausalLM`."""
    return of_layers(model, _olmo_block)


def _olmo_block(module: Any, config: Any) -> Block:
    if not hasattr(module, "linear_attn"):
        return post_normed(module, config)
    norm, layer = norm_of(module.input_layernorm), module.linear_attn
    check_silu(layer.activation)
    heads = layer.num_v_heads
    maps = projections(layer.v_proj, layer.o_proj, heads, heads, norm.weight)
    return Block(
        module=module,
        attention_norm=norm,
        attention=layer,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        **delta_net(layer, maps, {"values": layer.v_proj, "norm": layer.o_norm}, _all),
    )


def _gated(attention: Any, config: Any, like: Tensor) -> dict[str, Any]:
    """Softmax attention with a gate on every number of every head's output."""
    heads = config.num_attention_heads

    def factors(calls: Mapping[str, Call]) -> Factors:
        both = calls["queries"].output[0].unflatten(-1, (heads, -1))
        return Factors(outputs=both.chunk(2, dim=-1)[1].sigmoid())

    watch = Watch(modules={"queries": attention.q_proj}, factors=factors)
    return {**vars(separate(attention, config, like)), "watch": watch}


def _delta(layer: Any, like: Tensor) -> dict[str, Any]:
    gate = getattr(layer.norm, "activation", "silu")  # written out in transformers 4.57
    check_silu(layer.activation, gate)
    fused = hasattr(layer, "in_proj_qkvz")
    read_by = layer.in_proj_qkvz if fused else layer.in_proj_qkv
    pick = _from_fused(layer) if fused else _last(layer.value_dim)
    maps = projections(
        read_by, layer.out_proj, layer.num_v_heads, layer.num_v_heads, like, pick=pick
    )
    return delta_net(layer, maps, {"values": read_by, "norm": layer.norm}, pick)


def delta_net(
    layer: Any, maps: Projections, modules: Mapping[str, nn.Module], pick: Pick
) -> dict[str, Any]:
    """Fields of a `Block` whose layer is a gated delta net.

    Args:
        layer: has the convolution, values in its last channels.
        maps: its value and output maps.
        modules: "values", which makes them, and "norm", the gated norm.
        pick: values from what the former makes.
    """
    heads: int = layer.num_v_heads
    taps = short_convolution(layer.conv1d, slice(2 * layer.key_dim, None), heads)
    norm: Any = modules["norm"]

    def factors(calls: Mapping[str, Call]) -> Factors:
        outputs = gated_norm(calls["norm"], heads, norm.variance_epsilon, nn.functional.silu)
        return Factors(
            values=silu_slope(pick(calls["values"].output[0]), taps),
            outputs=outputs * read(norm),
        )

    watch = Watch(modules=modules, factors=factors, kernel=KERNEL)
    return {**vars(maps), "taps": taps, "watch": watch}


def _all(out: Tensor) -> Tensor:
    return out


def _last(width: int) -> Pick:
    def pick(out: Float[Tensor, "*rows projected"]) -> Float[Tensor, "*rows values"]:
        return out[..., -width:]

    return pick


def _from_fused(layer: Any) -> Pick:
    """Values where query, key, value and gate come group by group."""
    keys = 2 * layer.head_k_dim
    width = layer.value_dim // layer.num_k_heads

    def pick(out: Float[Tensor, "*rows projected"]) -> Float[Tensor, "*rows values"]:
        return out.unflatten(-1, (layer.num_k_heads, -1))[..., keys : keys + width].flatten(-2)

    return pick
