"""The neurons of a mixture of experts as features, with nothing left over as error.

`y = Σ_e share_e(x) · (W_down_e (f(W_gate_e x) · u(W_up_e x)) + b_e)`: the router and every gate are
frozen for the prompt, as an attention pattern is. Feature e·N + n is neuron n of expert e: it reads
its row of W_up_e and writes its column of W_down_e; its gate is share_e · f(W_gate_e x), zero where
the token is not sent to e. An expert that every token visits comes after the others.

u is the identity but in GPT-OSS, which clips and adds one: the one is part of b_enc, so that within
the clips an activation is the pre-activation times the gate. There experts end in a bias b_e, whose
effect depends on the router; one more feature an expert, behind all neurons, carries it: it reads
nothing (its pre-activation is 1), and its gate is share_e.

Experts without gates (Nemotron-H) are `y = W_after Σ_e share_e(x) · W_down_e f(W_up_e W_before x)`:
a neuron reads through the map that they share, its activation is f of that times share_e.

What moved the router or opened a gate is not in the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement_models.dictionaries.activation import Elementwise
from replacement_models.errors import ModelError
from replacement_models.hosts.weights import linear_map, read
from replacement_models.transcoder import DenseDecoder, TranscoderLayer

SHARED = ("shared_expert", "shared_experts", "shared_mlp")
"""What the expert that every token visits is called."""
APART = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names of a single expert's linear modules: gate, up, down."""


@dataclass(frozen=True, eq=False)
class Expert:
    """Weights of one expert."""

    gate: Float[Tensor, "neurons d_model"]
    up: Float[Tensor, "neurons d_model"]
    down: Float[Tensor, "neurons d_model"]
    gate_bias: Float[Tensor, " neurons"] | None = None
    up_bias: Float[Tensor, " neurons"] | None = None
    down_bias: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True, eq=False)
class Shares:
    """What the model's own router gives each expert of each token."""

    mlp: Any
    routed: int
    """Experts that the router chooses from."""

    def __call__(self, tokens: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens experts"]:
        """Zero where a token is not sent; an expert that every token visits is the last."""
        share = self._routed(tokens)
        if share.shape != (len(tokens), self.routed) or not share.is_floating_point():
            raise ModelError(f"neurons: the router of {type(self.mlp).__name__} is not known")
        if _shared(self.mlp) is None:
            return share
        always = torch.ones_like(share[:, :1])
        if hasattr(self.mlp, "shared_expert_gate"):
            always = self.mlp.shared_expert_gate(tokens).sigmoid().to(share.dtype)
        both = torch.cat([share, always], dim=1)
        how = getattr(self.mlp, "shared_expert_combination_strategy", "sum")
        return both / 2 if how == "average" else both

    def _routed(self, tokens: Tensor) -> Tensor:
        router = self.mlp.router if hasattr(self.mlp, "router") else self.mlp.gate
        correction = getattr(self.mlp, "e_score_correction_bias", None)
        try:
            if hasattr(self.mlp, "expert_bias"):  # AFMoE's, which takes rows of tokens
                found = router(tokens[None], self.mlp.expert_bias)
            else:
                found = router(tokens) if correction is None else router(tokens, correction)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"neurons: the router of {type(self.mlp).__name__} is not known ({error})"
            ) from error
        if isinstance(found, Tensor):  # transformers 4: the block itself makes shares of logits
            shares, chosen = found.softmax(1, torch.float32).topk(self.mlp.top_k)
            if getattr(self.mlp, "norm_topk_prob", True):
                shares = shares / shares.sum(1, keepdim=True)
            shares = shares.to(found.dtype)
        elif len(found) == 2:  # GPT-OSS of transformers 4: for every expert
            return found[0]
        else:
            _, shares, chosen = found
        return shares.new_zeros(len(tokens), self.routed).scatter(1, chosen, shares)


