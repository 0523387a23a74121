"""Places that can be patched, and their values in one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import eager_attention, first_of, first_tensor, in_rows
from replacement_models.host import Block
from replacement_models.process import one_call
from replacement_models.recording import write_hooks
from tracer.errors import TraceError
from tracer.interventions.forward import FeatureEdits, Run, run


class Kind(StrEnum):
    """What is patched."""

    RESIDUAL = "residual"
    """The residual stream entering a layer."""
    ATTENTION = "attention"
    """An attention layer's output, all heads."""
    MLP = "mlp"
    """What the transcoder stands in for."""
    HEAD = "head"
    """One head's part of the attention output."""
    FEATURE = "feature"
    """One feature's activation, through its decoder rows at all layers it writes to."""


@dataclass(frozen=True)
class PatchSite:
    """One place."""

    kind: Kind
    layer: int
    position: int | None = None
    """None: all positions."""
    index: int | None = None
    """Head or feature."""

    def __post_init__(self) -> None:
        if (self.index is None) == (self.kind in (Kind.HEAD, Kind.FEATURE)):
            raise TraceError(f"{self}: heads and features take an index, other kinds none")


@dataclass
class Values:
    """What every site holds for one prompt; lists are in layer order."""

    residual: dict[int, Float[Tensor, "positions d_model"]] = field(default_factory=dict)
    """By layer."""
    attention: list[Float[Tensor, "positions d_model"] | None] = field(default_factory=list)
    """None where a layer mixes tokens in two ways side by side."""
    mlp: list[Float[Tensor, "positions d_model"]] = field(default_factory=list)
    head: list[Float[Tensor, "positions heads d_head"] | None] = field(default_factory=list)
    """As output maps read them; None as for attention."""
    feature: list[Float[Tensor, "positions features"]] = field(default_factory=list)
    logits: Float[Tensor, " vocabulary"] | None = None
    """Of the next token."""

    def at(self, site: PatchSite) -> Tensor:
        """The value of one site: (P, ...) or that of one position.

        Raises:
            TraceError: the layer's attention is not one module's.
        """
        value: Tensor | None = getattr(self, site.kind)[site.layer]
        if value is None:
            raise TraceError(
                f"layer {site.layer} runs softmax attention and a state-space scan side by side: "
                f"sites of kind {site.kind} are not known there, patch residual, mlp or feature"
            )
        if site.position is not None:
            value = value[site.position]
        return (
            value if site.index is None else value.select(value.ndim - self._rank(site), site.index)
        )

    def _rank(self, site: PatchSite) -> int:
        return 2 if site.kind is Kind.HEAD else 1


def heads_of(
    block: Block, inputs: tuple[Any, ...], output: Any
) -> Float[Tensor, "rows positions heads d_head"]:
    """What each head writes, before its output map, heard at `heads_end(block)`."""
    if block.plain:
        return head_values(block, first_tensor(inputs), output[1])
    return first_tensor(inputs).unflatten(-1, block.output.shape[:2])


def heads_end(block: Block) -> nn.Module | None:
    """Where heads are heard; None where their output map is no one module.

    At attention, whose pattern is known; where gates or norms stand behind heads, or a kernel mixes
    them, at their output map.
    """
    if block.plain:
        return block.attention
    return block.project if isinstance(block.project, nn.Module) else None


def head_values(
    block: Block, hidden: Float[Tensor, "rows positions d_model"], pattern: Tensor
) -> Float[Tensor, "rows positions heads d_head"]:
    """What each head of softmax attention writes, before its output map: its mix of values."""
    kv_heads, d_head, _ = block.value.shape
    values = block.values(hidden).unflatten(-1, (kv_heads, d_head))
    per_head = values.repeat_interleave(len(block.output) // kv_heads, dim=-2)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, per_head)


@one_call()
@torch.no_grad()
def values_of(model: ReplacementModel, tokens: Sequence[int]) -> Values:
    """Run the model once and keep the value of every site."""
    seen = Values()
    hooks: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.host.blocks):
        hooks += [
            (block.module, _keep_residual(seen, layer)),
            (block.attention_end, _keep_attention(block, seen)),
            (heads_end(block) or block.attention_end, _keep_heads(block, seen)),
            *write_hooks(block, model.transcoder.write_at(layer), _keep_mlp(seen)),
        ]
    ids = torch.tensor([list(tokens)], device=model.device)
    with eager_attention(model.host.model):
        outcome = run(model, ids, Run(edit=FeatureEdits([[]]), hooks=hooks))
    seen.feature = [layer[0] for layer in outcome.activations]
    seen.logits = outcome.logits[0, -1]
    return seen


def _keep_residual(seen: Values, layer: int) -> Callable[..., None]:
    return lambda inputs, _: seen.residual.__setitem__(layer, first_tensor(inputs)[0])


def _keep_attention(block: Block, seen: Values) -> Callable[..., None]:
    def keep(_: Any, output: Any) -> None:
        whole = block.attention_beside is None
        seen.attention.append(first_of(output)[0] if whole else None)

    return keep


def _keep_heads(block: Block, seen: Values) -> Callable[..., None]:
    def keep(inputs: Any, output: Any) -> None:
        known = heads_end(block) is not None
        seen.head.append(heads_of(block, inputs, output)[0] if known else None)

    return keep


def _keep_mlp(seen: Values) -> Callable[..., None]:
    return lambda _, output: seen.mlp.append(in_rows(first_of(output), 1)[0])


def sites_of(
    model: ReplacementModel, kind: Kind | str, runs: Sequence[Values], by_position: bool = True
) -> list[PatchSite]:
    """Every site of a kind; of features those that are active in one of some runs.

    Args:
        model: the model.
        kind: what to patch.
        runs: forward passes of equally long prompts.
        by_position: one site for each position, or one for all positions together.
    """
    kind, positions = Kind(kind), len(runs[0].residual[0])
    places: Sequence[int | None] = range(positions) if by_position else [None]
    found = []
    for layer, block in enumerate(model.host.blocks):
        if kind is Kind.FEATURE:
            active = torch.stack([one.feature[layer] != 0 for one in runs]).any(0)
            active = active if by_position else active.any(0, keepdim=True)
            found += [
                PatchSite(kind, layer, places[row], index)
                for row, index in active.nonzero().tolist()
            ]
        else:
            indices = range(len(block.output)) if kind is Kind.HEAD else [None]
            found += [PatchSite(kind, layer, at, index) for at in places for index in indices]
    return found
