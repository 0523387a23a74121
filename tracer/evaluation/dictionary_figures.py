"""The figures of one dictionary: layer by layer, and of the model with its MLPs replaced."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from replacement_models.replaced import ReplacedLayer, Where, logits_of
from replacement_models.transcoder import TranscoderLayer
from tracer.evaluation import baselines
from tracer.evaluation.baselines import Fit
from tracer.evaluation.layer_errors import Explained, FiringSums, OutputSums
from tracer.evaluation.speech import Listener, Said, Standing, recovered
from tracer.evaluation.spliced import spliced
from tracer.evaluation.subject import Subject
from tracer.evaluation.text import Text

Told = Callable[[str, int, int], None]
"""What is told of progress: words, how much of how much."""
Figures = dict[str, Any]
REPLACED, MEANS, AFFINE, SKIP = "replaced", "means", "affine", "skip"
DENSE = 0.1
"""Features that fire at more than this share of the tokens."""
POWERS = 6
"""Densities are counted by powers of ten down to this one."""


def fits(subject: Subject, text: Text, told: Told) -> dict[int, Fit]:
    """Fit what each layer's dictionary has to beat, some layers at a time.

    Args:
        subject: says what is read and what it is to become.
        text: baselines are fitted on its fitted rows.
        told: called before every batch.
    """
    width = subject.transcoder.d_model
    wanted = baselines.wanted_tokens(width)
    together = baselines.layers_at_once(width, wanted)
    found: dict[int, Fit] = {}
    for first in range(0, len(subject.layers), together):
        group = subject.layers[first : first + together]
        for layer, (inputs, outputs) in _sampled(subject, text, group, wanted, told).items():
            found[layer] = baselines.fit(inputs, outputs, maps=not subject.is_autoencoder)
    return found


def _sampled(
    subject: Subject, text: Text, layers: tuple[int, ...], wanted: int, told: Told
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """What some layers read and give at the counted tokens of fitted rows, up to `wanted`."""
    held: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {layer: [] for layer in layers}

    def watch(layer: int, seen: ReplacedLayer) -> None:
        if layer in held:
            held[layer].append((seen.inputs[seen.counted], seen.output[seen.counted]))

    count = 0
    with subject.watched(text.where, watch):
        for tokens in text.batches(text.fitted):
            if count >= wanted:
                break
            told("Fitting baselines", count, wanted)
            logits_of(subject.model, tokens)
            count += len(held[layers[0]][-1][0])
    return {
        layer: tuple(torch.cat(side)[:wanted] for side in zip(*parts, strict=True))  # type: ignore[misc]
        for layer, parts in held.items()
    }


@dataclass(eq=False)
class Measured:
    """What one pass over the measured rows adds up."""

    outputs: dict[int, OutputSums]
    firing: dict[int, FiringSums]
    listener: Listener


def measure(subject: Subject, text: Text, fitted: Mapping[int, Fit], told: Told) -> Figures:
    """Errors, firing, and what the model says, over the measured rows.

    Args:
        subject: the dictionary.
        text: what on.
        fitted: what was fitted for each layer.
        told: called before every batch.

    Returns:
        `layers`, a layer each; `mean` over them; `replaced`, with all of them replaced.
    """
    sums = _sums(subject, text, fitted)

    def watch(layer: int, seen: ReplacedLayer) -> None:
        output, inputs = seen.output[seen.counted], seen.inputs[seen.counted]
        guesses = [seen.reconstruction[seen.counted], *fitted[layer].guesses(inputs)]
        if len(output):
            sums.outputs[layer].add(output, guesses)
            sums.firing[layer].add(seen.activations[seen.counted])

    done, total = 0, len(text.measured)
    for tokens in text.batches(text.measured):
        told("Replacing MLPs", done, total)
        with subject.watched(text.where, watch):
            own = logits_of(subject.model, tokens)
        sums.listener.add(tokens, text.counts(tokens), own)
        done += len(tokens)
    alone = said_alone(subject, text, fitted, told)
    layers = [_layer(layer, subject, sums, alone.get(layer)) for layer in subject.layers]
    return {"layers": layers, "mean": _means(layers), "replaced": _whole(sums.listener)}


def _sums(subject: Subject, text: Text, fitted: Mapping[int, Fit]) -> Measured:
    count, transcoder = text.count(text.measured), subject.transcoder
    blocks = subject.model.host.blocks
    outputs = {
        layer: OutputSums(count, one.mean.to(blocks[layer].device), 1 + len(one.maps))
        for layer, one in fitted.items()
    }
    firing = {
        layer: FiringSums(torch.zeros_like(transcoder.layers[layer].b_enc, dtype=torch.long))
        for layer in subject.layers
    }
    return Measured(outputs, firing, Listener(subject.model, stand_ins(subject, text, fitted)))


def stand_ins(subject: Subject, text: Text, fitted: Mapping[int, Fit]) -> dict[str, Standing]:
    """What stands in for all layers at once: the dictionary, and what it has to beat."""
    where, transcoder = text.where, subject.transcoder
    found: dict[str, Standing] = {REPLACED: lambda: subject.instead(where)}
    found[MEANS] = lambda: means_instead(subject, where, fitted, subject.layers)
    if subject.is_autoencoder:
        return found
    affine = affine_alone(subject, fitted)
    found[AFFINE] = lambda: affine.instead(where)
    if any(transcoder.skip(layer) is not None for layer in subject.layers):
        parts = [(transcoder.skip(at), transcoder.layers[at].b_dec) for at in subject.layers]
        bare = baselines.standing(subject.model, subject.layers, parts)
        skip = Subject(SKIP, bare, bare.transcoder)
        found[SKIP] = lambda: skip.instead(where)
    return found


def affine_alone(subject: Subject, fitted: Mapping[int, Fit]) -> Subject:
    """Affine maps, massive outputs weighing less in their fit, in the place of all layers."""
    bare = baselines.standing(
        subject.model, subject.layers, [fitted[layer].maps[1] for layer in subject.layers]
    )
    return Subject(AFFINE, bare, bare.transcoder)


def means_instead(
    subject: Subject, where: Where, fitted: Mapping[int, Fit], layers: tuple[int, ...]
) -> AbstractContextManager[None]:
    """Means in the place of some layers' outputs."""
    model, means = subject.model, {layer: fitted[layer].mean for layer in subject.layers}
    if not subject.is_autoencoder:
        bare = baselines.standing(model, layers, [(None, means[layer]) for layer in layers])
        return Subject(MEANS, bare, bare.transcoder).instead(where)
    own = subject.transcoder
    held = [
        replace(TranscoderLayer.empty(one.b_dec, 1), b_dec=means[at].to(one.b_dec), stage=one.stage)
        if at in means
        else one
        for at, one in enumerate(own.layers)
    ]
    return spliced(model, type(own)(held, write=own.write, model=own.model), where, layers)