@dataclass(frozen=True, eq=False)
class ExpertGate:
    """The share of each feature's expert times what opens the feature."""

    shares: Shares
    expert: Int[Tensor, " features"]
    weight: Float[Tensor, "neurons d_model"]
    """Of the neurons; features behind them are always open."""
    bias: Float[Tensor, " neurons"] | None
    function: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, inputs: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch features"]:
        """The gate's factors at `inputs`."""
        opened = self.function(nn.functional.linear(inputs, self.weight, self.bias))
        opened = nn.functional.pad(opened, (0, len(self.expert) - len(self.weight)), value=1)
        shares = self.shares(inputs.reshape(-1, inputs.shape[-1])).to(opened.dtype)
        return opened * shares[:, self.expert].reshape(opened.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> "ExpertGate":
        """The same gate on `device` in `dtype`; the router stays the model's."""
        return replace(
            self,
            expert=self.expert.to(device),
            weight=self.weight.to(device, dtype),
            bias=None if self.bias is None else self.bias.to(device, dtype),
        )


def expert_neurons(mlp: Any, like: Tensor) -> TranscoderLayer:
    """Every expert's neurons as one layer of features.

    Args:
        mlp: router and gated experts, stacked or apart.
        like: any tensor of the model's device and dtype, its last dimension d_model.

    Raises:
        ModelError: the experts or the router are of a kind that is not known.
    """
    experts = mlp.experts
    if isinstance(experts, nn.ModuleList):
        found = [_apart(expert, like) for expert in experts]
    elif isinstance(getattr(experts, "gate_up_proj", None), nn.Parameter):
        found = _stacked(experts, like.shape[-1])
    elif hasattr(mlp, "fc1_latent_proj"):
        return _without_gates(mlp, like)
    else:
        raise ModelError(
            f"neurons: experts of {type(mlp).__name__} are not known; gated ones are supported"
        )
    shares = Shares(mlp, len(found))
    shared = _shared(mlp)
    if shared is not None:
        found.append(_apart(shared, like))
    opens, reads = _functions(experts)
    return _layer(found, shares, opens, reads)


def _without_gates(mlp: Any, like: Tensor) -> TranscoderLayer:
    """Nemotron-H's experts, between maps that they share, and the one beside these maps."""
    experts, shared, width = mlp.experts, mlp.shared_experts, like.shape[-1]
    up, down = read(experts, "up_proj"), read(experts, "down_proj").transpose(1, 2)
    biases = up.new_zeros(up.shape[:2]), up.new_zeros(width)
    if not isinstance(mlp.fc1_latent_proj, nn.Identity):
        before, bias = _affine(mlp.fc1_latent_proj, width, like)
        after, after_bias = _affine(mlp.fc2_latent_proj, down.shape[2], like)
        biases, up, down = (up @ bias, after_bias), up @ before.T, down @ after
    own_up, own_bias = _affine(shared.up_proj, width, like)
    own_down, own_after = _affine(shared.down_proj, own_up.shape[1], like)
    owner = torch.arange(len(up)).repeat_interleave(up.shape[1])
    owner = torch.cat([owner, torch.full_like(owner[:1], len(up)).expand(own_up.shape[1])])
    always_open = up.new_empty(0, width)
    gate = ExpertGate(Shares(mlp, len(up)), owner.to(up.device), always_open, None, identity)
    return TranscoderLayer(
        W_enc=torch.cat([up.flatten(0, 1), own_up.T]),
        b_enc=torch.cat([biases[0].flatten(), own_bias]),
        decoder=DenseDecoder(torch.cat([down.flatten(0, 1), own_down])[:, None]),
        b_dec=biases[1] + own_after,
        activation=Elementwise(experts.act_fn),
        gate=gate,
    )


def _affine(module: Any, inputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and bias of a linear module, the latter zeros where it has none."""
    matrix, bias = linear_map(module, inputs, like)
    return matrix, matrix.new_zeros(matrix.shape[1]) if bias is None else bias


def identity(hidden: Tensor) -> Tensor:
    """What is read, as it is."""
    return hidden


def _layer(
    experts: list[Expert],
    shares: Shares,
    opens: Callable[[Tensor], Tensor],
    reads: Callable[[Tensor], Tensor],
) -> TranscoderLayer:
    up = torch.cat([expert.up for expert in experts])
    write = torch.cat([expert.down for expert in experts])
    b_enc = _joined([expert.up_bias for expert in experts])
    b_enc = up.new_zeros(len(up)) if b_enc is None else b_enc
    owner = torch.cat([torch.full((len(e.up),), i) for i, e in enumerate(experts)]).to(up.device)
    biases = [expert.down_bias for expert in experts if expert.down_bias is not None]
    if biases:
        up = torch.cat([up, torch.zeros_like(up[: len(biases)])])
        b_enc = torch.cat([b_enc, b_enc.new_ones(len(biases))])
        write = torch.cat([write, torch.stack(biases)])
        owner = torch.cat([owner, torch.arange(len(biases), device=owner.device)])
    gate = ExpertGate(
        shares=shares,
        expert=owner,
        weight=torch.cat([expert.gate for expert in experts]),
        bias=_joined([expert.gate_bias for expert in experts]),
        function=opens,
    )
    return TranscoderLayer(
        W_enc=up,
        b_enc=b_enc,
        decoder=DenseDecoder(write[:, None]),
        b_dec=write.new_zeros(write.shape[1]),
        activation=Elementwise(reads),
        gate=gate,
    )


def _apart(expert: Any, like: Tensor) -> Expert:
    """An expert that is a module of its own."""
    if hasattr(expert, "input_linear"):  # Granite's, gate above up
        both, bias = linear_map(expert.input_linear, like.shape[-1], like)
        write, after = linear_map(expert.output_linear, both.shape[1] // 2, like)
        if bias is after is None:
            gate, up = both.T.chunk(2)
            return Expert(gate, up, write)
    names = next((names for names in APART if all(hasattr(expert, name) for name in names)), None)
    if names is None:
        raise ModelError(
            f"neurons: an expert of class {type(expert).__name__} is not known; expected linear "
            f"modules {' or '.join(', '.join(names) for names in APART)}"
        )
    gate, gate_bias = linear_map(getattr(expert, names[0]), like.shape[-1], like)
    up, up_bias = linear_map(getattr(expert, names[1]), like.shape[-1], like)
    down, down_bias = linear_map(getattr(expert, names[2]), up.shape[1], like)
    if not gate_bias is up_bias is down_bias is None:
        raise ModelError(f"neurons: biases in {type(expert).__name__} are not supported")
    return Expert(gate.T, up.T, down)


def _stacked(experts: Any, width: int) -> list[Expert]:
    """Experts whose weights are stacked; with biases as in GPT-OSS, or without."""
    both, down = read(experts, "gate_up_proj"), read(experts, "down_proj")
    if not hasattr(experts, "gate_up_proj_bias") and down.shape[1] != width:  # Aria's
        both, down = both.transpose(1, 2), down.transpose(1, 2)
    if not hasattr(experts, "gate_up_proj_bias"):
        gate, up = both.chunk(2, dim=1)
        return [Expert(*one) for one in zip(gate, up, down.transpose(1, 2), strict=True)]
    both, biases = both.transpose(1, 2), read(experts, "gate_up_proj_bias")
    parts = (
        *(both[:, first::2] for first in (0, 1)),
        down,
        *(biases[:, first::2] + first for first in (0, 1)),  # the one that is added to what is read
        read(experts, "down_proj_bias"),
    )
    return [Expert(*one) for one in zip(*parts, strict=True)]


def _functions(experts: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What makes a gate of what opens it, and what becomes of what is read: f and u."""
    if hasattr(experts, "gate_up_proj_bias"):
        limit: float = experts.limit
        opens = partial(_swish, limit, experts.alpha)
        return opens, partial(torch.clamp, min=1 - limit, max=1 + limit)
    first: Any = experts[0] if isinstance(experts, nn.ModuleList) else experts
    return first.act_fn, identity


def _swish(limit: float, slope: float, hidden: Tensor) -> Tensor:
    """GPT-OSS's activation function."""
    hidden = hidden.clamp(max=limit)
    return hidden * torch.sigmoid(slope * hidden)


def _shared(mlp: Any) -> Any:
    """The expert that every token visits, or None."""
    found = (getattr(mlp, name, None) for name in SHARED)
    return next((expert for expert in found if expert is not None), None)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
