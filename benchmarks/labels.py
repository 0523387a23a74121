"""How many of the features that matter carry a label that is true.

    python -m benchmarks.labels [FILE.json] [--seed N] [--transcoders clt|plt]

For every behaviour of the embedded default (recipe/behaviours.py) prompts are drawn by the seed and
traced. Of the ten most influential features of each graph, counted are those whose label has an F1
of at least 0.7 on text held out, is contradicted by none of it, beats both baselines, and speaks of
activations as large as the one in the graph. Beside it stand how many reach that F1 with the plain
list of the tokens they fire on most, or with the claim that they always fire, and in how many
behaviours a feature fires: the exponential of the entropy of its mean activation over prompts of
each behaviour. Most prompts begin with sentences about something else, in which features of other
behaviours fire; the same is measured over prompts that are the bare question (`asked alone`).
Features whose label is a single token that they fire on stand apart.
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
FEW = 3.0
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


def of_one_token(store: tracer.FeatureStore, place: Place) -> bool:
    """Whether a feature's label, a true one, is a single token that it fires on."""
    row: Mapping[str, Any] = store.labels.rows[place]
    if not row["shown"] or row["f1"] < GOOD or row["predicate"] is None:
        return False
    clauses = json.loads(row["predicate"])
    [first, *others] = [one for clause in clauses for one in clause]
    alone = not others and first["kind"] == "on" and len(first["any"]) == 1
    return alone and not first["any"][0]["class"]


def bare(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, list[Prompt]]:
    """Those that begin with no other sentence."""
    return {name: [one for one in some if "." not in one.text] for name, some in prompts.items()}


@torch.no_grad()
def mean_activations(
    model: tracer.ReplacementModel, prompts: Mapping[str, Sequence[Prompt]], rng: random.Random
) -> dict[int, np.ndarray]:
    """By layer (behaviours, features): mean over prompts of the largest activation in each."""
    total = {layer: [] for layer in model.transcoder.present}
    for some in prompts.values():
        held = dict.fromkeys(total, 0.0)
        drawn = rng.sample(list(some), min(MEASURED, len(some)))
        for prompt in drawn:
            features = model.record(prompt.text).features
            for layer in total:
                at = (features.layer == layer) & (features.position > 0)
                width = len(model.transcoder.layers[layer].W_enc)
                best = torch.zeros(width).scatter_reduce(
                    0, features.feature[at], features.activation[at], "amax"
                )
                held[layer] = held[layer] + best.numpy() / len(drawn)
        for layer, means in held.items():
            total[layer].append(means)
    return {layer: np.stack(rows) for layer, rows in total.items()}


def effective_behaviours(means: np.ndarray) -> float:
    """Exponential of the entropy of the mean activation over behaviours; NaN if it never fires."""
    share = means / means.sum() if means.sum() > 0 else means
    held = share[share > 0]
    return float(np.exp(-(held * np.log(held)).sum())) if len(held) else float("nan")


def spread(
    means: Mapping[int, np.ndarray], every: Sequence[Seen], apart: set[Place]
) -> dict[str, float]:
    """In how many behaviours features fire.

    Args:
        means: by layer (behaviours, features).
        every: the influential features of all graphs; a feature counts once.
        apart: features of one token.
    """
    places = sorted({one.place for one in every})
    found = {place: effective_behaviours(means[place[0]][:, place[1]]) for place in places}
    kinds = [kind for kind in found.values() if kind > 0]  # a few fire in no prompt drawn
    others = [kind for place, kind in found.items() if kind > 0 and place not in apart]
    shown = [found[one.place] for one in every if found[one.place] > 0]
    shown_others = [
        found[one.place] for one in every if found[one.place] > 0 and one.place not in apart
    ]
    return {
        "of_features": len(kinds),
        "median": median(kinds),
        "mean": fmean(kinds),
        "largest": max(kinds),
        "share_above_2": fmean(kind > 2 for kind in kinds),
        "share_at_most_3": fmean(kind <= FEW for kind in kinds),
        "share_at_most_3_tokens_aside": fmean(kind <= FEW for kind in others),
        "share_of_places_in_graphs_at_most_3": fmean(kind <= FEW for kind in shown),
        "share_of_places_in_graphs_at_most_3_tokens_aside": fmean(
            kind <= FEW for kind in shown_others
        ),
    }


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
    tokens = {one.place for one in every if of_one_token(store, one.place)}
    alone = mean_activations(model, bare(prompts), rng)
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
        "influential_features": len({one.place for one in every}),
        "effective_behaviours": spread(means, every, tokens),
        "effective_behaviours_asked_alone": spread(alone, every, tokens),
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
    print("the same, asked alone", found["effective_behaviours_asked_alone"])
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
