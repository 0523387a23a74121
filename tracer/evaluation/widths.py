"""A narrow and a wide dictionary of the same places: what splits, and what is absorbed.

Splitting (Bricken et al. 2023, "Towards Monosemanticity", section "Feature Splitting"): in a wider
dictionary one feature becomes several of like direction that share its contexts. Here a feature g
of the wide one is a child of f of the narrow one where

    cos(d_f, d_g) >= COSINE   and   P(f fires | g fires) >= INSIDE,

d decoder rows, and f has the highest cosine of all such. A feature with several children has split,
one with a single child stayed, one without is lost; a wide feature without a parent is new.

Absorption (Chanin et al. 2024, "A is for Absorption"): a feature that seems to stand for something
does not fire on some of it, where a more particular feature writes its direction for it. There a
linear probe says what should fire, and ablations who writes; here the narrow dictionary's feature f
stands for the probe, its children for the main latents, and projections for ablations. Where f
fires and no child does, f is absorbed at this token if one other active feature g

    has cos(d_f, d_g) >= LIKE, writes at least half of all that is written along d_f (negative
    writes left out), and at least half of what f itself writes there;

otherwise it is missed. Shares are of f's firings, f with a child and enough firings only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from replacement_models.replaced import ReplacedLayer, logits_of
from replacement_models.transcoder import Transcoder
from tracer.evaluation.subject import Subject
from tracer.evaluation.text import Text

COSINE, INSIDE = 0.4, 0.5
LIKE = 0.025
"""Least cosine of what absorbs, as in Chanin et al."""
HALF = 0.5
FEWEST = 10
"""Features that fire at fewer tokens are not judged."""
CANDIDATES = 4
"""Narrow features that are looked at as parents of a wide one, those of highest cosine."""
AT_ONCE = 2048
"""Firings looked at together."""
OUTCOMES = ("child", "absorbed", "missed")
"""What the wide dictionary does where a narrow feature fires."""
Told = Callable[[str, int, int], None]


@dataclass(eq=False)
class Family:
    """What is known of one layer's two dictionaries."""

    candidates: Int[Tensor, "wide candidates"]
    cosines: Float[Tensor, "wide candidates"]
    narrow_fired: Int[Tensor, " narrow"]
    wide_fired: Int[Tensor, " wide"]
    joint: Int[Tensor, "wide candidates"]
    """Tokens at which a wide feature and its candidate fire."""
    parent: Int[Tensor, " wide"] | None = None
    """Once it is known; -1 for none."""
    outcome: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))

    @classmethod
    def of(cls, narrow: Float[Tensor, "narrow d"], wide: Float[Tensor, "wide d"]) -> "Family":
        """Before any text, from unit decoder rows."""
        count = min(CANDIDATES, len(narrow))
        best = [(rows @ narrow.T).topk(count, dim=1) for rows in wide.split(AT_ONCE)]
        cosines, candidates = (torch.cat([one[part] for one in best]) for part in (0, 1))
        fired = [torch.zeros_like(rows[:, 0], dtype=torch.long) for rows in (narrow, wide)]
        return cls(candidates, cosines, fired[0], fired[1], torch.zeros_like(candidates))

    def count(
        self, narrow: Bool[Tensor, "tokens narrow"], wide: Bool[Tensor, "tokens wide"]
    ) -> None:
        """Add what fires at some tokens."""
        self.narrow_fired += narrow.sum(0, dtype=torch.int32)
        self.wide_fired += wide.sum(0, dtype=torch.int32)
        for at in range(self.candidates.shape[1]):
            both = narrow[:, self.candidates[:, at]] & wide
            self.joint[:, at] += both.sum(0, dtype=torch.int32)

    def settle(self) -> None:
        """Give every wide feature its parent."""
        inside = self.joint / self.wide_fired.clamp_min(1)[:, None]
        fits = (self.cosines >= COSINE) & (inside >= INSIDE)
        fits &= (self.wide_fired >= FEWEST)[:, None]
        best = self.cosines.masked_fill(~fits, -2.0).argmax(1, keepdim=True)
        found = self.candidates.gather(1, best)[:, 0]
        self.parent = found.masked_fill(~fits.any(1), -1)

    def children(self) -> Int[Tensor, " narrow"]:
        """Of each narrow feature."""
        assert self.parent is not None
        return torch.bincount(self.parent[self.parent >= 0], minlength=len(self.narrow_fired))

    @property
    def judged(self) -> Bool[Tensor, " narrow"]:
        """Narrow features that fire often enough."""
        return self.narrow_fired >= FEWEST


def compared(narrow: Subject, wide: Subject, text: Text, told: Told) -> dict[str, Any]:
    """Splitting and absorption between two dictionaries, over measured rows, in two passes.

    Args:
        narrow: of the same kind, layers and places as `wide`.
        wide: the wider one.
        text: measured rows are run twice.
        told: called before every batch.

    Returns:
        By layer, and means over layers, shares from 0 to 1.
    """
    families = {
        layer: Family.of(*(unit_rows(one.transcoder, layer) for one in (narrow, wide)))
        for layer in narrow.layers
    }

    def count(layer: int, seen: tuple[ReplacedLayer, ReplacedLayer]) -> None:
        families[layer].count(*(one.activations[one.counted] != 0 for one in seen))

    def judge(layer: int, seen: tuple[ReplacedLayer, ReplacedLayer]) -> None:
        active = [one.activations[one.counted] for one in seen]
        _judge(families[layer], (narrow.transcoder, wide.transcoder), layer, active)

    _both(narrow, wide, text, count, lambda done, total: told("Comparing widths", done, total))
    for family in families.values():
        family.settle()
    _both(narrow, wide, text, judge, lambda done, total: told("Finding absorption", done, total))
    found = [_figures(layer, family) for layer, family in families.items()]
    return {"narrow": narrow.name, "wide": wide.name, "layers": found, "mean": _mean(found)}


