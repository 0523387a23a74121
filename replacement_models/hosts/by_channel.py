"""Mamba, Falcon Mamba, Jamba, LFM2: a pattern for every channel, which is a head of one number.

Mamba's kernel mixes each channel in its own way, LFM2's convolution too. Patterns take channels ×
positions² numbers a layer; long prompts make them anew.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Call, Factors, Kernel, Watch
from replacement_models.host import Block, Host
from replacement_models.hosts.linear_layers import check_silu, short_convolution, silu_slope
from replacement_models.hosts.llama import host, separate
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections
from replacement_models.hosts.state_space import check_stream, of_mixers
from replacement_models.hosts.weights import read
from replacement_models.no_mlp import NoMLP

SCAN = Kernel("mamba_selective_scan", "hidden_states", channels=True, without="z")
CONVOLUTION = Kernel("causal_conv1d_fn", "hidden_states", channels=True, without="bias")


def mamba(model: Any) -> Host:
    """Name the parts of a `MambaForCausalLM` or `FalconMambaForCausalLM`, which have no MLP."""
    check_stream(model)
    blocks = []
    for module in model.backbone.layers:
        norm = norm_of(module.norm)
        blocks.append(
            Block(
                module=module,
                attention_norm=norm,
                attention=module.mixer,
                mlp_norm=None,
                mlp=NoMLP(module),
                **selective(module.mixer, norm.weight),
            )
        )
    return of_mixers(model, model.backbone, blocks)


def jamba(model: Any) -> Host:
    """Name the parts of a `JambaForCausalLM`, whose scans' step, input and output are normed."""
    blocks = [_jamba_block(module, model.config) for module in model.model.layers]
    return host(model, blocks, norm_of(model.model.final_layernorm))


def _jamba_block(module: Any, config: Any) -> Block:
    norm, layer = norm_of(module.input_layernorm), getattr(module, "mamba", None)
    if layer is None:
        attention, maps = module.self_attn, vars(separate(module.self_attn, config, norm.weight))
    else:
        attention, maps = layer, selective(layer, norm.weight)
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.pre_ff_layernorm),
        mlp=module.feed_forward,
        **maps,
    )


def selective(layer: Any, like: Tensor, interleaved: bool = False) -> dict[str, Any]:
    """Fields of a `Block` whose layer is a Mamba.

    Args:
        layer: the layer.
        like: any vector of the residual stream.
        interleaved: its input map makes values and gates by turns, and not one after the other.
    """
    check_silu(layer.activation)
    width = layer.intermediate_size
    values, gates = (
        (slice(0, None, 2), slice(1, None, 2))
        if interleaved
        else (slice(width), slice(width, None))
    )

    def pick(out: Float[Tensor, "*rows projected"]) -> Float[Tensor, "*rows values"]:
        return out[..., values]

    maps = projections(layer.in_proj, layer.out_proj, width, width, like, pick=pick)
    taps = short_convolution(layer.conv1d, slice(width), width)

    def factors(calls: Mapping[str, Call]) -> Factors:
        projected = calls["values"].output[0]
        gate = nn.functional.silu(projected[..., gates])
        return Factors(silu_slope(pick(projected), taps), gate[..., None])

    watch = Watch(modules={"values": layer.in_proj}, factors=factors, kernel=SCAN)
    return {**vars(maps), "taps": taps, "watch": watch}


def lfm2(model: Any) -> Host:
    """Name the parts of an `Lfm2ForCausalLM`."""
    blocks = [_lfm2_block(module, model.config) for module in model.model.layers]
    return host(model, blocks, norm_of(model.model.embedding_norm))


def _lfm2_block(module: Any, config: Any) -> Block:
    norm, mlp = norm_of(module.operator_norm), module.feed_forward
    softmax = getattr(module, "self_attn", None)
    if softmax is None:
        attention, maps = module.conv, _convolution(module.conv, norm.weight)
    else:
        heads = config.num_attention_heads, config.num_key_value_heads
        found = projections(softmax.v_proj, softmax.out_proj, *heads, norm.weight)
        attention, maps = softmax, vars(found)
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.ffn_norm),
        mlp=mlp,
        mlp_maps=_lfm2_mlp(mlp) if hasattr(mlp, "w1") else None,
        **maps,
    )


def _convolution(layer: Any, like: Tensor) -> dict[str, Any]:
    """The convolution is the pattern; what gates its input and output are factors."""
    width = len(like)
    maps = projections(
        layer.in_proj, layer.out_proj, width, width, like, pick=lambda out: out[..., 2 * width :]
    )

    def factors(calls: Mapping[str, Call]) -> Factors:
        before, after, _ = calls["values"].output[0].chunk(3, dim=-1)
        return Factors(before[..., None], after[..., None])

    watch = Watch(modules={"values": layer.in_proj}, factors=factors, kernel=CONVOLUTION)
    bias = None if layer.conv.bias is None else read(layer.conv, "bias")[:, None]
    return {**vars(maps), "watch": watch, "mixed_bias": bias}


def _lfm2_mlp(mlp: Any) -> SimpleNamespace:
    """Its linear modules by their usual names."""
    return SimpleNamespace(
        gate_proj=mlp.w1, up_proj=mlp.w3, down_proj=mlp.w2, act_fn=nn.functional.silu
    )
