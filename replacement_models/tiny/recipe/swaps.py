"""Prove the middle step: swap a state's features for another state's and see the answer follow.

Features are written additively, through all their decoders, into the MLP outputs of the unmodified
model; nothing is frozen. Which features stand for a state is read off cities the caller names, and
no function here looks at a logit before the final answer is counted.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.hooks import forward_hooks
from replacement_models.tiny.recipe.corpus import Source
from replacement_models.tiny.recipe.prompt import CITY_AT, PROMPT
from replacement_models.tiny.recipe.taps import mlps, recorded_mlps
from replacement_models.transcoder import Transcoder

LAST = CITY_AT + 1
"""Position of the last token of `prompt.PROMPT`."""
SITES = (CITY_AT, LAST)


@dataclass(frozen=True)
class Strength:
    """How strongly to swap.

    Attributes:
        purity: features count as a state's from this share of their activation upwards.
        away: the source's features become this many times their value.
        towards: the target's become this many times their mean over the target's cities.
    """

    purity: float
    away: float
    towards: float


CHOSEN = Strength(purity=0.1, away=0.0, towards=2.0)
"""The strength that the reported swaps use: what `choose_strength` finds."""
GRID = tuple(
    Strength(purity, away, towards)
    for purity in (0.05, 0.1, 0.2)
    for away in (0.0, -1.0)
    for towards in (1.0, 2.0, 2.5, 3.0, 4.0)
)
GOALS = {(1, 1): 0.95, (1, 0): 0.8}
"""Share of pairs that must flip, by sites."""
CHOICE_PAIRS = 400


@dataclass(frozen=True)
class Profile:
    """What features do on the cities of each state.

    Attributes:
        purity: share of a feature's activation on each state (states, sites, layers, F).
        mean: mean activation on each state's cities, likewise.
        coverage: share of each state's cities it fires on, likewise.
    """

    purity: Tensor
    mean: Tensor
    coverage: Tensor

    def members(self, state: int, purity: float) -> Tensor:
        """Mask of the features that stand for a state (sites, layers, F)."""
        return (self.purity[state] >= purity) & (self.coverage[state] >= 0.25)


class Laboratory:
    """One model and one transcoder, asked about `prompt.PROMPT` and nothing else."""

    def __init__(
        self,
        model: GPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerFast,
        transcoder: Transcoder,
        source: Source,
    ) -> None:
        self.model, self.tokenizer, self.transcoder = model, tokenizer, transcoder
        self.facts, self.state_of = source.facts["states"], source.cities.state_of
        self.states = sorted(self.facts)
        self.decoders = [self._rows(layer) for layer in range(len(transcoder.layers))]

    def _rows(self, layer: int) -> Tensor:
        """Decoder rows of a layer; zeros stand where a wider layer has more features."""
        features = len(self.transcoder.layers[layer].W_enc)
        rows = self.transcoder.decoder_rows(layer, torch.arange(features)).float()
        return nn.functional.pad(rows, (0, 0, 0, 0, 0, self.transcoder.features - features))

    def prompts(self, cities: Iterable[str]) -> Tensor:
        """Token ids of the prompt about each city (cities, positions)."""
        return torch.tensor([self.tokenizer.encode(PROMPT.format(city=c)) for c in cities])

    def capital_tokens(self) -> Tensor:
        """First token of each state's capital, in the order of `states`."""
        capitals = (self.facts[state]["capital"] for state in self.states)
        ids = [self.tokenizer.encode(name, add_special_tokens=False)[0] for name in capitals]
        return torch.tensor(ids)

    @torch.no_grad()
    def activations(self, cities: Sequence[str]) -> Tensor:
        """Activations at the city and the last position (cities, sites, layers, F)."""
        with recorded_mlps(self.model) as (inputs, _):
            self.model(self.prompts(cities))
        found = torch.zeros(len(cities), len(SITES), len(inputs), self.transcoder.features)
        for layer, x in enumerate(inputs):
            active = self.transcoder.encode(layer, x[:, list(SITES)])[1]
            found[:, :, layer, : active.shape[-1]] = active
        return found

    def profile(self, cities: Sequence[str]) -> Profile:
        """Measure every feature on `cities`, which must include some of every state."""
        active = self.activations(cities)
        label = torch.tensor([self.states.index(self.state_of[city]) for city in cities])
        member = nn.functional.one_hot(label, len(self.states)).T.float()
        counts = member.sum(1)[:, None, None, None]
        mean = torch.einsum("sc,cplf->splf", member, active) / counts
        fires = torch.einsum("sc,cplf->splf", member, (active > 0).float()) / counts
        return Profile(mean / mean.sum(0).clamp_min(1e-9), mean, fires)

    def written(self, change: Tensor) -> Tensor:
        """Turn changes of activations (..., F) into what they add to MLP outputs (..., D).

        Both have the leading axes N, sites, layers.
        """
        total = torch.zeros(*change.shape[:3], self.transcoder.d_model)
        for layer, decoder in enumerate(self.decoders):
            targets = self.transcoder.targets(layer)
            rows = torch.einsum("npf,ftd->nptd", change[:, :, layer], decoder)
            total[:, :, list(targets)] += rows
        return total

    @contextmanager
    def adding(self, writes: Tensor) -> Iterator[None]:
        """Add `writes` (N, sites, layers, D) to the MLP outputs at the two sites."""

        def hook(layer: int) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
            def add(_: tuple[Tensor, ...], output: Tensor) -> Tensor:
                changed = output.clone()
                changed[:, list(SITES)] += writes[:, :, layer]
                return changed

            return add

        with forward_hooks((mlp, hook(layer)) for layer, mlp in enumerate(mlps(self.model))):
            yield

    @torch.no_grad()
    def answers(self, cities: Sequence[str], writes: Tensor) -> Tensor:
        """Most likely next token of each prompt under its writes (N)."""
        with self.adding(writes):
            return self.model(self.prompts(cities)).logits[:, -1].argmax(-1)


