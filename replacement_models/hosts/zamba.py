"""Zamba and Zamba 2: Mamba layers, before some of which stands a transformer block that is shared.

The shared block adds nothing to the residual stream. Its attention reads the stream and the tokens'
embeddings behind one norm, its MLP reads attention's output alone, and what that writes, through a
linear map of the layer's own, is added to what the layer's Mamba reads. So such a layer is two
blocks here: the shared one, which stands aside, and the Mamba. In Zamba 2 every use of a shared
block may have low-rank adapters of its own.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.by_channel import selective
from replacement_models.hosts.llama import host
from replacement_models.hosts.norms import norm_of
from replacement_models.hosts.projections import projections
from replacement_models.hosts.state_space import scan
from replacement_models.no_mlp import NoMLP


def zamba(model: Any) -> Host:
    """Name the parts of a `ZambaForCausalLM`."""
    return _host(model, "shared_transf", partial(selective, interleaved=True))


def zamba2(model: Any) -> Host:
    """Name the parts of a `Zamba2ForCausalLM`."""
    return _host(model, "shared_transformer", scan)


def _host(model: Any, shared: str, scan: Callable[..., dict[str, Any]]) -> Host:
    """Blocks from below, two for a layer that has a shared block.

    Raises:
        ModelError: layers share modules and not only weights, as before transformers 5.
    """
    blocks, uses = [], 0
    for layer in model.model.layers:
        if hasattr(layer, shared):
            blocks.append(_shared(layer, getattr(layer, shared), uses, model.config))
            uses += 1
        mamba = getattr(layer, "mamba_decoder", layer)
        norm = norm_of(mamba.input_layernorm)
        blocks.append(
            Block(
                module=mamba,
                attention_norm=norm,
                attention=mamba.mamba,
                mlp_norm=None,
                mlp=NoMLP(mamba),
                **scan(mamba.mamba, norm.weight),
            )
        )
    if len({id(block.attention) for block in blocks}) < len(blocks):
        raise ModelError(
            f"{model.config.model_type} model: layers share one attention module, as before "
            "transformers 5; install a later release"
        )
    return host(model, blocks, norm_of(model.model.final_layernorm))


def _shared(layer: Any, shared: Any, use: int, config: Any) -> Block:
    """The shared block of one layer, the `use`-th from below that has one."""
    norm, attention, mlp = norm_of(shared.input_layernorm), shared.self_attn, shared.feed_forward
    values = _adapted(attention.v_proj, attention, "linear_v_adapter_list", use)
    heads = config.num_attention_heads, config.num_key_value_heads
    return Block(
        module=layer,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(shared.pre_ff_layernorm),
        mlp=mlp,
        mlp_out=layer.linear,
        mlp_maps=_mlp_maps(layer, mlp, use),
        aside=True,
        **vars(projections(values, attention.o_proj, *heads, norm.weight)),
    )


def _mlp_maps(layer: Any, mlp: Any, use: int) -> SimpleNamespace:
    """The MLP's linear modules by their usual names; the layer's own map is part of the last."""
    ends = {"down_proj": nn.Sequential(mlp.down_proj, layer.linear), "act_fn": mlp.act_fn}
    if hasattr(mlp, "gate_proj"):
        return SimpleNamespace(gate_proj=mlp.gate_proj, up_proj=mlp.up_proj, **ends)
    both = _adapted(mlp.gate_up_proj, mlp, "gate_up_proj_adapter_list", use)
    return SimpleNamespace(gate_up_proj=both, **ends)


class _Adapted(nn.Module):
    """What a shared module and an adapter of one of its uses add up to."""

    def __init__(self, shared: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.shared, self.adapter = shared, adapter

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.shared(x) + self.adapter(x)
        return both


def _adapted(shared: nn.Module, owner: Any, adapters: str, use: int) -> nn.Module:
    found = getattr(owner, adapters, None)
    return shared if found is None else _Adapted(shared, found[use])
