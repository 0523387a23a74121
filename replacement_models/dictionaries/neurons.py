"""No dictionary at all: a model's own MLP neurons as features, with nothing left over as error.

A plain MLP, `y = W_out f(W_in x + b_in) + b_out`: a neuron reads its row of W_in, its activation is
f of that (the value after the nonlinearity, held for the prompt as any feature's is), and it writes
its column of W_out.

A gated MLP, `y = W_down (f(W_gate x) · W_up x)`: a neuron reads its row of W_up, and f(W_gate x) is
a gate that is frozen for the prompt. With the gate held, the neuron is linear in what it reads, as
attention is with its pattern held, so its row explains its whole activation and not only whether it
fires; and the sign of the activation is the sign of what was read, up to the gate's. Reading the
gate instead would leave the product with W_up x unexplained. What opened the gate is not in the
graph. Mixtures of experts stand in experts.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.dictionaries.activation import Elementwise
from replacement_models.dictionaries.experts import expert_neurons, identity
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.hooks import (
    first_of,
    first_tensor,
    float64_experts,
    forward_hooks,
    in_rows,
)
from replacement_models.host import Block, Host
from replacement_models.hosts.weights import linear_map
from replacement_models.no_mlp import NoMLP
from replacement_models.recording import write_hooks
from replacement_models.sites import WritePoint
from replacement_models.transcoder import DenseDecoder, TranscoderLayer

NEURONS = "neurons"
"""What `transcoders` is called to mean the model's own neurons."""
PLAIN = (
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
    ("fc_in", "fc_out"),
    ("up_proj", "down_proj"),
)
"""Names of an ungated MLP's two linear modules."""
FUNCTIONS = ("act", "act_fn", "activation_fn", "gelu_impl")
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative; some models mix experts in float32 even when they are in float64."""


@dataclass(frozen=True, eq=False)
class NeuronGate:
    """f(W_gate x + b_gate) of a gated MLP."""

    weight: Float[Tensor, "features d_model"]
    bias: Float[Tensor, " features"] | None
    function: Callable[[Tensor], Tensor]

    def __call__(self, inputs: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch features"]:
        """The gate's factors at `inputs`."""
        return self.function(nn.functional.linear(inputs, self.weight, self.bias))

    def to(self, device: torch.device, dtype: torch.dtype) -> "NeuronGate":
        """The same gate on `device` in `dtype`."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return NeuronGate(self.weight.to(device, dtype), bias, self.function)


def neurons(host: Host, at: Sequence[int] | None = None) -> PerLayerTranscoder:
    """The host's MLP neurons as a per-layer dictionary that shares the model's weights.

    Args:
        host: the model.
        at: layers whose neurons to take, the others stay empty; None is all.

    Raises:
        ModelError: an MLP is of a kind that is not known, or does more than its weights say.
    """
    likes = [host.unembedding[:1].to(block.device) for block in host.blocks]
    wanted = range(len(host.blocks)) if at is None else at
    layers = [
        _layer(_maps(block), like)
        if index in wanted and not isinstance(block.mlp, NoMLP)
        else TranscoderLayer.empty(like[0], 1)
        for index, (block, like) in enumerate(zip(host.blocks, likes, strict=True))
    ]
    found = PerLayerTranscoder(layers)
    with float64_experts(host.model):
        for index in wanted:
            block = host.blocks[index]
            if isinstance(block.mlp, NoMLP):
                continue
            mlp, apart = block.mlp, block.mlp_out is not None or block.mlp_beside is not None
            x, expected = _in_a_pass(host, block) if apart else _by_itself(mlp, likes[index])
            _check_exact(found.layers[index], x, expected, f"{type(mlp).__name__} of layer {index}")
    return found


def _maps(block: Block) -> Any:
    return block.mlp if block.mlp_maps is None else block.mlp_maps


@torch.no_grad()
def _by_itself(mlp: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """What an MLP makes of anything."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, like.shape[1], generator=generator).to(like.device, like.dtype)
    return x, first_of(mlp(x))