@dataclass(frozen=True)
class Swap:
    """One experiment: cities, each with another state, and what to write where.

    Attributes:
        pairs: (city, target state).
        sites: which of `SITES` take part, as 0/1 weights.
        strength: how strongly.
    """

    pairs: Sequence[tuple[str, int]]
    sites: tuple[int, int]
    strength: Strength


def ordered_pairs(lab: Laboratory, cities: Sequence[str]) -> list[tuple[str, int]]:
    """Pair one city of every state with every other state."""
    chosen = {lab.state_of[city]: city for city in reversed(cities)}
    return [
        (chosen[source], target)
        for source in lab.states
        for target in range(len(lab.states))
        if lab.states[target] != source
    ]


def every_pair(lab: Laboratory, cities: Sequence[str]) -> list[tuple[str, int]]:
    """Pair every city with every state but its own."""
    return [
        (city, target)
        for city in cities
        for target, state in enumerate(lab.states)
        if state != lab.state_of[city]
    ]


def changes(lab: Laboratory, profile: Profile, swap: Swap) -> Tensor:
    """Changes of activations that carry out a swap (pairs, sites, layers, F)."""
    cities = sorted({city for city, _ in swap.pairs})
    recorded = dict(zip(cities, lab.activations(cities), strict=True))
    strength, rows = swap.strength, []
    members = [profile.members(state, strength.purity) for state in range(len(lab.states))]
    for city, target in swap.pairs:
        active = recorded[city]
        source = lab.states.index(lab.state_of[city])
        wanted = torch.where(members[source], strength.away * active, active)
        wanted = torch.where(members[target], strength.towards * profile.mean[target], wanted)
        rows.append(wanted - active)
    return torch.stack(rows) * torch.tensor(swap.sites)[:, None, None]


def scrambled(lab: Laboratory, change: Tensor, profile: Profile, seed: int = 0) -> Tensor:
    """Move every change to a random live feature of its layer and site, at equal write norm."""
    generator = torch.Generator().manual_seed(seed)
    norms = torch.stack([decoder.flatten(1).norm(dim=1) for decoder in lab.decoders])
    alive = profile.mean.sum(0) > 0
    moved = torch.zeros_like(change)
    for row, site, layer, feature in change.nonzero().tolist():
        pool = alive[site, layer].nonzero()[:, 0]
        other = int(pool[torch.randint(len(pool), (1,), generator=generator)])
        scale = norms[layer, feature] / norms[layer, other].clamp_min(1e-9)
        moved[row, site, layer, other] += change[row, site, layer, feature] * scale
    return moved


