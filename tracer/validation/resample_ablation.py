"""Resample ablation: take what should not matter from other prompts, and see what survives.

Everything named is replaced at once, and nothing else is: what is said to matter keeps the values
of the prompt itself, and so do errors. Causal scrubbing (`scrubbing.py`) resamples those too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs import AttributionGraph
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.patching.exact import patched
from tracer.patching.metrics import Metric
from tracer.patching.patch_sites import Kind, PatchSite, sites_of, values_of
from tracer.validation.circuit import circuit_of
from tracer.validation.spread import spread

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Resampling:
    """A claim that some sites may take their values from other prompts."""

    name: str
    resampled: tuple[PatchSite, ...]
    """What does not matter: features, heads, layers, positions."""
    prompts: tuple[Prompt, ...]
    """Where values may come from; as many tokens as the prompt in question."""

    def __post_init__(self) -> None:
        if not (self.resampled and self.prompts):
            raise TraceError(f"resampling {self.name!r} needs sites to resample and prompts")


@dataclass(frozen=True)
class Resampled:
    """What became of the metric."""

    name: str
    clean: float
    each: tuple[float, ...]
    """A draw each; in each all sites take their values from one prompt."""
    donors: float
    """Mean of the metric on the prompts themselves: where resampling everything would end."""

    @property
    def resampled(self) -> float:
        """Mean over draws."""
        return float(np.mean(self.each))

    @property
    def survives(self) -> float | None:
        """Share of the gap between donors and clean that is left; None without a gap."""
        return survival(self.clean, self.donors, self.resampled)

    def summary(self) -> dict[str, Any]:
        """For a graph's metadata."""
        return {
            "name": self.name,
            "clean": self.clean,
            "resampled": self.resampled,
            "donors": self.donors,
            "survives": self.survives,
            "spread": survivals(self.clean, self.donors, self.each),
        }


def survival(clean: float, donors: float, value: float) -> float | None:
    """What share of the gap between donors and clean a value leaves; None without a gap."""
    gap = clean - donors
    return None if gap == 0 else (value - donors) / gap


def survivals(clean: float, donors: float, each: Sequence[float]) -> dict[str, float | int | None]:
    """The spread of `survival` over draws."""
    shares = [survival(clean, donors, value) for value in each]
    return spread([share for share in shares if share is not None])


@one_call()
def resample_ablation(
    model: ReplacementModel,
    prompt: Prompt,
    resampling: Resampling,
    metric: Metric,
    draws: int | None = None,
    seed: int = 0,
) -> Resampled:
    """Run a prompt with everything a resampling names taken from another prompt at once.

    Args:
        model: the model.
        prompt: to run.
        resampling: what is taken from where.
        metric: of the next token's logits.
        draws: take so many of the resampling's prompts at random; None: each of them once.
        seed: of the draws.

    Raises:
        TraceError: a prompt has another number of tokens.
        ModelError: a prompt does not fit the model.

    Source: Chan et al. 2022, "Causal Scrubbing", on ablating by resampling.
    """
    tokens = model.tokenize(prompt)
    donors = [values_of(model, model.tokenize(other)) for other in resampling.prompts]
    for donor in donors:
        if len(donor.residual[0]) != len(tokens):
            raise TraceError(
                f"resampling {resampling.name!r}: a prompt has {len(donor.residual[0])} tokens, "
                f"expected {len(tokens)}"
            )
    chosen = list(range(len(donors)))
    if draws is not None:
        chosen = np.random.default_rng(seed).integers(len(donors), size=draws).tolist()
    rows = [[(site, donors[n].at(site)) for site in resampling.resampled] for n in chosen]
    clean = float(metric(model.record(tokens).logits[-1:])[0])
    ends = [float(metric(donors[n].logits[None])[0]) for n in chosen]  # type: ignore[index]
    each = tuple(patched(model, tokens, rows, metric).tolist())
    return Resampled(resampling.name, clean, each, float(np.mean(ends)))


@one_call()
def outside(
    model: ReplacementModel,
    graph: AttributionGraph,
    prompts: Sequence[Prompt],
    name: str = "features outside the circuit",
) -> Resampling:
    """What a pruned graph says does not matter: all features but its own may be resampled.

    Features that fire in any of the prompts count, not only those that fire in the graph's own;
    positions the graph skipped keep their features.

    Raises:
        TraceError: the prompts are not as long as the graph's.
    """
    about, kept = graph.metadata, circuit_of(graph).features
    own = about["token_ids"][: about["position"] + 1]
    runs = [values_of(model, model.tokenize(prompt)) for prompt in (own, *prompts)]
    if len({len(run.residual[0]) for run in runs}) > 1:
        raise TraceError(f"resampling {name!r}: prompts must have {len(own)} tokens, as the graph")
    skipped = about["settings"]["skip_positions"]
    sites = [
        site
        for site in sites_of(model, Kind.FEATURE, runs)
        if (site.layer, site.position, site.index) not in kept and (site.position or 0) >= skipped
    ]
    return Resampling(name, tuple(sites), tuple(prompts))
