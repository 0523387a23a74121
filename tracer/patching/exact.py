"""Exact patching: a row of a forward pass for every set of sites, downstream recomputed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import eager_attention, first_of, replaced_first
from replacement_models.host import Block
from replacement_models.recording import write_hooks
from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.freezing import replaced
from tracer.interventions.values import Intervention, Placed
from tracer.patching.batches import rows_that_fit
from tracer.patching.metrics import Metric
from tracer.patching.patch_sites import Kind, PatchSite, heads_end, heads_of

Wanted = Sequence[tuple[PatchSite, Tensor]]
"""Sites of one row with the values to put there."""
Mine = list[tuple[int, PatchSite, Tensor]]
"""Sites of one layer and kind, with their rows."""


@torch.no_grad()
def patched(
    model: ReplacementModel, tokens: Sequence[int], rows: Sequence[Wanted], metric: Metric
) -> Float[np.ndarray, " rows"]:
    """The metric after each row's patches, as many rows at once as memory holds.

    Args:
        model: the model.
        tokens: the prompt all rows run.
        rows: what to put where, all of a row together.
        metric: of the next token's logits.
    """
    found: list[float] = []
    step = rows_that_fit(model, len(tokens))
    for start in range(0, len(rows), step):
        batch = rows[start : start + step]
        ids = torch.tensor([list(tokens)] * len(batch), device=model.device)
        with eager_attention(model.host.model):
            outcome = run(model, ids, _run(model, batch, len(tokens)))
        found += metric(outcome.logits[:, -1]).tolist()
    return np.array(found)


def _run(model: ReplacementModel, batch: Sequence[Wanted], positions: int) -> Run:
    """Hooks and interventions that carry out one batch."""
    added: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    hooks: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.host.blocks):
        mine: dict[Kind, Mine] = {
            kind: [
                (row, site, value)
                for row, wanted in enumerate(batch)
                for site, value in wanted
                if (site.kind, site.layer) == (kind, layer)
            ]
            for kind in Kind
        }
        if mine[Kind.RESIDUAL]:
            added.append((block.module, _placing(mine[Kind.RESIDUAL])))
        if mine[Kind.ATTENTION]:
            place = _placing(mine[Kind.ATTENTION])
            hooks.append((block.attention_end, _output(place, positions)))
        if mine[Kind.HEAD]:
            end = heads_end(block)
            assert end is not None  # their values are known
            hooks.append((end, _heads(block, mine[Kind.HEAD])))
        if mine[Kind.MLP]:
            place = _output(_placing(mine[Kind.MLP]), positions)
            hooks += write_hooks(block, model.transcoder.write_at(layer), place)
    features = [_interventions(wanted, positions) for wanted in batch]
    return Run(edit=FeatureEdits(features), keep=False, added=added, hooks=hooks)


def _placing(mine: Mine) -> Callable[[Tensor], Tensor]:
    """Put values in their places."""

    def place(stream: Float[Tensor, "rows positions d_model"]) -> Tensor:
        out = stream.clone()
        for row, site, value in mine:
            at = slice(None) if site.position is None else site.position
            out[row, at] = value
        return out

    return place


def _output(place: Callable[[Tensor], Tensor], positions: int) -> Callable[..., Any]:
    def hook(inputs: Any, output: Any) -> Any:
        tensor = first_of(output)
        return replaced(output, place(tensor.reshape(-1, positions, tensor.shape[-1])))

    return hook


def _heads(block: Block, heads: Mine) -> Callable[..., Any]:
    """Put in the change of heads' parts."""

    def hook(inputs: Any, output: Any) -> Any:
        out = first_of(output).clone()
        now = heads_of(block, inputs, output)
        for row, site, value in heads:
            at = slice(None) if site.position is None else site.position
            out[row, at] += (value - now[row, at, site.index]) @ block.output[site.index]
        return replaced_first(output, out)

    return hook


def _interventions(wanted: Wanted, positions: int) -> list[Placed]:
    """Features as interventions, position by position."""
    placed: list[Placed] = []
    for site, value in wanted:
        if site.kind is not Kind.FEATURE:
            continue
        assert site.index is not None
        at = range(positions) if site.position is None else [site.position]
        for position, activation in zip(at, value.reshape(-1).tolist(), strict=True):
            one = Intervention(
                layer=site.layer, position=position, feature=site.index, value=activation
            )
            placed.append((one, [position]))
    return placed