@dataclass(frozen=True)
class Outcome:
    """Shares of pairs whose answer became the target's capital, or stayed the source's."""

    flipped: float
    kept: float
    pairs: int


def outcome(lab: Laboratory, pairs: Sequence[tuple[str, int]], change: Tensor) -> Outcome:
    """Carry out changes and count the answers."""
    capitals = lab.capital_tokens()
    found: list[Tensor] = []
    for start in range(0, len(pairs), 256):
        cities = [city for city, _ in pairs[start : start + 256]]
        found.append(lab.answers(cities, lab.written(change[start : start + 256])))
    best = torch.cat(found)
    target = capitals[torch.tensor([state for _, state in pairs])]
    source = capitals[torch.tensor([lab.states.index(lab.state_of[city]) for city, _ in pairs])]
    flipped, kept = (best == target).float().mean(), (best == source).float().mean()
    return Outcome(float(flipped), float(kept), len(pairs))


def run(lab: Laboratory, profile: Profile, swap: Swap) -> Outcome:
    """Carry out a swap and count the answers."""
    return outcome(lab, swap.pairs, changes(lab, profile, swap))


def choose_strength(lab: Laboratory, source: Source, seed: int = 0) -> tuple[Strength, float]:
    """Pick the strength that clears `GOALS` by the widest margin on pairs of choice cities.

    Returns:
        The best of `GRID`, and by how much it clears the goal it clears least.
    """
    profile = lab.profile(source.cities.seen)
    pairs = random.Random(seed).sample(ordered_pairs(lab, source.cities.choice), CHOICE_PAIRS)
    margins = {
        strength: min(
            run(lab, profile, Swap(pairs, sites, strength)).flipped - goal
            for sites, goal in GOALS.items()
        )
        for strength in GRID
    }
    best = max(margins, key=lambda strength: margins[strength])
    return best, margins[best]


def random_control(lab: Laboratory, profile: Profile, swap: Swap) -> Outcome:
    """The same swap written through random features of equal write norm."""
    return outcome(lab, swap.pairs, scrambled(lab, changes(lab, profile, swap), profile))


def unrelated_control(lab: Laboratory, profile: Profile, swap: Swap, seed: int = 0) -> Outcome:
    """The same swap with the features of a third state in place of the target's."""
    rng = random.Random(seed)
    others = []
    for city, target in swap.pairs:
        source = lab.states.index(lab.state_of[city])
        pool = [state for state in range(len(lab.states)) if state not in (source, target)]
        others.append((city, rng.choice(pool)))
    change = changes(lab, profile, Swap(others, swap.sites, swap.strength))
    return outcome(lab, swap.pairs, change)


@dataclass(frozen=True)
class StateFeature:
    """The feature that best marks a state at one site, judged by the cities it fires on."""

    layer: int
    feature: int
    precision: float
    recall: float


def best_state_feature(
    lab: Laboratory, active: Tensor, cities: Sequence[str], state: str, site: int
) -> StateFeature:
    """Find the feature whose firing best separates a state's cities from all others (by F1).

    Args:
        lab: where the activations come from.
        active: activations on `cities` (cities, sites, layers, F).
        cities: every city, in that order.
        state: the state.
        site: 0 for the city's position, 1 for the last.
    """
    inside = torch.tensor([lab.state_of[city] == state for city in cities])
    fires = active[:, site] > 0
    hits = fires[inside].sum(0).float()
    precision = hits / fires.sum(0).clamp_min(1)
    recall = hits / inside.sum()
    score = 2 * precision * recall / (precision + recall).clamp_min(1e-9)
    layer, feature = divmod(int(score.argmax()), score.shape[1])
    return StateFeature(
        layer, feature, float(precision[layer, feature]), float(recall[layer, feature])
    )
