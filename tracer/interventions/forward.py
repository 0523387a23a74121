"""One forward pass of the Hugging Face model, a batch of prompts, under intervention hooks.

Shares nothing with the sweep: the modules of the Hugging Face model do the arithmetic. Rows of the
batch are independent, so many interventions on one prompt, or one on many prompts of one length,
take one pass.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import (
    first_tensor,
    float64_experts,
    forward_hooks,
    in_rows,
    on_last,
)
from replacement_models.host import Host
from replacement_models.process import one_call
from replacement_models.recording import read_input, write_hooks
from replacement_models.sites import ReadPoint
from tracer.interventions.freezing import Freezing, held_output, read_scale, replaced, rows_of
from tracer.interventions.values import Placed, Steering, positions_in

Changes = tuple[Int[Tensor, " changed"], Float[Tensor, "rows positions changed"]]
"""Features of one layer, and by how much their activations change."""


class Edit(Protocol):
    """What is done to one layer's features as a forward pass reaches them."""

    def changes(
        self, layer: int, active: Float[Tensor, "rows positions features"]
    ) -> Changes | None:
        """By how much activations change, given what they are; None for not at all."""

    def reads(self, layer: int) -> bool:
        """Whether `changes` or `output` need this layer encoded."""

    def output(
        self,
        layer: int,
        x: Float[Tensor, "rows positions d_model"],
        output: Float[Tensor, "rows positions d_model"],
    ) -> Float[Tensor, "rows positions d_model"]:
        """The MLP output before the changed features' writes join, given the transcoder's input."""


