"""A direction from pairs of prompts: how it is made, how well it reads, how well it steers."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.process import one_call
from replacement_models.sites import Site, Stage
from tracer.errors import TraceError
from tracer.interventions.intervene import intervene
from tracer.interventions.values import Steering
from tracer.lenses.directions import Directions
from tracer.patching.metrics import Metric

METHODS = ("mean", "pca")
Prompt = str | Sequence[int]
Pair = tuple[Prompt, Prompt]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Seen:
    """One prompt of a pair."""

    tokens: tuple[int, ...]
    stream: Float[Tensor, " d_model"]
    """At the site and position of the direction."""
    logits: Float[Tensor, " vocabulary"]
    """Of the next token."""


@one_call()
@torch.no_grad()
def direction(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    pairs: Sequence[Pair],
    layer: int | None = None,
    *,
    position: int = -1,
    method: str = "mean",
    held_out: float = 0.3,
    seed: int = 0,
    label: str = "direction",
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> Directions:
    """Make a direction from contrast pairs and measure it on pairs held out.

    Its length is such that adding it once moves the stream by what, on average, parts a pair along
    it, so strengths mean the same whichever way it was made.

    Args:
        model: the model.
        pairs: (first, second): first has what the direction is to mean, second has it not.
        layer: read and steer the stream entering this layer (L: that entering the final norm); None
            is the middle one, L // 2.
        position: which token's, counted in each prompt for itself.
        method: "mean", the mean difference of the pairs; or "pca", their first principal component
            (Zou et al. 2023, "Representation Engineering"): of the differences, uncentred.
        held_out: share of the pairs that is only measured on.
        seed: of the draw of these pairs.
        label: what graphs call it.
        metric: of next-token logits, for steering; None: for each pair, the logit of the first
            prompt's answer less that of the second's, where they differ.
        progress: called with how many pairs are seen or steered, and of how many.

    Returns:
        One direction; `about["held_out"]` says how it does on pairs held out, less those that share
        a prompt with a fitted one: `auroc` (a first prompt lies above a second) and `accuracy` (at
        the middle between the fitted means), and `steering`: the mean metric of second prompts
        `before`, `after` adding it once at `position`, and of the first prompts, the `goal`;
        `away` is a first prompt's after taking it off once; `flipped` the share of second prompts
        whose likeliest token becomes the first's; null where no pair can be steered.

    Raises:
        TraceError: an argument is out of range, or there are too few pairs.
        ModelError: a prompt does not fit the model.
    """
    layer = len(model.host.blocks) // 2 if layer is None else layer
    _check(model, pairs, layer, method, held_out)
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    count = max(1, round(held_out * len(pairs)))
    fitted, kept = order[count:], order[:count]
    seen = []
    for done, pair in enumerate(pairs, start=1):
        seen.append([_seen(model, prompt, layer, position) for prompt in pair])
        if progress is not None:
            progress(done, len(pairs) + count)
    known = {one.tokens for index in fitted for one in seen[index]}
    new = [index for index in kept if not {one.tokens for one in seen[index]} & known]
    if not new:
        raise TraceError("every pair held out shares a prompt with another; give more pairs")
    streams = torch.stack([torch.stack([one.stream for one in pair]) for pair in seen])
    vector = _vector(streams[fitted], method)
    found = _reading(vector, streams[fitted], streams[new])
    steered = []
    for done, index in enumerate(new, start=1):
        steered.append(_steering(model, seen[index], (layer, position, vector), metric))
        if progress is not None:
            progress(len(pairs) + done, len(pairs) + count)
    about: dict[str, Any] = {
        "model": model.name,
        "method": method,
        "position": position,
        "pairs": len(fitted),
        "seed": seed,
        "held_out": {"pairs": len(new), **found, "steering": _mean(steered)},
    }
    return Directions(vector[None].cpu(), (label,), Site(layer, Stage.RESID_PRE), about)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs of prompts from a file.

    Args:
        path: .csv of two columns without a header, or JSONL, each line a list of two texts or an
            object of `positive` and `negative`.

    Returns:
        (first, second) of every line that is not empty.

    Raises:
        TraceError: a line is no pair, or there is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as text ({error})") from error
    lines: list[Any]
    if path.suffix == ".csv":
        lines = [line for line in csv.reader(text.splitlines()) if line]
    else:
        lines = [_parsed(path, n, line) for n, line in _numbered(text)]
    for number, pair in enumerate(lines, start=1):
        if len(pair) != 2 or not all(isinstance(one, str) and one.strip() for one in pair):
            raise TraceError(f"{path}: pair {number} is {pair!r:.80}, expected two texts")
    if not lines:
        raise TraceError(f"{path}: holds no pairs")
    return [(pair[0], pair[1]) for pair in lines]


def _numbered(text: str) -> list[tuple[int, str]]:
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _parsed(path: Path, number: int, line: str) -> list[Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}: line {number} is no JSON ({error})") from error
    if isinstance(value, dict):
        value = [value.get("positive"), value.get("negative")]
    return value if isinstance(value, list) else [value]


def _check(
    model: ReplacementModel, pairs: Sequence[Pair], layer: int, method: str, held_out: float
) -> None:
    layers = len(model.host.blocks)
    if not 0 <= layer <= layers:
        raise TraceError(f"direction: layer {layer} is not in 0..{layers}")
    if method not in METHODS:
        raise TraceError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if not 0 < held_out < 1:
        raise TraceError(f"held_out is {held_out}, expected a share above 0 and below 1")
    if len(pairs) < 2 or round(held_out * len(pairs)) >= len(pairs):
        raise TraceError(
            f"{len(pairs)} pairs with {held_out} of them held out leave none to make a direction "
            "of and to measure it on; give more pairs"
        )


def _seen(model: ReplacementModel, prompt: Prompt, layer: int, position: int) -> Seen:
    recording: Recording = model.record(prompt, keep_patterns=False, last_logits=True)
    stream = recording.residuals[layer]
    if not -len(stream) <= position < len(stream):
        raise TraceError(f"direction: position {position} is not in {prompt!r:.60}")
    return Seen(recording.tokens, stream[position], recording.logits[-1])


def _vector(streams: Float[Tensor, "pairs 2 d_model"], method: str) -> Float[Tensor, " d_model"]:
    """The direction, as long as what parts a pair along it on average."""
    apart = streams[:, 0] - streams[:, 1]
    mean = apart.mean(0)
    if method == "mean":
        return mean
    unit = torch.linalg.svd(apart.double(), full_matrices=False)[2][0].to(mean.dtype)
    return (mean @ unit) * unit


def _reading(
    vector: Float[Tensor, " d_model"],
    fitted: Float[Tensor, "fitted 2 d_model"],
    new: Float[Tensor, "pairs 2 d_model"],
) -> dict[str, float]:
    """How well first and second prompts held out are told apart."""
    middle = (fitted.mean(0) @ vector).mean()
    first, second = (new @ vector).unbind(1)
    above = (first[:, None] > second).double() + (first[:, None] == second).double() / 2
    right = torch.cat([first > middle, second <= middle]).double()
    return {"auroc": float(above.mean()), "accuracy": float(right.mean())}


def _steering(
    model: ReplacementModel,
    pair: Sequence[Seen],
    how: tuple[int, int, Tensor],
    metric: Metric | None,
) -> dict[str, float] | None:
    """One pair steered both ways; None where there is nothing to measure."""
    layer, position, vector = how
    answers = [int(one.logits.argmax()) for one in pair]
    if metric is None and answers[0] == answers[1]:
        return None

    def measure(logits: Tensor) -> float:
        if metric is not None:
            return float(metric(logits[None])[0])
        return float(logits[answers[0]] - logits[answers[1]])

    def steered(one: Seen, scale: float) -> Tensor:
        steering = Steering(layer=layer, vector=vector, position=position, scale=scale)
        return intervene(model, one.tokens, [steering], "free").logits[-1]

    after, away = steered(pair[1], 1.0), steered(pair[0], -1.0)
    return {
        "before": measure(pair[1].logits),
        "after": measure(after),
        "goal": measure(pair[0].logits),
        "away": measure(away),
        "flipped": float(int(after.argmax()) == answers[0]),
    }


def _mean(steered: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    measured = [one for one in steered if one is not None]
    if not measured:
        return None
    means = {name: fmean(one[name] for one in measured) for name in measured[0]}
    return means | {"pairs": len(measured)}
