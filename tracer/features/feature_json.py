"""One feature as the JSON that Neuronpedia and circuit-tracer's front end read.

Neuronpedia's schema asks for `index` and `examples_quantiles`; circuit-tracer reads the rest too.
Where nothing fits what we know under a name of theirs, it stands under one that begins with `x_`:
both leave such names out.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from tracer.features.bins import Histogram
from tracer.features.feature import Example, Feature
from tracer.features.settings import DECILES

BARS = 50
"""Of a histogram."""
PERCENT = np.arange(1, 101) / 100
TITLES = {"top": "Strongest", "bottom": "Most negative"}


def paired(layer: int, feature: int) -> int:
    """One number for layer and feature, Cantor's, as graphs of schema version 1 name features."""
    both = layer + feature
    return both * (both + 1) // 2 + feature


def feature_json(feature: Feature, about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a feature.

    Args:
        feature: with its examples.
        about: store.json.

    Returns:
        A dictionary that JSON can hold.
    """
    low, high = float(feature.minimum or 0.0), float(feature.maximum)
    found: dict[str, Any] = {
        "index": paired(feature.layer, feature.feature),
        "transcoder_id": about["transcoders"] or about["model"],
        "examples_quantiles": list(_examples(feature.examples)),
        "top_logits": feature.promoted,
        "bottom_logits": feature.suppressed,
        "act_min": low,
        "act_max": high,
        "quantile_values": [],
        "histogram": [],
        "activation_frequency": feature.density,
        "x_layer": feature.layer,
        "x_feature": feature.feature,
        "x_label": feature.label,
        "x_fires_on": feature.fires_on,
    }
    if feature.active:
        counts = Histogram.of(feature.histogram, about["bins"])
        found["quantile_values"] = counts.quantiles(PERCENT).clip(low, high).tolist()
        found["histogram"] = counts.even(low, high, BARS).tolist()
    return found


def _examples(examples: Iterable[Example]) -> Iterable[dict[str, Any]]:
    """Strongest examples, then tenths of its activations from the top."""
    extreme = [one for one in examples if one.kind in TITLES]
    for kind, found in groupby(extreme, key=lambda one: one.kind):
        yield {"quantile_name": TITLES[kind], "examples": [_example(one) for one in found]}
    rest = sorted((one for one in examples if one.kind not in TITLES), key=lambda one: -one.rank)
    for decile, found in groupby(rest, key=lambda one: one.rank):
        name = f"{100 * decile // DECILES} to {100 * (decile + 1) // DECILES} %"
        yield {"quantile_name": name, "examples": [_example(one) for one in found]}


def _example(example: Example) -> dict[str, Any]:
    """The part of a window that belongs to the example's document."""
    shown = slice(example.document.start, example.document.stop)
    return {
        "tokens": list(example.texts[shown]),
        "tokens_acts_list": list(example.activations[shown]),
        "train_token_ind": example.position - example.document.start,
        "is_repeated_datapoint": False,
    }
