"""Interventions on features of the original model, as hooks on its own forward pass.

The proof of a picture: set, scale or add to features and see what changes. Nothing here is shared
with the sweep; the modules of the Hugging Face model do the arithmetic (Ameisen et al. 2025,
"Circuit Tracing", section "Interventions" and appendix "Validating the replacement model").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import first_tensor, forward_hooks, replaced_first
from replacement_models.host import Norm
from replacement_models.recording import norms, read_input, write_module
from replacement_models.transcoder import ReadPoint
from tracer.errors import TraceError

MODES = ("direct", "free")


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """What to do to one feature at some positions: exactly one of set, scale, add."""

    layer: int
    position: int | slice
    """One position, or a slice of them; negative ones count from the end."""
    feature: int
    value: float | None = None
    """The activation to set."""
    scale: float | None = None
    """The factor on its activation; 0 ablates."""
    add: float | None = None
    """What to add to its activation."""

    def __post_init__(self) -> None:
        given = [x for x in (self.value, self.scale, self.add) if x is not None]
        if len(given) != 1:
            raise TraceError(
                f"intervention at layer {self.layer}, feature {self.feature}: give exactly one of "
                f"value, scale, add; got {len(given)}"
            )
        if not abs(given[0]) < float("inf"):
            raise TraceError(
                f"intervention at layer {self.layer}, feature {self.feature}: {given[0]} is no "
                "finite number"
            )

    def change(self, activation: Float[Tensor, " positions"]) -> Float[Tensor, " positions"]:
        """By how much the activation changes."""
        if self.value is not None:
            return self.value - activation
        if self.scale is not None:
            return (self.scale - 1) * activation
        assert self.add is not None
        return torch.full_like(activation, self.add)


@dataclass(frozen=True, eq=False)
class State:
    """What one forward pass ends in."""

    logits: Float[Tensor, "positions vocabulary"]
    logits_before_cap: Float[Tensor, "positions vocabulary"]
    activations: Float[Tensor, "layers positions features"]
    """As encoded from what the MLPs read; the interventions themselves do not show in them."""
    pre_activations: Float[Tensor, "layers positions features"]


@dataclass(frozen=True, eq=False)
class Change(State):
    """The state after an intervention, and the one before it."""

    base: State


@dataclass
class Pass:
    """What the hooks of one forward pass share."""

    residual: dict[int, Tensor] = field(default_factory=dict)
    pre_activations: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    pending: dict[int, Tensor] = field(default_factory=dict)
    """Layer to what interventions so far write to its MLP output, (P, D)."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    before_cap: Tensor | None = None


@torch.no_grad()
def intervene(
    model: ReplacementModel,
    prompt: str | Sequence[int],
    interventions: Sequence[Intervention],
    mode: str = "direct",
) -> Change:
    """Change features of the original model and see what follows.

    A changed feature adds the change of its activation times its decoder rows to the MLP outputs it
    writes to.

    Args:
        model: the model.
        prompt: text, or token ids taken as they stand.
        interventions: all applied in one forward pass.
        mode: "direct": attention patterns, norm denominators and MLP outputs stay frozen (linear
            skips still pass); changes count from the recorded activations, and the difference to
            `base` is the sum of a graph's edges. "free": everything downstream is recomputed, and
            changes count from the activations as they then are.

    Raises:
        TraceError: an unknown mode, or a layer, position or feature that does not exist.
        ModelError: the prompt does not fit the model.
    """
    if mode not in MODES:
        raise TraceError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    tokens = model.tokenize(prompt)
    wanted = [_checked(model, intervention, len(tokens)) for intervention in interventions]
    recording = model.record(tokens)
    frozen = recording if mode == "direct" else None
    base = _run(model, tokens, [], frozen)
    after = _run(model, tokens, wanted, frozen)
    return Change(**vars(after), base=base)


def _checked(
    model: ReplacementModel, wanted: Intervention, count: int
) -> tuple[Intervention, list[int]]:
    """An intervention and the positions it names."""
    layers = len(model.host.blocks)
    if not 0 <= wanted.layer < layers:
        raise TraceError(f"intervention: layer {wanted.layer} is not in 0..{layers - 1}")
    width = len(model.transcoder.layers[wanted.layer].b_enc)
    if not 0 <= wanted.feature < width:
        raise TraceError(
            f"intervention: feature {wanted.feature} is not in 0..{width - 1}, the features of "
            f"layer {wanted.layer}"
        )
    if isinstance(wanted.position, slice):
        positions = list(range(count))[wanted.position]
        if not positions:
            raise TraceError(f"intervention: {wanted.position} holds none of {count} positions")
        return wanted, positions
    if not -count <= wanted.position < count:
        raise TraceError(
            f"intervention: position {wanted.position} is not in {-count}..{count - 1}"
        )
    return wanted, [wanted.position % count]


Wanted = Sequence[tuple[Intervention, list[int]]]


