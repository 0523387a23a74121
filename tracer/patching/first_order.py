"""Attribution patching: every patch to first order, from one forward and one backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import first_of
from replacement_models.recording import write_hooks
from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.freezing import replaced
from tracer.patching.exact import Wanted
from tracer.patching.metrics import Metric
from tracer.patching.patch_sites import Kind, PatchSite, Values

Gradients = dict[tuple[Kind, int], Float[Tensor, "positions d_model"]]
"""Of the metric, at the residual stream, the attention output and the MLP output of every layer."""


def estimated(
    model: ReplacementModel,
    tokens: Sequence[int],
    base: Values,
    rows: Sequence[Wanted],
    metric: Metric,
) -> Float[np.ndarray, " rows"]:
    """The metric plus gradient times change, summed over each row's sites."""
    before, gradients = _gradients(model, tokens, metric)
    found = []
    for wanted in rows:
        change = sum(
            _effect(model, gradients, site, value - base.at(site)) for site, value in wanted
        )
        found.append(before + change)
    return np.array(found)


def _gradients(
    model: ReplacementModel, tokens: Sequence[int], metric: Metric
) -> tuple[float, Gradients]:
    """The metric and its gradient at every place something can be added to."""
    shape = (1, len(tokens), model.host.d_model)
    places = (Kind.RESIDUAL, Kind.ATTENTION, Kind.MLP)
    zero = {
        (kind, layer): torch.zeros(
            shape, dtype=model.dtype, device=block.device, requires_grad=True
        )
        for kind in places
        for layer, block in enumerate(model.host.blocks)
    }
    hooks: list[tuple[nn.Module, Any]] = []
    for layer, block in enumerate(model.host.blocks):
        write = model.transcoder.write_at(layer)
        hooks += [
            (block.attention_end, _adding(zero[Kind.ATTENTION, layer])),
            *write_hooks(block, write, _adding(zero[Kind.MLP, layer])),
        ]
    added = [
        (block.module, _plus(zero[Kind.RESIDUAL, layer]))
        for layer, block in enumerate(model.host.blocks)
    ]
    ids = torch.tensor([list(tokens)], device=model.device)
    with torch.enable_grad():
        how = Run(edit=FeatureEdits([[]]), keep=False, hooks=hooks, added=added)
        value = metric(run(model, ids, how).logits[:, -1])[0]
        found = torch.autograd.grad(value, list(zero.values()))
    return float(value.detach()), {
        place: gradient[0] for place, gradient in zip(zero, found, strict=True)
    }


def _plus(zero: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream.to(zero.device) + zero


def _adding(zero: Tensor) -> Callable[..., Any]:
    return lambda _, output: replaced(output, first_of(output).reshape(zero.shape) + zero)


def _effect(
    model: ReplacementModel, gradients: Gradients, site: PatchSite, change: Tensor
) -> float:
    """Gradient times change at one site."""
    at = slice(None) if site.position is None else site.position
    if site.kind is Kind.HEAD:
        assert site.index is not None
        output = model.host.blocks[site.layer].output[site.index]
        return float((gradients[Kind.ATTENTION, site.layer][at] * (change @ output)).sum())
    if site.kind is not Kind.FEATURE:
        gradient = gradients[site.kind, site.layer][at]
        return float((gradient * change.to(gradient.device)).sum())
    feature = torch.tensor([site.index], device=model.device)
    rows = model.transcoder.decoder_rows(site.layer, feature)[0]
    total = 0.0
    for slot, target in enumerate(model.transcoder.targets(site.layer)):
        gradient = gradients[Kind.MLP, target][at].to(rows.device)
        total += float((gradient @ rows[slot] * change).sum())
    return total
