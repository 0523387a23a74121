"""How many of the features that matter carry a label that is true.

    python -m benchmarks.labels [FILE.json] [--seed N] [--transcoders clt|plt]

For every behaviour of the embedded default (recipe/behaviours.py) prompts are drawn by the seed and
traced. Of the ten most influential features of each graph, counted are those whose label has an F1
of at least 0.7 on text held out, is contradicted by none of it, beats both baselines, and speaks of
activations as large as the one in the graph. Beside it stand how many reach that F1 with the plain
list of the tokens they fire on most, or with the claim that they always fire, and in how many
behaviours a feature fires: the exponential of the entropy of its mean activation over prompts of
each behaviour.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

import tracer
from replacement_models.tiny.recipe.behaviours import Prompt, behaviours, two_hop_behaviour
from replacement_models.tiny.recipe.corpus import Source, whole_words
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities

PROMPTS, TOP, GOOD, TRUE = 5, 10, 0.7, 0.5
MEASURED = 40
"""Prompts a behaviour that mean activations are taken over."""
Place = tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """One influential feature in one graph."""

    place: Place
    activation: float


def every_behaviour(tokenizer: Any, seed: int) -> dict[str, list[Prompt]]:
    """All prompts by behaviour, the two hops of TEST cities among them."""
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    found = behaviours(source, seed)
    return found | {"two hops, TEST cities": two_hop_behaviour(source, cities.test, seed)}


def influential(model: tracer.ReplacementModel, prompt: str) -> list[Seen]:
    """The features of largest influence in a prompt's graph."""
    names = ["kind", "layer", "feature", "activation", "influence"]
    rows = tracer.trace(model, prompt).nodes.select(names).to_pylist()
    features = [row for row in rows if row["kind"] == "feature"]
    features.sort(key=lambda row: -row["influence"])
    return [Seen((row["layer"], row["feature"]), row["activation"]) for row in features[:TOP]]


def judged(store: tracer.FeatureStore, found: Sequence[Seen]) -> dict[str, float]:
    """Shares of some features by what is known of them."""
    good, shown, listed, always, words = [], [], [], [], []
    for one in found:
        row: Mapping[str, Any] = store.labels.rows[one.place]
        speaks = row["shown"] and one.activation > row["above"]
        shown.append(speaks)
        good.append(speaks and row["f1"] >= GOOD)
        listed.append(row["list_f1"] >= GOOD)
        always.append(row["always_f1"] >= GOOD)
        words.append(bool(row["polysemantic"]))
    return {
        "label_f1_0.7": fmean(good),
        "label_f1_0.5": fmean(shown),
        "token_list_f1_0.7": fmean(listed),
        "always_f1_0.7": fmean(always),
        "polysemantic": fmean(words),
    }


@torch.no_grad()
def mean_activations(
    model: tracer.ReplacementModel, prompts: Mapping[str, Sequence[Prompt]], rng: random.Random
) -> dict[int, np.ndarray]:
    """By layer (behaviours, features): mean over prompts of the largest activation in each."""
    total = {layer: [] for layer in model.transcoder.present}
    for some in prompts.values():
        held = dict.fromkeys(total, 0.0)
        drawn = rng.sample(list(some), MEASURED)
        for prompt in drawn:
            features = model.record(prompt.text).features
            for layer in total:
                at = (features.layer == layer) & (features.position > 0)
                width = len(model.transcoder.layers[layer].W_enc)
                best = torch.zeros(width).scatter_reduce(
                    0, features.feature[at], features.activation[at], "amax"
                )
                held[layer] = held[layer] + best.numpy() / MEASURED
        for layer, means in held.items():
            total[layer].append(means)
    return {layer: np.stack(rows) for layer, rows in total.items()}


def effective_behaviours(means: np.ndarray) -> float:
    """Exponential of the entropy of the mean activation over behaviours; NaN if it never fires."""
    share = means / means.sum() if means.sum() > 0 else means
    held = share[share > 0]
    return float(np.exp(-(held * np.log(held)).sum())) if len(held) else float("nan")


def measure(transcoders: str, seed: int) -> dict[str, Any]:
    """Everything, of one dictionary."""
    model = tracer.ReplacementModel.load(transcoders=PACKAGE / transcoders)
    store = tracer.FeatureStore.load(PACKAGE / f"{transcoders}.features")
    store.check(model)
    prompts = every_behaviour(model.tokenizer, seed)
    rng = random.Random(seed)
    found = {
        name: [influential(model, one.text) for one in rng.sample(some, PROMPTS)]
        for name, some in prompts.items()
    }
    means = mean_activations(model, prompts, rng)
    every = [one for graphs in found.values() for graph in graphs for one in graph]
    places = sorted({one.place for one in every})
    found_in = [effective_behaviours(means[layer][:, feature]) for layer, feature in places]
    kinds = [kind for kind in found_in if kind > 0]  # a few fire in none of the prompts drawn
    by_behaviour = {}
    for name, graphs in found.items():
        whole = judged(store, [one for graph in graphs for one in graph])
        apart = [judged(store, graph)["label_f1_0.7"] for graph in graphs]
        by_behaviour[name] = whole | {"worst_prompt": min(apart), "best_prompt": max(apart)}
    return {
        "transcoders": transcoders,
        "seed": seed,
        "prompts_a_behaviour": PROMPTS,
        "all": judged(store, every),
        "behaviours": by_behaviour,
        "by_layer": {
            str(layer): judged(store, [one for one in every if one.place[0] == layer])
            for layer in store.layers
        },
        "influential_features": len(places),
        "effective_behaviours": {
            "of_features": len(kinds),
            "median": median(kinds),
            "mean": fmean(kinds),
            "largest": max(kinds),
            "share_above_2": fmean(kind > 2 for kind in kinds),
        },
        "labels": {**store.labels.about, "classes": len(store.labels.about["classes"])},
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--transcoders", choices=("clt", "plt"), default="clt")
    options = parser.parse_args()
    found = measure(options.transcoders, options.seed)
    for name, shares in {"all": found["all"], **found["behaviours"]}.items():
        print(f"{name:28}", *(f"{key} {value:.2f} " for key, value in shares.items()))
    print("effective number of behaviours", found["effective_behaviours"])
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