def said_alone(
    subject: Subject, text: Text, fitted: Mapping[int, Fit], told: Told
) -> dict[int, Figures]:
    """What the model says with one layer replaced, on some of the measured rows."""
    rows = text.some(text.settings.alone_tokens)
    if not len(rows):
        return {}
    kinds: dict[str, Callable[[int], AbstractContextManager[None]]] = {
        REPLACED: lambda layer: subject.instead(text.where, [layer]),
        MEANS: lambda layer: means_instead(subject, text.where, fitted, (layer,)),
    }
    single = {
        f"{kind} {layer}": _bound(make, layer)
        for kind, make in kinds.items()
        for layer in subject.layers
    }
    listener, done = Listener(subject.model, single), 0
    for tokens in text.batches(rows):
        told("Replacing single MLPs", done, len(rows))
        own = logits_of(subject.model, tokens)
        listener.add(tokens, text.counts(tokens), own)
        done += len(tokens)
    itself = listener.itself.average()
    found = {}
    for layer in subject.layers:
        said, means = (listener.sums[f"{kind} {layer}"].average() for kind in kinds)
        found[layer] = _said(said, means, itself)
    return found


def _bound(make: Callable[[int], AbstractContextManager[None]], layer: int) -> Standing:
    return lambda: make(layer)


def _layer(layer: int, subject: Subject, sums: Measured, alone: Figures | None) -> Figures:
    own, *maps = sums.outputs[layer].explained()
    firing = sums.firing[layer]
    density = firing.density
    fires = density[density > 0]
    return {
        "layer": layer,
        "place": subject.places[subject.layers.index(layer)],
        "features": len(density),
        "error": asdict(own),
        "affine_error": _best(maps),
        "l0": float(density.sum()),
        "dead": float((density == 0).double().mean()),
        "density": {
            "mean": float(density.mean()),
            "median_alive": float(fires.median()) if len(fires) else math.nan,
            "dense": float((density > DENSE).double().mean()),
            "by_power": _by_power(density),
        },
        "alone": alone,
    }


def _best(maps: list[Explained]) -> Figures | None:
    """Of the affine maps the better one, figure by figure."""
    if not maps:
        return None
    every = [asdict(one) for one in maps]
    return {name: min(one[name] for one in every) for name in every[0]}


def _by_power(density: torch.Tensor) -> list[int]:
    """Features that never fire, then by powers of ten: at most 1e-6, 1e-5, ... and 1."""
    power = density[density > 0].log10().ceil().clamp(min=-POWERS, max=0).long() + POWERS
    counts = torch.bincount(power, minlength=POWERS + 1).tolist()
    return [int((density == 0).sum()), *counts]


def _means(layers: list[Figures]) -> Figures:
    """Means over layers of what has a mean."""
    found: Figures = {}
    for name in ("error", "affine_error", "alone"):
        some = [one[name] for one in layers if one[name] is not None]
        found[name] = {key: fmean(one[key] for one in some) for key in some[0]} if some else None
    for name in ("l0", "dead"):
        found[name] = fmean(one[name] for one in layers)
    found["l0_total"] = sum(one["l0"] for one in layers)
    return found


def _whole(listener: Listener) -> Figures:
    """What the model says with all replaced, and with every baseline in their place."""
    itself = listener.itself.average()
    said = {name: one.average() for name, one in listener.sums.items()}
    found = _said(said[REPLACED], said[MEANS], itself)
    return {
        **found,
        "tokens": listener.itself.tokens,
        "cross_entropy_itself": itself.cross_entropy,
        "baselines": {
            name: _said(one, said[MEANS], itself) for name, one in said.items() if name != REPLACED
        },
    }


def _said(said: Said, means: Said, itself: Said) -> Figures:
    return {**asdict(said), "recovered": recovered(said, means, itself)}
