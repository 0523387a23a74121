"""Causal scrubbing: resample what a hypothesis says does not matter, and see what survives."""

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

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Hypothesis:
    """A claim that some sites may take their values from other prompts."""

    name: str
    resampled: tuple[PatchSite, ...]
    """What does not matter: features, heads, layers, positions."""
    prompts: tuple[Prompt, ...]
    """Where values may come from; as many tokens as the prompt in question."""

    def __post_init__(self) -> None:
        if not (self.resampled and self.prompts):
            raise TraceError(f"hypothesis {self.name!r} needs sites to resample and prompts")


@dataclass(frozen=True)
class Scrubbed:
    """What became of the metric."""

    name: str
    clean: float
    scrubbed: float
    """Mean over draws; in each all sites take their values from one prompt."""
    donors: float
    """Mean of the metric on the prompts themselves: where scrubbing everything would end."""

    @property
    def survives(self) -> float | None:
        """Share of the gap between donors and clean that is left; None without a gap."""
        gap = self.clean - self.donors
        return None if gap == 0 else (self.scrubbed - self.donors) / gap

    def summary(self) -> dict[str, Any]:
        """For a graph's metadata."""
        return {**vars(self), "survives": self.survives}


@one_call()
def scrub(
    model: ReplacementModel,
    prompt: Prompt,
    hypothesis: Hypothesis,
    metric: Metric,
    draws: int | None = None,
    seed: int = 0,
) -> Scrubbed:
    """Run a prompt with everything a hypothesis names resampled at once.

    Args:
        model: the model.
        prompt: to run.
        hypothesis: what may be resampled, and from where.
        metric: of the next token's logits.
        draws: take so many of the hypothesis's prompts at random; None: each of them once.
        seed: of the draws.

    Raises:
        TraceError: a prompt has another number of tokens.
        ModelError: a prompt does not fit the model.

    Source: Chan et al. 2022, "Causal Scrubbing".
    """
    tokens = model.tokenize(prompt)
    donors = [values_of(model, model.tokenize(other)) for other in hypothesis.prompts]
    for donor in donors:
        if len(donor.residual[0]) != len(tokens):
            raise TraceError(
                f"hypothesis {hypothesis.name!r}: a prompt has {len(donor.residual[0])} tokens, "
                f"expected {len(tokens)}"
            )
    chosen = list(range(len(donors)))
    if draws is not None:
        chosen = np.random.default_rng(seed).integers(len(donors), size=draws).tolist()
    rows = [[(site, donors[n].at(site)) for site in hypothesis.resampled] for n in chosen]
    clean = float(metric(model.record(tokens).logits[-1:])[0])
    ends = [float(metric(donors[n].logits[None])[0]) for n in chosen]  # type: ignore[index]
    scrubbed = patched(model, tokens, rows, metric)
    return Scrubbed(hypothesis.name, clean, float(scrubbed.mean()), float(np.mean(ends)))


@one_call()
def outside(
    model: ReplacementModel,
    graph: AttributionGraph,
    prompts: Sequence[Prompt],
    name: str = "features outside the circuit",
) -> Hypothesis:
    """The hypothesis a pruned graph states: its features matter, all others may be resampled.

    Features that fire in any of the prompts count, not only those that fire in the graph's own;
    positions the graph skipped keep their features.

    Raises:
        TraceError: the prompts are not as long as the graph's.
    """
    about, kept = graph.metadata, circuit_of(graph).features
    own = about["token_ids"][: about["position"] + 1]
    runs = [values_of(model, model.tokenize(prompt)) for prompt in (own, *prompts)]
    if len({len(run.residual[0]) for run in runs}) > 1:
        raise TraceError(f"hypothesis {name!r}: prompts must have {len(own)} tokens, as the graph")
    skipped = about["settings"]["skip_positions"]
    sites = [
        site
        for site in sites_of(model, Kind.FEATURE, runs)
        if (site.layer, site.position, site.index) not in kept and (site.position or 0) >= skipped
    ]
    return Hypothesis(name, tuple(sites), tuple(prompts))
