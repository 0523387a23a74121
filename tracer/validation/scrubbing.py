"""Causal scrubbing: resample everything as far as a hypothesis says that it may be.

The computation is that of the original model written as features: a feature reads the tokens, what
features below it write, and the errors, through attention and norms that are part of its function.
A hypothesis names groups of features that matter, what each stands for, and which groups each
reads. The algorithm is Chan et al.'s: to find a group's value for a reference prompt, every group
it reads is found anew for a prompt of its own, drawn from those that agree with the reference on
what that group stands for, down to groups that read the prompt itself; all else the group reads,
tokens, other features and errors, comes from one more prompt drawn at random. It is the treeified
form: a group that two others read is drawn once for each. The prompt that is explained gives
nothing but what its groups stand for: none of its activations is ever used.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from graphs import AttributionGraph
from replacement_models import Recording, ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.interventions.forward import Changes, Outcome, Run, run
from tracer.interventions.values import (
    Intervention,
    Supernode,
    check_feature,
    check_position,
    positions_in,
)
from tracer.patching.metrics import Metric
from tracer.validation.resample_ablation import survival, survivals

Prompt = str | Sequence[int]
DRAWS = 32


@dataclass(frozen=True)
class Claim:
    """A group of features that matters, and what it stands for."""

    group: Supernode
    value: Callable[[Any], Hashable]
    """From a prompt, as it was given, to what the group says of it; prompts of one value may be
    exchanged. A table will do: `{prompt: value, ...}.__getitem__`."""
    reads: tuple[str, ...] = ()
    """Names of the groups it reads, named before it; none: it reads the prompt itself."""


@dataclass(frozen=True)
class Hypothesis:
    """What computes the answer, and from what."""

    name: str
    claims: tuple[Claim, ...]
    """From the prompt up: a claim reads those before it."""
    answer: tuple[str, ...]
    """Names of the groups that the next token's logits read."""
    prompts: tuple[Prompt, ...]
    """Where values come from; as many tokens as the prompt in question, some of which agree with it
    and some of which do not."""

    def __post_init__(self) -> None:
        if not (self.claims and self.answer and self.prompts):
            raise TraceError(
                f"hypothesis {self.name!r} needs claims, what the answer reads, prompts"
            )
        known: set[str] = set()
        for claim in self.claims:
            self._check(claim.group.name, claim.reads, known)
            if claim.group.name in known:
                raise TraceError(f"hypothesis {self.name!r} names {claim.group.name!r} twice")
            known.add(claim.group.name)
        self._check("the answer", self.answer, known)

    def _check(self, name: str, reads: Sequence[str], known: set[str]) -> None:
        for read in reads:
            if read not in known:
                raise TraceError(
                    f"hypothesis {self.name!r}: {name!r} reads {read!r}, expected one of the "
                    f"groups before it: {', '.join(map(repr, sorted(known))) or 'none'}"
                )


@dataclass(frozen=True)
class Scrubbed:
    """What became of the metric, and of a hypothesis that should fail."""

    name: str
    clean: float
    each: tuple[float, ...]
    """A draw each."""
    control: tuple[float, ...]
    """The same hypothesis told that the prompt stands for what another one does, a draw each; empty
    where all prompts agree, so that nothing could fail."""
    donors: float
    """Mean of the metric on the prompts themselves: where scrubbing everything would end."""

    @property
    def survives(self) -> float | None:
        """Mean share of the gap between donors and clean that is left; None without a gap."""
        return survival(self.clean, self.donors, float(np.mean(self.each)))

    @property
    def control_survives(self) -> float | None:
        """The same of the control: it should be little, or negative."""
        if not self.control:
            return None
        return survival(self.clean, self.donors, float(np.mean(self.control)))

    def summary(self) -> dict[str, Any]:
        """For a graph's metadata."""
        return {
            "name": self.name,
            "clean": self.clean,
            "scrubbed": float(np.mean(self.each)),
            "donors": self.donors,
            "survives": self.survives,
            "spread": survivals(self.clean, self.donors, self.each),
            "control": self.control_survives,
            "control_spread": survivals(self.clean, self.donors, self.control),
        }