def unit_rows(transcoder: Transcoder, layer: int) -> Float[Tensor, "features d"]:
    """Decoder rows of norm 1, all layers a feature writes to one after another."""
    every = torch.arange(
        len(transcoder.layers[layer].W_enc), device=transcoder.layers[layer].b_dec.device
    )
    return normalize(transcoder.decoder_rows(layer, every).flatten(1).float(), dim=1)


def _both(
    narrow: Subject,
    wide: Subject,
    text: Text,
    pair: Callable[[int, tuple[ReplacedLayer, ReplacedLayer]], None],
    told: Callable[[int, int], None],
) -> None:
    """Run the model over the measured rows once; `pair` gets what both make of each layer."""
    waiting: dict[int, tuple[int, ReplacedLayer]] = {}

    def seen(which: int) -> Callable[[int, ReplacedLayer], None]:
        def watch(layer: int, one: ReplacedLayer) -> None:
            if layer not in waiting:
                waiting[layer] = which, one
                return
            first, other = waiting.pop(layer)
            pair(layer, (one, other) if first else (other, one))

        return watch

    done = 0
    for tokens in text.batches(text.measured):
        told(done, len(text.measured))
        waiting.clear()
        with narrow.watched(text.where, seen(0)), wide.watched(text.where, seen(1)):
            logits_of(narrow.model, tokens)
        done += len(tokens)


def _judge(
    family: Family, both: tuple[Transcoder, Transcoder], layer: int, active: list[Tensor]
) -> None:
    """What the wide dictionary does where a narrow feature with children fires."""
    assert family.parent is not None
    narrow, wide = active
    home = family.parent.where(family.parent >= 0, len(family.narrow_fired))
    fires = torch.zeros(len(wide), len(family.narrow_fired) + 1, device=wide.device)
    fires.index_add_(1, home, (wide != 0).float())
    asked = (narrow != 0) & (family.judged & (family.children() > 0))
    without = asked & (fires[:, :-1] == 0)
    family.outcome["child"] += int(asked.sum() - without.sum())
    for pairs in without.nonzero().split(AT_ONCE):
        absorbed = _absorbed(both, layer, active, pairs) if len(pairs) else 0
        family.outcome["absorbed"] += absorbed
        family.outcome["missed"] += len(pairs) - absorbed


def _absorbed(
    both: tuple[Transcoder, Transcoder],
    layer: int,
    active: list[Tensor],
    pairs: Int[Tensor, "pairs 2"],
) -> int:
    """At how many of some (token, narrow feature) another feature writes in its place."""
    token, feature = pairs.unbind(1)
    used = active[1].any(0).nonzero()[:, 0]
    if not len(used):
        return 0
    others = both[1].decoder_rows(layer, used).flatten(1).float()
    own, which = feature.unique(return_inverse=True)
    rows = both[0].decoder_rows(layer, own).flatten(1).float()
    unit = normalize(rows, dim=1)
    along = unit @ others.T
    alike = along / others.norm(dim=1).clamp_min(1e-12)
    written = active[1][token][:, used].float() * along[which]
    most, best = written.max(1)
    wanted = active[0][token, feature].float().abs() * rows.norm(dim=1)[which]
    found = (alike[which].gather(1, best[:, None])[:, 0] >= LIKE) & (most > 0)
    found &= most >= HALF * written.clamp(min=0).sum(1)
    return int((found & (most >= HALF * wanted)).sum())


def _figures(layer: int, family: Family) -> dict[str, Any]:
    """Shares of one layer."""
    assert family.parent is not None
    children, judged = family.children(), family.judged
    count = max(1, int(judged.sum()))
    living = family.wide_fired >= FEWEST
    asked = max(1, sum(family.outcome.values()))
    return {
        "layer": layer,
        "narrow_features": len(family.narrow_fired),
        "wide_features": len(family.wide_fired),
        "judged": int(judged.sum()),
        "split": int((judged & (children > 1)).sum()) / count,
        "stayed": int((judged & (children == 1)).sum()) / count,
        "lost": int((judged & (children == 0)).sum()) / count,
        "children_of_split": _average(children[judged & (children > 1)]),
        "new": int((living & (family.parent < 0)).sum()) / max(1, int(living.sum())),
        "firings_judged": sum(family.outcome.values()),
        "absorbed": family.outcome["absorbed"] / asked,
        "missed": family.outcome["missed"] / asked,
    }


def _average(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def _mean(layers: list[dict[str, Any]]) -> dict[str, float]:
    """Means over layers of what is a share."""
    names = ("split", "stayed", "lost", "new", "absorbed", "missed")
    return {name: sum(one[name] for one in layers) / len(layers) for name in names}
