"""Mamba 2 and hybrids with its layers: Bamba, Granite 4, Nemotron-H.

A layer's values pass a short convolution and SiLU; the kernel's skip D is part of the pattern's
diagonal; heads' outputs are gated and then normed in groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Call, Factors, Kernel, Watch
from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.linear_layers import (
    check_silu,
    group_gated_norm,
    short_convolution,
    silu_slope,
)
from replacement_models.hosts.llama import host, separate
from replacement_models.hosts.norms import multiplied, norm_of
from replacement_models.hosts.projections import projections, unembedding
from replacement_models.hosts.weights import read
from replacement_models.no_mlp import NoMLP

MIXERS = ("linear_attention", "full_attention")
KERNEL = Kernel("mamba2_chunk_scan", "hidden_states")


def bamba(model: Any) -> Host:
    """Name the parts of a `BambaForCausalLM`."""
    blocks = [
        _block(module, model.config, module.pre_ff_layernorm, {"mlp": module.feed_forward})
        for module in model.model.layers
    ]
    return host(model, blocks, norm_of(model.model.final_layernorm))


def granite_hybrid(model: Any) -> Host:
    """Name the parts of a `GraniteMoeHybridForCausalLM`, which scales most of what it adds."""
    config = model.config
    blocks = [_granite_block(module, config) for module in model.model.layers]
    plain = host(model, blocks, norm_of(model.model.norm))
    return replace(
        plain,
        embedding_scale=config.embedding_multiplier,
        unembedding=plain.unembedding / config.logits_scaling,
    )


def mamba2(model: Any) -> Host:
    """Name the parts of a `Mamba2ForCausalLM`, whose blocks have no MLP."""
    check_stream(model)
    body = model.backbone
    return of_mixers(model, body, [_lone_mixer(module, model.config) for module in body.layers])


def check_stream(model: Any) -> None:
    """Refuse a Mamba whose stream is of another type than its weights.

    Raises:
        ModelError: it is kept in float32, its weights are bfloat16.
    """
    if model.config.residual_in_fp32 and model.lm_head.weight.dtype == torch.bfloat16:
        raise ModelError(
            f"{model.config.model_type} model in bfloat16 keeps its stream in float32 "
            "(residual_in_fp32); load it in float32"
        )


def nemotron_h(model: Any) -> Host:
    """Name the parts of a `NemotronHForCausalLM`, whose layers are a mixer or an MLP each.

    A mixer and the MLP right above it make one block; a mixer that another one follows has no MLP.

    Raises:
        ModelError: an MLP stands above no mixer.
    """
    blocks: list[Block] = []
    for module in model.model.layers:
        if module.block_type in MIXERS:
            blocks.append(_lone_mixer(module, model.config))
        elif not blocks or not isinstance(blocks[-1].mlp, NoMLP):
            raise ModelError("nemotron_h model: an MLP above no mixer is not supported")
        else:
            norm, mlp = norm_of(module.norm), module.mixer
            blocks[-1] = replace(blocks[-1], mlp_norm=norm, mlp=mlp)
    return of_mixers(model, model.model, blocks)


def of_mixers(model: Any, body: Any, blocks: Sequence[Block]) -> Host:
    """A host whose parts outside the blocks are named as in Mamba."""
    final_norm = norm_of(body.norm_f)
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=blocks,
        embedding=body.embeddings,
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        context=getattr(model.config, "max_position_embeddings", None),
    )


def _lone_mixer(module: Any, config: Any) -> Block:
    norm, mixer = norm_of(module.norm), module.mixer
    softmax = hasattr(mixer, "v_proj")
    return Block(
        module=module,
        attention_norm=norm,
        attention=mixer,
        mlp_norm=None,
        mlp=NoMLP(module),
        **(vars(separate(mixer, config, norm.weight)) if softmax else scan(mixer, norm.weight)),
    )


def _granite_block(module: Any, config: Any) -> Block:
    shared, beside = module.shared_mlp, module.block_sparse_moe
    maps = _granite_mlp(shared)
    if beside is not None:
        maps = SimpleNamespace(router=beside.router, experts=beside.experts, shared_expert=maps)
    mlp = {"mlp": shared, "mlp_beside": beside, "mlp_maps": maps}
    block = _block(module, config, module.post_attention_layernorm, mlp)
    scale = multiplied(shared, config.residual_multiplier, block.output[0, 0])
    return replace(
        block,
        attention_post_norm=replace(scale, module=block.attention),
        mlp_post_norm=scale,
    )


def _granite_mlp(mlp: Any) -> SimpleNamespace:
    """A gated MLP's linear modules by their usual names; gate and what it opens are one there."""
    gate, up = (nn.Linear(1, 1, bias=False, device="meta") for _ in range(2))
    gate.weight, up.weight = (
        nn.Parameter(half, requires_grad=False) for half in read(mlp.input_linear).chunk(2)
    )
    return SimpleNamespace(
        gate_proj=gate, up_proj=up, down_proj=mlp.output_linear, act_fn=mlp.activation
    )


def _block(module: Any, config: Any, mlp_norm: Any, mlp: Mapping[str, Any]) -> Block:
    norm, layer = norm_of(module.input_layernorm), getattr(module, "mamba", None)
    return Block(
        module=module,
        attention_norm=norm,
        attention=module.self_attn if layer is None else layer,
        mlp_norm=norm_of(mlp_norm),
        **mlp,
        **(
            vars(separate(module.self_attn, config, norm.weight))
            if layer is None
            else scan(layer, norm.weight)
        ),
    )


def scan(layer: Any, like: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
    """Fields of a `Block` whose layer is a Mamba 2.

    Args:
        layer: the layer.
        like: any vector of the residual stream.
        scale: factors on what its input map makes; None is ones.
    """
    check_silu(layer.activation)
    heads, width = layer.num_heads, layer.intermediate_size

    def pick(out: Float[Tensor, "*rows projected"]) -> Float[Tensor, "*rows values"]:
        return (out if scale is None else out * scale)[..., width : 2 * width]

    def gates(calls: Mapping[str, Call]) -> Float[Tensor, "positions heads d_head"]:
        if "norm" in calls:
            return group_gated_norm(calls["norm"], layer.norm, width // layer.n_groups, heads)
        projected = calls["values"].output[0]
        gate = (projected if scale is None else projected * scale)[..., :width]
        return nn.functional.silu(gate).unflatten(-1, (heads, -1))

    maps = projections(layer.in_proj, layer.out_proj, heads, heads, like, pick=pick)
    taps = short_convolution(layer.conv1d, slice(width), heads)

    def factors(calls: Mapping[str, Call]) -> Factors:
        values = silu_slope(pick(calls["values"].output[0]), taps)
        return Factors(values=values, outputs=gates(calls))

    modules = {"values": layer.in_proj, "norm": layer.norm}
    watch = Watch(modules=modules, factors=factors, kernel=KERNEL)
    return {**vars(maps), "taps": taps, "watch": watch}