@one_call()
@torch.no_grad()
def scrub(
    model: ReplacementModel,
    prompt: Prompt,
    hypothesis: Hypothesis,
    metric: Metric,
    draws: int = DRAWS,
    seed: int = 0,
) -> Scrubbed:
    """Scrub a prompt's computation, and do it again with a hypothesis that should fail.

    Chan et al. also average over prompts to explain; call this once for each.

    Args:
        model: the model.
        prompt: to explain; only its values under the hypothesis are used, and its clean metric.
        hypothesis: what matters, and what for.
        metric: of the next token's logits before the cap.
        draws: how often all prompts are drawn.
        seed: of the draws.

    Raises:
        TraceError: a prompt has another number of tokens, a feature does not exist, or no prompt
            agrees with the one to explain on a group.
        ModelError: a prompt does not fit the model.

    Source: Chan et al. 2022, "Causal Scrubbing: a method for rigorously testing interpretability
    hypotheses", section on the algorithm.
    """
    scrubber = _Scrubber(model, prompt, hypothesis, np.random.default_rng(seed))
    scrubber.check()
    own = np.full(draws, scrubber.own)
    others = scrubber.disagreeing()
    shown = scrubber.answered(own)
    control = scrubber.answered(scrubber.random.choice(others, draws)) if len(others) else None
    ends = torch.stack([one.logits_before_cap[-1] for one in scrubber.recordings])
    logits = model.record(model.tokenize(prompt)).logits_before_cap[-1:]
    return Scrubbed(
        name=hypothesis.name,
        clean=float(metric(logits)[0]),
        each=tuple(metric(shown).tolist()),
        control=() if control is None else tuple(metric(control).tolist()),
        donors=float(metric(ends).mean()),
    )


@dataclass(frozen=True, eq=False)
class _Scrubber:
    """One hypothesis about one prompt, and what is drawn."""

    model: ReplacementModel
    prompt: Prompt
    hypothesis: Hypothesis
    random: np.random.Generator

    @cached_property
    def tokens(self) -> Int[Tensor, "prompts positions"]:
        """Of the prompts that values come from."""
        listed = [list(self.model.tokenize(one)) for one in self.hypothesis.prompts]
        count = len(self.model.tokenize(self.prompt))
        wrong = [len(one) for one in listed if len(one) != count]
        if wrong:
            raise TraceError(
                f"hypothesis {self.hypothesis.name!r}: a prompt has {wrong[0]} tokens, expected "
                f"{count}"
            )
        return torch.tensor(listed, device=self.model.device)

    @cached_property
    def recordings(self) -> list[Recording]:
        """Of the same prompts."""
        return [self.model.record(one) for one in self.tokens.tolist()]

    @cached_property
    def claims(self) -> dict[str, Claim]:
        """By the group's name."""
        return {claim.group.name: claim for claim in self.hypothesis.claims}

    @property
    def own(self) -> int:
        """The number of the prompt to explain, behind all others."""
        return len(self.hypothesis.prompts)

    @cached_property
    def values(self) -> dict[str, list[Hashable]]:
        """What each group says of every prompt, that to explain last."""
        prompts = (*self.hypothesis.prompts, self.prompt)
        return {
            name: [one.value(prompt) for prompt in prompts] for name, one in self.claims.items()
        }

    def check(self) -> None:
        """Refuse what cannot be drawn or does not exist."""
        count = self.tokens.shape[1]
        for name, claim in self.claims.items():
            for layer, position, feature in claim.group.features:
                one = Intervention(layer=layer, position=position, feature=feature, value=0.0)
                check_feature(self.model, one)
                check_position(position, count, count)
            if not len(self.agreeing(name, self.own)):
                raise TraceError(
                    f"hypothesis {self.hypothesis.name!r}: no prompt agrees with the one to "
                    f"explain on {name!r}, which says {self.values[name][self.own]!r}; add one"
                )

    def agreeing(self, name: str, reference: int) -> Int[np.ndarray, " some"]:
        """Prompts of which a group says what it says of the reference."""
        said = self.values[name]
        found = [n for n in range(self.own) if said[n] == said[reference]]
        return np.array(found, dtype=np.int64)

    def disagreeing(self) -> Int[np.ndarray, " some"]:
        """Prompts of which some group does not say what it says of the one to explain."""
        found = [
            n
            for n in range(self.own)
            if any(said[n] != said[self.own] for said in self.values.values())
        ]
        return np.array(found, dtype=np.int64)

    def answered(self, references: Int[np.ndarray, " draws"]) -> Float[Tensor, "draws vocabulary"]:
        """Logits before the cap of the scrubbed model, a row for each reference."""
        return self._pass(self.hypothesis.answer, references, None).logits_before_cap[:, -1]

    def _group(
        self, name: str, references: Int[np.ndarray, " draws"]
    ) -> list[Float[Tensor, " draws"]]:
        """A group's activations, found for prompts that agree with the references on it."""
        claim = self.claims[name]
        chosen = np.array([self.random.choice(self.agreeing(name, n)) for n in references])
        places = self.places(claim)
        if not claim.reads:
            return [self.recorded(layer)[chosen, at, feature] for layer, at, feature in places]
        active = self._pass(claim.reads, chosen, claim).activations
        return [active[layer][:, at, feature] for layer, at, feature in places]

    def _pass(
        self, reads: Sequence[str], references: Int[np.ndarray, " draws"], into: Claim | None
    ) -> Outcome:
        """Random prompts with the groups that are read put in, each found anew."""
        given: dict[tuple[int, int, int], Tensor] = {}
        for name in reads:
            found = zip(self.places(self.claims[name]), self._group(name, references), strict=True)
            given |= dict(found)
        drawn = self.random.integers(self.own, size=len(references))
        own = frozenset(self.places(into)) if into is not None else frozenset()
        edit = _Scrub(self, drawn, given, own)
        return run(self.model, self.tokens[drawn], Run(edit=edit))

    def places(self, claim: Claim) -> list[tuple[int, int, int]]:
        """(layer, position, feature) of every member at every position it names."""
        count = self.tokens.shape[1]
        return [
            (layer, at, feature)
            for layer, position, feature in claim.group.features
            for at in positions_in(position, count, 0, count)
        ]

    def recorded(self, layer: int) -> Float[Tensor, "prompts positions features"]:
        """Activations of one layer in every prompt."""
        inputs = torch.stack([one.inputs[layer] for one in self.recordings])
        return self.model.transcoder.encode(layer, inputs)[1]


