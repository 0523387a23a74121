"""Interventions on features of the original model, as hooks on its own forward pass.

The proof of a picture: set, scale or add to features and see what changes. Nothing here is shared
with the sweep; the modules of the Hugging Face model do the arithmetic (Ameisen et al. 2025,
"Circuit Tracing", section "Interventions" and appendix "Validating the replacement model").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import eager_attention
from replacement_models.kernel_patterns import kernel_patterns
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.recording import pattern_taps
from tracer.errors import TraceError
from tracer.interventions.forward import FeatureEdits, Outcome, Run, run, steering_hooks
from tracer.interventions.freezing import Freezing
from tracer.interventions.values import (
    OVERFLOWN,
    Intervention,
    Placed,
    Steering,
    check_feature,
    check_position,
    check_steering,
    positions_in,
)

__all__ = ["MODES", "Change", "Intervention", "State", "intervene"]

MODES = {"direct": (True, True), "constrained": (True, False), "free": (False, False)}
"""Mode to its defaults: attention patterns frozen, norm denominators frozen."""


@dataclass(frozen=True, eq=False)
class State:
    """What one forward pass ends in."""

    logits: Float[Tensor, "positions vocabulary"]
    logits_before_cap: Float[Tensor, "positions vocabulary"]
    activations: Float[Tensor, "layers positions features"]
    """As encoded from what the MLPs read; the interventions themselves do not show in them."""
    pre_activations: Float[Tensor, "layers positions features"]
    patterns: Sequence[Float[Tensor, "heads queries keys"]] | None = field(
        default=None, kw_only=True
    )
    """Attention of every layer where it was asked for; rows add up to at most 1."""

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class Change(State):
    """The state after an intervention, and the one before it."""

    base: State

    __repr__ = one_line


@one_call()
@torch.no_grad()
def intervene(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    prompt: str | Sequence[int],
    interventions: Sequence[Intervention | Steering],
    mode: str = "direct",
    *,
    layers: range | None = None,
    freeze_attention: bool | None = None,
    freeze_norms: bool | None = None,
    patterns: bool = False,
) -> Change:
    """Change features of the original model and see what follows.

    A changed feature adds the change of its activation times its decoder rows to the MLP outputs it
    writes to.

    Args:
        model: the model.
        prompt: text, or token ids taken as they stand.
        interventions: features to change and directions to add, all in one forward pass.
        mode: "direct": attention patterns, norm denominators and MLP outputs stay frozen (linear
            skips still pass); changes count from the recorded activations, and the difference to
            `base` is the sum of a graph's edges. "constrained": the MLP outputs of `layers` stay as
            recorded but for the intended writes, changes count from the recorded activations, and
            all else is recomputed; beyond the range the MLPs answer for themselves, so a
            cross-layer feature's writes there are not added. "free": everything downstream is
            recomputed, and changes count from the activations as they then are.
        layers: the range of "constrained", in which every changed feature must lie.
        freeze_attention: hold attention patterns; None: in "direct" and "constrained".
        freeze_norms: hold norm denominators; None: in "direct" only, where both are part of what
            the mode means.
        patterns: also return attention patterns, before and after; where attention is held they
            are those recorded.

    Returns:
        Logits (P, V) before and after a soft cap, activations and pre-activations (L, P, F), and
        `patterns`, a layer each, (heads, P, P), or None; `base` holds the same of before.

    Raises:
        TraceError: an unknown mode, an option that does not go with it, an intervention outside the
            constrained range, or a layer, position or feature that does not exist.
        ModelError: the prompt does not fit the model.
    """
    tokens = model.tokenize(prompt)
    placed, steered = place(model, interventions, len(tokens))
    freezing = _freezing(model, tokens, mode, layers, (freeze_attention, freeze_norms))
    held = freezing if freezing is not None and freezing.layers else None
    if held is not None:
        _check_range(placed, held.layers)
    base = _state(model, tokens, Run(edit=FeatureEdits([[]]), frozen=freezing), patterns)
    clean = None if held is None else held.recording
    edit = FeatureEdits([placed], clean, model.transcoder.encode)
    added = steering_hooks(model, [(one, [0]) for one in steered], len(tokens))
    after = _state(model, tokens, Run(edit=edit, frozen=freezing, added=added), patterns)
    return Change(**vars(after), base=base)


def place(
    model: ReplacementModel,
    interventions: Sequence[Intervention | Steering],
    prompt: int,
    length: int | None = None,
) -> tuple[list[Placed], list[Steering]]:
    """Features to change with the positions they name, and directions, all checked.

    Args:
        model: the model.
        interventions: of both kinds.
        prompt: tokens of the prompt.
        length: tokens with the continuation; None: of the prompt.

    Raises:
        TraceError: a layer, position, feature or vector that does not exist or fit.
    """
    length = prompt if length is None else length
    placed, steered = [], []
    for one in interventions:
        if isinstance(one, Steering):
            check_steering(model, one)
            steered.append(one)
        else:
            check_feature(model, one)
            placed.append((one, positions_in(one.position, prompt, 0, length)))
        check_position(one.position, prompt, length)
    return placed, steered


def _freezing(
    model: ReplacementModel,
    tokens: Sequence[int],
    mode: str,
    layers: range | None,
    freeze: tuple[bool | None, bool | None],
) -> Freezing | None:
    if mode not in MODES:
        raise TraceError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "direct" and False in freeze:
        raise TraceError(
            "mode 'direct' freezes attention and norms; use mode 'constrained' to recompute them"
        )
    attention, norms = (
        default if wanted is None else wanted
        for default, wanted in zip(MODES[mode], freeze, strict=True)
    )
    clamped = _clamped(mode, layers, len(model.host.blocks))
    if not (attention or norms or clamped):
        return None
    return Freezing(model.record(tokens), attention, norms, clamped)


def _clamped(mode: str, layers: range | None, count: int) -> range:
    """Layers whose MLP outputs a mode clamps."""
    if (mode == "constrained") != (layers is not None):
        needs = "needs layers, as in range(1, 3)" if layers is None else "takes no layers"
        raise TraceError(f"mode {mode!r} {needs}")
    if layers is None:
        return range(count if mode == "direct" else 0)
    if not (layers.step == 1 and 0 <= layers.start < layers.stop <= count):
        raise TraceError(f"layers is {layers}, expected a range of layers within range({count})")
    return layers


def _check_range(placed: Sequence[Placed], layers: range) -> None:
    for one, _ in placed:
        if one.layer not in layers:
            raise TraceError(
                f"intervention: layer {one.layer} is outside the constrained layers "
                f"{layers.start}..{layers.stop - 1}; widen the range or leave it out"
            )


def _state(model: ReplacementModel, tokens: Sequence[int], how: Run, patterns: bool) -> State:
    ids = torch.tensor([list(tokens)], device=model.device)
    if how.frozen is not None and how.frozen.attention:
        held = [layer.attention_pattern() for layer in how.frozen.recording.layers]
        found = _ran(model, ids, how)
        return replace(found, patterns=held) if patterns else found
    if not patterns:
        return _ran(model, ids, how)
    seen: dict[int, Tensor] = {}
    taps = [(block.attention, keep) for block, keep in pattern_taps(model.host, seen)]
    how = replace(how, hooks=[*how.hooks, *taps])
    with eager_attention(model.host.model), kernel_patterns(model.host, seen, True):
        found = _ran(model, ids, how)
    return replace(found, patterns=[seen[layer] for layer in sorted(seen)])


def _ran(model: ReplacementModel, ids: Tensor, how: Run) -> State:
    outcome = run(model, ids, how)
    if not bool(outcome.logits.isfinite().all()):
        raise TraceError(OVERFLOWN)
    return state_of(outcome, 0)


def state_of(outcome: Outcome, row: int) -> State:
    """One row of a batch, all where the logits are."""
    home = outcome.host.device
    return State(
        logits=outcome.logits[row],
        logits_before_cap=outcome.logits_before_cap[row],
        activations=stacked([layer[row] for layer in outcome.activations]).to(home),
        pre_activations=stacked([layer[row] for layer in outcome.pre_activations]).to(home),
    )


def stacked(layers: Sequence[Tensor]) -> Tensor:
    """(L, ...) of layers that may differ in width; narrower ones end in zeros."""
    width, device = max(layer.shape[-1] for layer in layers), layers[-1].device
    padded = (nn.functional.pad(layer, (0, width - layer.shape[-1])) for layer in layers)
    return torch.stack([layer.to(device) for layer in padded])
