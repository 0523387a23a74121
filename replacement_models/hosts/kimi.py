"""Kimi Linear and Ling 3 (`bailing_hybrid`): delta attention beside latent attention.

Delta attention is a gated delta net with a decay for every channel of a key, so a pattern still has
one number for each head, query and key. Values pass a short convolution and SiLU, heads' outputs a
norm and then a sigmoid gate. Ling's latent attention has a gate on every head's output.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from replacement_models.around import Call, Factors, Kernel, Watch
from replacement_models.host import Block, Host
from replacement_models.hosts.latent import latent
from replacement_models.hosts.linear_layers import (
    check_silu,
    gated_norm,
    short_convolution,
    silu_slope,
)
from replacement_models.hosts.llama import of_layers
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections
from replacement_models.hosts.weights import read

KERNEL = Kernel("chunk_kimi_delta_attention", "value")


def kimi_linear(model: Any) -> Host:
    """Name the parts of a `KimiLinearForCausalLM` or a `BailingHybridForCausalLM`."""
    return of_layers(model, _block)


def _block(module: Any, config: Any) -> Block:
    norm, layer = norm_of(module.input_layernorm), module.self_attn
    linear = hasattr(layer, "forget_gate")
    return Block(
        module=module,
        attention_norm=norm,
        attention=layer,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        **(_delta(layer, norm.weight) if linear else _latent(layer, config, norm.weight)),
    )


def _delta(layer: Any, like: Tensor) -> dict[str, Any]:
    check_silu(layer.activation)
    heads: int = layer.num_heads
    taps = short_convolution(layer.conv1d, slice(2 * layer.qkv_dim, None), heads)
    taps = replace(taps, weight=taps.weight.to(like.dtype))  # Ling keeps it in float32
    norm = layer.o_norm

    def factors(calls: Mapping[str, Call]) -> Factors:
        outputs = gated_norm(calls["norm"], heads, norm.variance_epsilon, Tensor.sigmoid)
        return Factors(
            values=silu_slope(calls["values"].output[0], taps), outputs=outputs * read(norm)
        )

    watch = Watch(modules={"values": layer.v_proj, "norm": norm}, factors=factors, kernel=KERNEL)
    maps = projections(layer.v_proj, layer.o_proj, heads, heads, like)
    return {**vars(maps), "taps": taps, "watch": watch}


def _latent(attention: Any, config: Any, like: Tensor) -> dict[str, Any]:
    maps, watch = latent(attention, config.num_attention_heads, like)
    if hasattr(attention, "g_proj"):
        watch = _gated(watch, attention.g_proj)
    return {**vars(maps), "watch": watch}


def _gated(watch: Watch, gate: Any) -> Watch:
    """The same, and a gate with one number a head on what heads write."""

    def factors(calls: Mapping[str, Call]) -> Factors:
        return replace(watch.factors(calls), outputs=calls["gate"].output[0].sigmoid()[..., None])

    return replace(watch, modules={**watch.modules, "gate": gate}, factors=factors)
