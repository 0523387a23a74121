"""Search for inputs that drive a feature, a group or a direction: red-teaming by features.

1. A beam over the vocabulary: from nothing, or from a text that is given, texts grow by one token
   at a time; a gradient shortlists tokens for the new place, each is run, the best stay.
2. Swaps: each of the beam's texts proposes single tokens in other places, drawn from the shortlist
   of a gradient; all are run, the best stay.

What counts is what the model reads when it runs a text: gradients only propose. A silent feature
has no gradient, so texts are compared by its activation and, among equals, by its pre-activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from replacement_models.text.packing import marks
from tracer.errors import TraceError
from tracer.features.rows import padded
from tracer.features.store import FeatureStore
from tracer.monitoring.readings import read
from tracer.monitoring.swaps import Ids, highest, ordinary, shortlist, slopes
from tracer.monitoring.watches import Watch, maximum
from tracer.one_device import on_one_device

Progress = Callable[[int, int], None]
AT_ONCE = 64
"""Texts run together."""
PATIENCE = 6
"""Rounds of swaps without a better text after which the worst of the beam is drawn anew."""
Score = tuple[float, float]
"""Activation, and what would become one: the larger, the better."""


@dataclass(frozen=True)
class Found:
    """One text of the search, what stands in front of it left out."""

    tokens: Ids
    text: str
    activation: float
    """The largest over the text's tokens, of exactly these ids."""
    position: int
    """Where, counted with what the model wants in front."""
    as_text: float | None
    """The same of the text as the model's tokenizer reads it: ids that were found need not be those
    that their text gives; None where there is no tokenizer."""


@dataclass(frozen=True)
class Driven:
    """What a search found."""

    name: str
    found: tuple[Found, ...]
    """The beam, the strongest first."""
    start: float
    """Activation of the text it began with."""
    corpus: float | None
    """The largest activation that the store saw; of a group the sum of its members' largest, which
    need not have come together; None without a store, and of a direction."""
    evaluated: int
    """Texts run, those for gradients among them."""
    history: tuple[tuple[int, float], ...]
    """Texts run when a better one came, and its activation."""

    @property
    def ratio(self) -> float | None:
        """The best activation over the corpus' largest."""
        return self.found[0].activation / self.corpus if self.corpus else None


