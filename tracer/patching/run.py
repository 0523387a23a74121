"""Patch many sites, each in its own row of a batch, exactly or to first order."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.patching.exact import patched
from tracer.patching.first_order import estimated
from tracer.patching.metrics import Metric
from tracer.patching.patch_sites import Kind, PatchSite, Values, sites_of, values_of
from tracer.patching.table import table_of

Prompt = str | Sequence[int]


class Method(StrEnum):
    """How `patch` measures."""

    EXACT = "exact"
    """One row of a forward pass for every site."""
    ATTRIBUTION = "attribution"
    """One forward and one backward pass for all: gradient times difference."""


class Baseline(StrEnum):
    """What `ablate` puts in place of a value."""

    ZERO = "zero"
    MEAN = "mean"
    """The mean over given prompts and their positions but the first."""
    RESAMPLE = "resample"
    """The value in another prompt of the same length, the mean over several draws."""


@one_call()
def patch(
    model: ReplacementModel,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    *,
    sites: Kind | str | Sequence[PatchSite] = Kind.RESIDUAL,
    method: Method | str = Method.EXACT,
) -> pa.Table:
    """Run the corrupted prompt with the clean value at one site after the other.

    Args:
        model: the model.
        clean: where values come from.
        corrupted: where they are put in; as many tokens.
        metric: of the next token's logits.
        sites: a kind, for all of its sites position by position, or a list.
        method: "exact", or "attribution" (Nanda 2023: linear in each site alone).

    Returns:
        One row a site: kind, layer, position, index, before (corrupted), after, effect, and
        recovered (effect as a share of clean less corrupted; null where these are equal).

    Raises:
        TraceError: prompts of different lengths, or an unknown kind, method or site.
        ModelError: a prompt does not fit the model.
    """
    source, base = (values_of(model, model.tokenize(prompt)) for prompt in (clean, corrupted))
    if len(source.residual[0]) != len(base.residual[0]):
        raise TraceError(
            f"clean has {len(source.residual[0])} tokens and corrupted {len(base.residual[0])}; "
            "patching needs as many of each"
        )
    chosen = _chosen(model, sites, [source, base])
    tokens = model.tokenize(corrupted)
    wanted = [[(site, source.at(site))] for site in chosen]
    if _named(Method, method) is Method.EXACT:
        after = patched(model, tokens, wanted, metric)
    else:
        after = estimated(model, tokens, base, wanted, metric)
    return table_of(chosen, _value(metric, base), after, _value(metric, source))


@one_call()
def ablate(
    model: ReplacementModel,
    prompt: Prompt,
    metric: Metric,
    *,
    sites: Kind | str | Sequence[PatchSite] = Kind.FEATURE,
    using: Baseline | str = Baseline.ZERO,
    prompts: Sequence[Prompt] = (),
    seed: int | None = None,
) -> pa.Table:
    """Run a prompt with one site after the other at zero, at its mean, or resampled.

    Args:
        model: the model.
        prompt: to run.
        metric: of the next token's logits.
        sites: a kind, for all of its sites position by position, or a list.
        using: "zero", "mean" or "resample".
        prompts: what means are taken over, or what is resampled from.
        seed: take one of `prompts` at random for every site; None: the mean effect over all.

    Returns:
        One row a site, as `patch`; `recovered` is null.

    Raises:
        TraceError: prompts are missing or (to resample) of another length, or an unknown kind,
            baseline or site.
        ModelError: a prompt does not fit the model.
    """
    tokens = model.tokenize(prompt)
    base, how = values_of(model, tokens), _named(Baseline, using)
    others = [values_of(model, model.tokenize(other)) for other in prompts]
    chosen = _chosen(model, sites, [base])
    if how is not Baseline.ZERO and not others:
        raise TraceError(f"ablation {using!r} needs prompts; give at least one")
    if how is Baseline.RESAMPLE:
        after = _resampled(model, tokens, chosen, others, (metric, seed))
    else:
        wanted = [[(site, _filler(how, site, base, others))] for site in chosen]
        after = patched(model, tokens, wanted, metric)
    return table_of(chosen, _value(metric, base), after, None)


def _resampled(
    model: ReplacementModel,
    tokens: Sequence[int],
    sites: Sequence[PatchSite],
    others: Sequence[Values],
    how: tuple[Metric, int | None],
) -> Float[np.ndarray, " sites"]:
    """Values from one prompt drawn for each site, or the mean over all prompts."""
    metric, seed = how
    for other in others:
        if len(other.residual[0]) != len(tokens):
            raise TraceError(
                f"resampling: a prompt has {len(other.residual[0])} tokens, expected {len(tokens)}"
            )
    if seed is not None:
        drawn = np.random.default_rng(seed).integers(len(others), size=len(sites))
        wanted = [[(site, others[n].at(site))] for site, n in zip(sites, drawn, strict=True)]
        return patched(model, tokens, wanted, metric)
    rounds = [
        patched(model, tokens, [[(site, other.at(site))] for site in sites], metric)
        for other in others
    ]
    return np.mean(rounds, axis=0)


def _filler(how: Baseline, site: PatchSite, base: Values, others: Sequence[Values]) -> Tensor:
    """Zero, or the mean over all positions but the first of other prompts."""
    held = base.at(site)
    if how is Baseline.ZERO:
        return torch.zeros_like(held)
    everywhere = PatchSite(site.kind, site.layer, None, site.index)
    return torch.cat([other.at(everywhere)[1:] for other in others]).mean(0).expand_as(held)


def _chosen(
    model: ReplacementModel, sites: Kind | str | Sequence[PatchSite], runs: Sequence[Values]
) -> list[PatchSite]:
    if isinstance(sites, str):
        return sites_of(model, _named(Kind, sites), runs)
    for site in sites:
        try:
            runs[0].at(site)
        except IndexError as error:
            raise TraceError(f"{site} does not exist in this model and prompt") from error
    return list(sites)


def _named(kinds: Any, name: str) -> Any:
    try:
        return kinds(name)
    except ValueError as error:
        known = ", ".join(kinds)
        raise TraceError(f"{name!r} is unknown, expected one of {known}") from error


def _value(metric: Metric, values: Values) -> float:
    assert values.logits is not None
    return float(metric(values.logits[None])[0])