@dataclass(frozen=True)
class FeatureEdits:
    """An edit that gives every row of the batch its own interventions."""

    placed: Sequence[Sequence[Placed]]
    clean: Recording | None = None
    """Count changes from these activations; None: from those of the pass itself."""
    encode: Callable[[int, Tensor], tuple[Tensor, Tensor]] | None = None

    def reads(self, layer: int) -> bool:
        """Whether some row changes a feature of this layer."""
        return any(one.layer == layer for row in self.placed for one, _ in row)

    def changes(self, layer: int, active: Tensor) -> Changes | None:
        """The interventions of all rows on one layer."""
        mine = [
            (row, one, positions)
            for row, placed in enumerate(self.placed)
            for one, positions in placed
            if one.layer == layer and positions
        ]
        if not mine:
            return None
        if self.clean is not None and self.encode is not None:
            active = self.encode(layer, self.clean.inputs[layer])[1].expand_as(active)
        features = sorted({one.feature for _, one, _ in mine})
        column = {feature: index for index, feature in enumerate(features)}
        amount = active.new_zeros(*active.shape[:2], len(features))
        for row, one, positions in mine:
            change = one.change(active[row, positions, one.feature])
            amount[row, positions, column[one.feature]] += change
        return torch.tensor(features, device=active.device), amount

    def output(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """Leaves the output alone."""
        return output


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one forward pass of a batch ends in."""

    logits: Float[Tensor, "rows positions vocabulary"]
    host: Host
    normed: Float[Tensor, "rows positions d_model"]
    """The final norm's output."""
    activations: Sequence[Float[Tensor, "rows positions features"]]
    """A layer each; empty unless kept."""
    pre_activations: Sequence[Float[Tensor, "rows positions features"]]
    cache: Any = None

    @cached_property
    def logits_before_cap(self) -> Float[Tensor, "rows positions vocabulary"]:
        """Made when asked for: a product as large as that of the logits themselves."""
        return self.host.unembed(self.normed)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How to run: everything but the tokens."""

    edit: Edit
    frozen: Freezing | None = None
    keep: bool = True
    """Whether to keep activations."""
    added: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]] = ()
    """Modules, and what becomes of their first input: the stream entering a block."""
    hooks: Sequence[tuple[nn.Module, Any]] = ()
    """Further forward hooks; they run after those of the freezing, before those of the edit."""
    cached: bool = False
    """Whether to keep keys and values for a pass that goes on."""


@dataclass
class Pass:
    """What the hooks of one forward pass share."""

    rows: int
    residual: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    activations: list[Tensor] = field(default_factory=list)
    pre_activations: list[Tensor] = field(default_factory=list)
    pending: dict[int, Tensor] = field(default_factory=dict)
    """Layer to what changed features so far write to its MLP output, (rows, P, D)."""
    normed: Tensor | None = None
    """What the final norm gave."""


@one_call()
def run(
    model: ReplacementModel,
    tokens: Int[Tensor, "rows positions"],
    how: Run,
    past: Any = None,
) -> Outcome:
    """One forward pass of a batch of equally long prompts, or of what follows `past`."""
    going = Pass(len(tokens))
    hooks = [*how.hooks, *_write_hooks(model, how, going)]
    if how.frozen is not None:
        hooks = [*how.frozen.hooks(model), *hooks]
    host = model.host
    known = inspect.signature(host.model.forward).parameters
    kept = "cache_params" if "cache_params" in known else "past_key_values"  # Mamba's is the former
    with forward_hooks(hooks), input_hooks(how.added), float64_experts(host.model):
        out = host.model(input_ids=tokens, **{kept: past}, use_cache=how.cached)
    assert going.normed is not None
    return Outcome(
        logits=out.logits.to(host.device),
        host=host,
        normed=going.normed,
        activations=going.activations,
        pre_activations=going.pre_activations,
        cache=getattr(out, kept) if how.cached else None,
    )


def _write_hooks(model: ReplacementModel, how: Run, going: Pass) -> list[tuple[nn.Module, Any]]:
    """Hooks that encode what every MLP reads and add what changed features write."""
    hooks: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.host.blocks):
        if block.mlp_norm is not None:
            hooks.append((block.mlp_norm.module, _keep_residual(going, layer)))
        hooks += [
            (block.mlp, _encode(model, layer, how, going)),
            *write_hooks(block, model.transcoder.write_at(layer), _write(model, layer, how, going)),
        ]

    def keep_normed(inputs: Any, output: Tensor) -> None:
        going.normed = output.to(model.device)

    return [*hooks, (model.host.final_norm.module, keep_normed)]


def _keep_residual(going: Pass, layer: int) -> Callable[..., None]:
    def keep(inputs: Any, output: Tensor) -> None:
        going.residual[layer] = in_rows(first_tensor(inputs), going.rows)

    return keep


def _encode(model: ReplacementModel, layer: int, how: Run, going: Pass) -> Callable[..., None]:
    block, transcoder = model.host.blocks[layer], model.transcoder
    read = transcoder.read_at(layer)

    def encode(inputs: Any, output: Any) -> None:
        normed = in_rows(first_tensor(inputs), going.rows)
        residual = going.residual.get(layer, normed)
        x = read_input(block, read, residual, normed)
        if read is ReadPoint.NORMED_UNWEIGHTED:
            x = read_scale(x, residual, block, how.frozen, layer)
        going.inputs[layer] = x
        if not (how.keep or how.edit.reads(layer)):
            return
        hidden, active = transcoder.encode(layer, x)
        if how.keep:
            going.pre_activations.append(hidden)
            going.activations.append(active)
        _pend(model, layer, how.edit.changes(layer, active), how, going)

    return encode


def _pend(
    model: ReplacementModel, layer: int, changes: Changes | None, how: Run, going: Pass
) -> None:
    """Note what changed features write to their target layers."""
    if changes is None:
        return
    features, amount = changes
    rows = model.transcoder.decoder_rows(layer, features)
    for slot, target in enumerate(model.transcoder.targets(layer)):
        if how.frozen is not None and how.frozen.lets_be(target):
            continue
        write = (amount @ rows[:, slot]).to(model.host.blocks[target].device)
        going.pending[target] = going.pending[target] + write if target in going.pending else write


def _write(model: ReplacementModel, layer: int, how: Run, going: Pass) -> Callable[..., Any]:
    skip = model.transcoder.skip(layer)

    def write(inputs: Any, output: Any) -> Any:
        x = going.inputs[layer]
        tensor = rows_of(output, x)
        if how.frozen is not None and layer in how.frozen.layers:
            tensor = held_output(how.frozen.recording, layer, x, skip).clone()
        tensor = how.edit.output(layer, x, tensor)
        if layer in going.pending:
            tensor = tensor + going.pending[layer]
        return replaced(output, tensor)

    return write


@contextmanager
def input_hooks(
    added: Iterable[tuple[nn.Module, Callable[[Tensor], Tensor]]],
) -> Iterator[None]:
    """Change the first input of some modules for the duration of a block."""
    with ExitStack() as stack:
        for module, change in added:
            handle = module.register_forward_pre_hook(_before(change), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _before(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = first_tensor((*args, *kwargs.values()))
        new = change(stream)
        if new is None:
            return None
        given = [new if value is stream else value for value in args]
        named = {name: new if value is stream else value for name, value in kwargs.items()}
        return tuple(given), named

    return before


def steering_hooks(
    model: ReplacementModel,
    wanted: Sequence[tuple[Steering, Sequence[int]]],
    prompt: int,
    first: int = 0,
) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Input changes that add directions to some rows of the batch, or take them out.

    Args:
        model: the model.
        wanted: directions and the rows of the batch they are for.
        prompt: tokens of the prompt.
        first: position of the pass's first token.
    """
    blocks, final = model.host.blocks, model.host.final_norm.module
    calls = model.host.final_norm_calls

    def adding(steering: Steering, rows: Sequence[int]) -> Callable[[Tensor], Tensor]:
        def add(stream: Tensor) -> Tensor:
            end = first + stream.shape[1]
            out = stream.clone()
            for position in positions_in(steering.position, prompt, first, end):
                out[list(rows), position] = steering.changed(out[list(rows), position])
            return out

        return add

    return [
        (blocks[one.layer].module, adding(one, rows))
        if one.layer < len(blocks)
        else (final, on_last(calls, adding(one, rows)))
        for one, rows in wanted
    ]