@one_call()
def drive(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    watch: Watch | tuple[int, int],
    *,
    store: FeatureStore | None = None,
    start: str | Sequence[int] | None = None,
    length: int = 8,
    beam: int = 4,
    candidates: int = 64,
    budget: int = 4000,
    skip_positions: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Driven:
    """Search for texts that drive a feature, a group or a direction.

    The same arguments on the same machine find the same texts.

    Args:
        model: the model.
        watch: what to drive; (layer, feature) is a feature.
        store: to compare with the largest activation of a corpus.
        start: text, or ids taken as they stand, that the search begins with and changes; None:
            nothing.
        length: tokens of what is found, without what the model wants in front.
        beam: texts kept.
        candidates: texts that each of them proposes a round.
        budget: texts run at most.
        skip_positions: first positions that do not count; nor do special tokens.
        seed: of all draws.
        progress: called with texts run and the budget.

    Returns:
        The best texts, their activations, and the corpus' largest.

    Raises:
        TraceError: the model has not what is to be driven, or stands on several devices; a number
            is out of range; or the store is another dictionary's.
        ModelError: the start does not fit the model.
    """
    on_one_device(model, "drive")
    wanted = watch if isinstance(watch, Watch) else Watch.feature(*watch)
    wanted.check(model)
    low = min(length, beam, candidates)
    if low < 1 or budget < beam * (candidates + 1):
        raise TraceError(
            f"drive: length {length}, beam {beam}, candidates {candidates}, budget {budget}; "
            f"expected 1 or more each, and a budget of a round, {beam * (candidates + 1)}, or more"
        )
    if store is not None and wanted.features:
        store.check(model)
    front, begun = _begin(model, start, length)
    search = _Search(model, wanted, front, skip_positions, budget, seed, progress)
    first = search.score([begun])[0] if begun else (0.0, 0.0)
    found = search.grow([(first, begun)], length, beam, candidates)
    found = search.swap(found, beam, candidates)
    return Driven(
        name=wanted.name,
        found=tuple(_described(search, score, ids) for score, ids in found),
        start=first[0],
        corpus=None if store is None else maximum(wanted, store),
        evaluated=search.run,
        history=tuple(search.history),
    )


def _begin(
    model: ReplacementModel, start: str | Sequence[int] | None, length: int
) -> tuple[Ids, Ids]:
    """What stands in front of every text, and the text to begin with."""
    front: Ids = tuple(marks(model)[0])
    if start is None:
        begun: Ids = ()
    else:
        ids = tuple(model.tokenize(start))
        begun = ids[len(front) :] if front and ids[: len(front)] == front else ids
    room, most = max(length, len(begun)), model.host.context
    if most is not None and len(front) + room > most:
        raise TraceError(
            f"drive: {room} tokens, but the model reads at most {most - len(front)} of a text"
        )
    return front, begun


@dataclass(eq=False)
class _Search:
    """The state of one search: what may still be run, and what the best was."""

    model: ReplacementModel
    watch: Watch
    front: Ids
    skip_positions: int
    budget: int
    seed: int
    progress: Progress | None
    run: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    known: dict[Ids, Score] = field(default_factory=dict)
    """Texts of this search that have been run."""

    def __post_init__(self) -> None:
        self.draws = torch.Generator().manual_seed(self.seed)
        self.allowed = ordinary(self.model)
        self.tokens = self.allowed.nonzero()[:, 0]

    @property
    def left(self) -> int:
        """Texts that may still be run."""
        return self.budget - self.run

    @torch.no_grad()
    def score(self, texts: Sequence[Ids]) -> list[Score]:
        """Run texts of one length; those that were run before are not run again."""
        new = [one for one in dict.fromkeys(texts) if one not in self.known]
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            rows = padded([self.front + one for one in some])
            found = read(self.model, rows, [self.watch], self.skip_positions)
            values, reach = highest(found)
            scores = zip(values.tolist(), reach.tolist(), strict=True)
            self.known.update(zip(some, scores, strict=True))
            self._count(len(some))
        for one in new:
            self._note(self.known[one][0])
        return [self.known[one] for one in texts]

    def grow(
        self, beam: list[tuple[Score, Ids]], length: int, width: int, candidates: int
    ) -> list[tuple[Score, Ids]]:
        """Texts of one more token each until they are long enough or the budget is half used."""
        while len(beam[0][1]) < length:
            proposed: list[Ids] = []
            for _, ids in beam:
                longer = (*ids, *self.drawn(1))
                proposed.append(longer)
                if self.run < self.budget // 2:
                    listed = self.listed(longer, [len(ids)], candidates)[0]
                    proposed += [(*ids, token) for token in listed]
            beam = self.best(proposed[: max(1, self.left)], width)
        return beam

    def swap(
        self, beam: list[tuple[Score, Ids]], width: int, candidates: int
    ) -> list[tuple[Score, Ids]]:
        """Swap single tokens until the budget is used."""
        idle, kept = 0, beam
        while self.left > len(beam):
            before = kept[0][0]
            proposed = [ids for _, ids in beam]
            for _, ids in beam:
                if self.left > len(proposed):
                    proposed += self.swapped(ids, candidates)
            beam = self.best(proposed[: len(beam) + self.left], width)
            kept = self.merged(kept, beam, width)
            idle = idle + 1 if kept[0][0] <= before else 0
            if idle >= PATIENCE and self.left > width:
                beam = [*beam[:1], *self.best([self.drawn(len(beam[0][1]))], 1)]
                idle = 0
        return kept

    def swapped(self, ids: Ids, candidates: int) -> list[Ids]:
        """Texts with one token of their own exchanged for one of the shortlist of its place."""
        each = max(1, 4 * candidates // len(ids))
        listed = self.listed(ids, range(len(ids)), each)
        places = torch.randint(len(ids), (candidates,), generator=self.draws).tolist()
        ranks = torch.randint(len(listed[0]), (candidates,), generator=self.draws).tolist()
        return [
            (*ids[:place], listed[place][rank], *ids[place + 1 :])
            for place, rank in zip(places, ranks, strict=True)
        ]

    def listed(self, ids: Ids, places: Sequence[int], each: int) -> list[list[int]]:
        """Tokens that a gradient proposes for some places of a text."""
        rows = [self.front + ids]
        gains = slopes(self.model, rows, self.watch, self.skip_positions)[0]
        self._count(1)
        free = [len(self.front) + place for place in places]
        return shortlist(gains, self.allowed, free, each).tolist()

    def best(self, texts: Sequence[Ids], width: int) -> list[tuple[Score, Ids]]:
        """The best of some texts, each once, ties by their tokens."""
        unique = list(dict.fromkeys(texts))
        scored = zip(self.score(unique), unique, strict=True)
        return sorted(scored, key=lambda one: (-one[0][0], -one[0][1], one[1]))[:width]

    def merged(
        self, kept: list[tuple[Score, Ids]], beam: list[tuple[Score, Ids]], width: int
    ) -> list[tuple[Score, Ids]]:
        """The best that were ever in the beam."""
        return self.best([ids for _, ids in (*kept, *beam)], width)

    def drawn(self, count: int) -> Ids:
        """Tokens at random."""
        at = torch.randint(len(self.tokens), (count,), generator=self.draws)
        return tuple(self.tokens[at].tolist())

    def _count(self, texts: int) -> None:
        self.run += texts
        if self.progress is not None:
            self.progress(min(self.run, self.budget), self.budget)

    def _note(self, activation: float) -> None:
        if not self.history or activation > self.history[-1][1]:
            self.history.append((self.run, activation))


@torch.no_grad()
def _described(search: _Search, score: Score, ids: Ids) -> Found:
    model, watch = search.model, search.watch
    found = read(model, padded([search.front + ids]), [watch], search.skip_positions)
    values = found.values[0, 0].masked_fill(~found.counts[0], float("-inf"))
    if model.tokenizer is None:
        return Found(ids, " ".join(map(str, ids)), score[0], int(values.argmax()), None)
    text: str = model.tokenizer.decode(list(ids))
    return Found(ids, text, score[0], int(values.argmax()), _as_text(search, text))


def _as_text(search: _Search, text: str) -> float | None:
    """What the text gives when the tokenizer reads it; None where the model cannot read it."""
    model, most = search.model, search.model.host.context
    ids = list(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    if not ids or (most is not None and len(search.front) + len(ids) > most):
        return None
    found = read(model, padded([[*search.front, *ids]]), [search.watch], search.skip_positions)
    values: Tensor = highest(found)[0]
    return float(values[0])