@torch.no_grad()
def _in_a_pass(host: Host, block: Block) -> tuple[Tensor, Tensor]:
    """What an MLP that is no module of its own reads and writes on the first tokens there are."""
    seen: list[Tensor] = []

    def read(inputs: Any, output: Any) -> None:
        seen.append(in_rows(first_tensor(inputs), 1))

    def written(inputs: Any, output: Any) -> None:
        seen.append(in_rows(first_of(output), 1))

    hooks = [(block.mlp, read), *write_hooks(block, WritePoint.MLP_OUTPUT, written)]
    with forward_hooks(hooks):
        host.run(range(min(8, host.vocabulary)), patterns=False, last_logits=True)
    return seen[0], seen[1]


def _layer(mlp: Any, like: Tensor) -> TranscoderLayer:
    if hasattr(mlp, "experts"):
        return expert_neurons(mlp, like)
    function = next((getattr(mlp, name) for name in FUNCTIONS if hasattr(mlp, name)), None)
    plain = next((names for names in PLAIN if all(hasattr(mlp, name) for name in names)), None)
    gated = hasattr(mlp, "gate_up_proj") or (hasattr(mlp, "gate_proj") and hasattr(mlp, "up_proj"))
    if function is None or (plain is None and not (gated and hasattr(mlp, "down_proj"))):
        raise ModelError(
            f"neurons: {type(mlp).__name__} is not known; plain and gated MLPs are supported, and "
            "mixtures of gated ones"
        )
    width = like.shape[1]
    if gated or plain is None:
        gate, rows, b_enc = _gated(mlp, like, function)
        activation, down = Elementwise(identity), mlp.down_proj
    else:
        rows, b_enc = linear_map(getattr(mlp, plain[0]), width, like)
        gate, activation, down = None, Elementwise(function), getattr(mlp, plain[1])
    write, b_dec = linear_map(down, rows.shape[1], like)
    return TranscoderLayer(
        W_enc=rows.T,
        b_enc=rows.new_zeros(rows.shape[1]) if b_enc is None else b_enc,
        decoder=DenseDecoder(write[:, None]),
        b_dec=write.new_zeros(width) if b_dec is None else b_dec,
        activation=activation,
        gate=gate,
    )


def _gated(
    mlp: Any, like: Tensor, function: Callable[[Tensor], Tensor]
) -> tuple[NeuronGate, Tensor, Tensor | None]:
    """Gate, and the map and bias of what is read: apart, or one above the other (Phi-3)."""
    width = like.shape[1]
    if not hasattr(mlp, "gate_up_proj"):
        closed, bias = linear_map(mlp.gate_proj, width, like)
        return NeuronGate(closed.T, bias, function), *linear_map(mlp.up_proj, width, like)
    both, biases = linear_map(mlp.gate_up_proj, width, like)
    closed, rows = both.chunk(2, dim=1)
    bias, b_enc = (None, None) if biases is None else biases.chunk(2)
    return NeuronGate(closed.T, bias, function), rows, b_enc


@torch.no_grad()
def _check_exact(layer: TranscoderLayer, x: Tensor, expected: Tensor, name: str) -> None:
    """Refuse an MLP that does more than its weights say: a norm inside, a clamp, a scale."""
    alone = PerLayerTranscoder([layer.to(x.device, x.dtype)])
    [got] = alone.decode([alone.encode(0, x)[1]], [x])
    largest = expected.abs().max().clamp_min(torch.finfo(x.dtype).tiny)  # or an MLP of zeros
    error = float((got - expected).abs().max() / largest)
    if not error <= TOLERANCE.get(x.dtype, 0.1):
        raise ModelError(
            f"neurons: {name} is not what its weights say "
            f"(relative difference {error:.1g}); it is not supported"
        )