@dataclass(frozen=True, eq=False)
class _Scrub:
    """The edit: MLP outputs as in the random prompts, but for what some features write."""

    scrubber: _Scrubber
    drawn: Int[np.ndarray, " draws"]
    """The random prompt of each row."""
    given: dict[tuple[int, int, int], Float[Tensor, " draws"]]
    """Activations of the groups that are read."""
    own: frozenset[tuple[int, int, int]]
    """Features of the group that reads: they answer as they will, also to one another."""

    def reads(self, layer: int) -> bool:
        """Every layer: the random prompts' MLP outputs are put in everywhere."""
        return True

    def changes(
        self, layer: int, active: Float[Tensor, "draws positions features"]
    ) -> Changes | None:
        """Groups that are read to what was found for them, less what the random prompts have."""
        mine = sorted(one for one in {*self.given, *self.own} if one[0] == layer)
        if not mine:
            return None
        features = sorted({feature for _, _, feature in mine})
        recorded = self.scrubber.recorded(layer)[self.drawn]
        amount = active.new_zeros(*active.shape[:2], len(features))
        for place in mine:
            _, at, feature = place
            new = self.given[place] if place in self.given else active[:, at, feature]
            amount[:, at, features.index(feature)] = new - recorded[:, at, feature]
        return torch.tensor(features, device=active.device), amount

    def output(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """The random prompts' outputs; a linear skip still passes what changed in its input."""
        recordings = [self.scrubber.recordings[n] for n in self.drawn]
        held = torch.stack([one.outputs[layer] for one in recordings])
        skip = self.scrubber.model.transcoder.skip(layer)
        if skip is None:
            return held
        return held + (x - torch.stack([one.inputs[layer] for one in recordings])) @ skip


def along(
    graph: AttributionGraph, name: str, claims: Sequence[Claim], prompts: Sequence[Prompt]
) -> Hypothesis:
    """The hypothesis that groups read one another as a graph's edges say.

    Args:
        graph: pruned; an edge between two groups' members says that the later one reads the other,
            an edge to a logit that the answer does.
        name: of the hypothesis.
        claims: from the prompt up; what they read is taken from the graph.
        prompts: where values come from.

    Raises:
        TraceError: no edge leads from a group to a logit.
    """
    nodes = graph.nodes.to_pylist()
    group = {place: claim.group.name for claim in claims for place in claim.group.features}
    names = [
        "" if node["kind"] == "logit" else group.get(
            (node["layer"], node["position"], node["feature"])
        )
        for node in nodes
    ]  # fmt: skip
    ends = zip(graph.edges["source"].to_pylist(), graph.edges["target"].to_pylist(), strict=True)
    joined = {(names[source], names[target]) for source, target in ends}
    listed = []
    for at, claim in enumerate(claims):
        before = [one.group.name for one in claims[:at]]
        reads = tuple(one for one in before if (one, claim.group.name) in joined)
        listed.append(replace(claim, reads=reads))
    answer = tuple(one.group.name for one in claims if (one.group.name, "") in joined)
    return Hypothesis(name, tuple(listed), answer, tuple(prompts))