def _run(
    model: ReplacementModel, tokens: Sequence[int], wanted: Wanted, frozen: Recording | None
) -> State:
    """One forward pass of the Hugging Face model under intervention hooks."""
    going = Pass()
    hooks = _write_hooks(model, wanted, frozen, going)
    if frozen is not None:
        hooks = [*_frozen_hooks(model, frozen), *hooks]
    with forward_hooks(hooks):
        logits = model.host.run(tokens)
    assert going.before_cap is not None
    return State(
        logits=logits,
        logits_before_cap=going.before_cap,
        activations=_stacked(going.activations),
        pre_activations=_stacked(going.pre_activations),
    )


def _stacked(layers: list[Tensor]) -> Tensor:
    """(L, P, F) of layers that may differ in width; narrower ones end in zeros."""
    width = max(layer.shape[1] for layer in layers)
    return torch.stack([nn.functional.pad(layer, (0, width - layer.shape[1])) for layer in layers])


def _write_hooks(
    model: ReplacementModel, wanted: Wanted, frozen: Recording | None, going: Pass
) -> list[tuple[nn.Module, Any]]:
    """Hooks that encode what every MLP reads and add the interventions' writes to its output."""
    hooks: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.host.blocks):
        mine = [(one, at) for one, at in wanted if one.layer == layer]
        if block.mlp_norm is not None:
            hooks.append((block.mlp_norm.module, _keep_residual(going, layer)))
        hooks += [
            (block.mlp, _encode(model, layer, mine, frozen, going)),
            (write_module(block, model.transcoder.write), _write(model, layer, frozen, going)),
        ]

    def keep_logits(inputs: Any, output: Tensor) -> None:
        going.before_cap = model.host.unembed(output[0])

    return [*hooks, (model.host.final_norm.module, keep_logits)]


def _keep_residual(going: Pass, layer: int) -> Callable[..., None]:
    def keep(inputs: Any, output: Tensor) -> None:
        going.residual[layer] = first_tensor(inputs)[0]

    return keep


def _encode(
    model: ReplacementModel,
    layer: int,
    mine: Wanted,
    frozen: Recording | None,
    going: Pass,
) -> Callable[..., None]:
    block, transcoder = model.host.blocks[layer], model.transcoder

    def encode(inputs: Any, output: Any) -> None:
        normed = first_tensor(inputs)[0]
        residual = going.residual.get(layer, normed)
        x = read_input(block, transcoder.read, residual, normed)
        unweighted = transcoder.read is ReadPoint.NORMED_UNWEIGHTED
        if frozen is not None and unweighted and block.mlp_norm is not None:
            x = block.mlp_norm.centre(residual) / frozen.layers[layer].mlp_scale
        hidden, active = transcoder.encode(layer, x)
        going.inputs[layer] = x
        going.pre_activations.append(hidden)
        going.activations.append(active)
        current = active if frozen is None else transcoder.encode(layer, frozen.inputs[layer])[1]
        for one, positions in mine:
            change = one.change(current[positions, one.feature])
            row = transcoder.decoder_rows(layer, torch.tensor([one.feature], device=x.device))[0]
            for slot, target in enumerate(transcoder.targets(layer)):
                pending = going.pending.setdefault(target, torch.zeros_like(normed))
                pending[positions] += change[:, None] * row[slot]

    return encode


def _write(
    model: ReplacementModel, layer: int, frozen: Recording | None, going: Pass
) -> Callable[..., Any]:
    skip = model.transcoder.skip(layer)

    def write(inputs: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        if frozen is not None:
            held = frozen.outputs[layer]
            if skip is not None:
                held = held + (going.inputs[layer] - frozen.inputs[layer]) @ skip
            tensor = held.expand_as(tensor)
        if layer in going.pending:
            tensor = tensor + going.pending[layer]
        return replaced_first(output, tensor)

    return write


def _frozen_hooks(model: ReplacementModel, frozen: Recording) -> list[tuple[nn.Module, Any]]:
    """Hooks that hold norm denominators and attention patterns at their recorded values."""
    hooks: list[tuple[nn.Module, Any]] = []
    for block, layer in zip(model.host.blocks, frozen.layers, strict=True):
        scales = {
            id(block.attention_norm): layer.attention_scale,
            id(block.mlp_norm): layer.mlp_scale,
            id(block.attention_post_norm): layer.attention_post_scale,
            id(block.mlp_post_norm): layer.mlp_post_scale,
        }
        hooks += [(norm.module, _hold_norm(norm, scales[id(norm)])) for norm in norms(block)]
        hooks.append((block.attention, _hold_pattern(block.attend, layer.pattern)))
    final = model.host.final_norm
    return [*hooks, (final.module, _hold_norm(final, frozen.final_scale))]


def _hold_norm(norm: Norm, scale: Tensor | None) -> Callable[..., Tensor]:
    assert scale is not None

    def hold(inputs: Any, output: Tensor) -> Tensor:
        return norm.frozen(first_tensor(inputs), scale)

    return hold


def _hold_pattern(attend: Callable[[Tensor, Tensor], Tensor], pattern: Tensor) -> Any:
    def hold(inputs: Any, output: Any) -> Any:
        return replaced_first(output, attend(first_tensor(inputs)[0], pattern)[None])

    return hold
