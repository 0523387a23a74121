"""What is explained of a head: one query's scores under weights, and what they add up to."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.attention.explained import Explained, chosen_position
from tracer.attention.queries_keys import Scores
from tracer.errors import TraceError

CONSISTENT = 1e-2
"""Largest difference between the recorded pattern and the one that the scores make."""


@dataclass(frozen=True, eq=False)
class Spot:
    """What is explained: one query's scores under weights."""

    layer: int
    head: int
    query: int
    key: int
    contrast: str
    scores: Scores
    raw: Float[Tensor, " keys"]
    """Scores before the cap."""
    pattern: Float[Tensor, " keys"]
    """As the scores make it; keys that the query may not see get none."""
    weights: Float[Tensor, " keys"]
    """With which scores before the cap add up to what is explained, a sink's part aside."""
    sink: float
    """A sink's part."""
    log_odds: float

    @property
    def explained(self) -> float:
        """What the marginals of either side add up to."""
        return float(self.weights @ self.raw) + self.sink


def spot_of(
    about: Explained, scores: Scores, place: tuple[int, int, int, int | None], contrast: str
) -> Spot:
    """What is to be explained, checked.

    Args:
        about: the graph's prompt and model.
        scores: of the layer.
        place: layer, head, query, and key; None is the key that gets most attention.
        contrast: one of "odds", "plain", "score".

    Raises:
        TraceError: the key is hidden, stands alone, or the scores do not make the pattern.
    """
    layer, head, query, key = place
    scores = _detached(scores)
    raw = scores.raw(head)
    pattern = scores.pattern(raw[None], [head])[0]
    _check_pattern(about, layer, head, pattern)
    raw, pattern, visible = raw[query], pattern[query], scores.visible[query]
    key = int(pattern.argmax()) if key is None else _visible_key(about, scores, place)
    capped = scores.capped(raw)
    sink = torch.zeros(()) if scores.sinks is None else scores.sinks[head]
    others = pattern * (torch.arange(len(pattern), device=pattern.device) != key)
    mass = 0.0 if scores.sinks is None else _sink_mass(capped, visible, sink)
    beside = float(others.sum()) + mass
    if beside <= 0 and contrast != "score":
        raise TraceError(
            f"query {query} sees key {key} alone, so there is nothing to compare it with; explain "
            "the score itself: contrast='score'"
        )
    means = float(others @ capped) + mass * float(sink)
    odds = float(capped[key]) - means / beside if beside > 0 else float("nan")
    weights, part = _weights(key, pattern, beside, contrast)
    weights = weights * torch.where(raw == 0, torch.ones_like(raw), capped / raw)
    given = -part * mass * float(sink) if part * mass else 0.0
    return Spot(layer, head, query, key, contrast, scores, raw, pattern, weights, given, odds)


def _weights(
    key: int, pattern: Float[Tensor, " keys"], beside: float, contrast: str
) -> tuple[Float[Tensor, " keys"], float]:
    """Weights of capped scores, and by what the attention of a sink is divided."""
    one = torch.zeros_like(pattern)
    one[key] = 1
    if contrast == "score":
        return one, 0.0
    part = 1.0 if contrast == "plain" else 1 / beside
    if contrast == "plain":
        return one - pattern, part
    others = pattern * (1 - one)
    return one - others * part, part


def _sink_mass(capped: Tensor, visible: Tensor, sink: Tensor) -> float:
    """The attention that the sink takes."""
    every = torch.cat([capped.masked_fill(~visible, -torch.inf), sink[None]])
    return float(every.softmax(-1)[-1])


def _detached(scores: Scores) -> Scores:
    return replace(scores, queries=scores.queries.detach(), keys=scores.keys.detach())


def _check_pattern(about: Explained, layer: int, head: int, pattern: Tensor) -> None:
    recorded = about.recording.layers[layer].attention_pattern()[head]
    wrong = float((recorded - pattern).abs().max())
    if not wrong <= CONSISTENT:
        raise TraceError(
            f"head {layer}.{head}: its scores make another pattern than was recorded (off by "
            f"{wrong:.2g}); attention of {about.model.host.family} models cannot be explained"
        )


def _visible_key(about: Explained, scores: Scores, place: tuple[int, int, int, int | None]) -> int:
    layer, head, query, key = place
    assert key is not None
    key = chosen_position(about.local.positions, key, "key")
    if not bool(scores.visible[query, key]):
        seen = scores.visible[query].nonzero()[:, 0].tolist()
        raise TraceError(
            f"head {layer}.{head} hides key {key} from query {query}, expected one of "
            f"{seen[0]}..{seen[-1]}"
        )
    return key
