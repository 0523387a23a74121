"""Are the reasons true that are given for where a head looked?

    python -m benchmarks.attention_words [--prompts 100] [--output FILE.json]

On the embedded default, for indirect objects and for two hops about TEST cities: the head that
carries most of the answer is explained at the last position. On either side the features that its
words name (`graphs.attention_words.named`) are set to what they are in a prompt that differs in one
token, with MLPs held and attention and norms recomputed. The words are right where, on both sides,
the log-odds of the pattern move the way the marginals say, and further than when as many features
that were not named, equally active at the same place, change by the same share. What fails is
listed with the reason.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import tracer
from benchmarks.output import RESULTS, output_file
from graphs.attention_words import Names, named
from replacement_models import Recording, ReplacementModel
from replacement_models.tiny.recipe import corpus
from replacement_models.tiny.recipe.behaviours import (
    Prompt,
    city_questions,
    indirect_object_questions,
)
from replacement_models.tiny.recipe.corpus import Source, whole_words
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.train import first_source
from tracer import AttentionExplanation, Intervention

SEED = 11
THERE, ELSEWHERE = 6, 2
"""Other tokens tried in a named feature's own place, and in each other place."""
LESS = 0.5
"""A prompt differs in features where they are at most so much of what they were, by weight."""
EXAMPLES = 5
"""Prompts of each behaviour that are written out though nothing fails."""
Place = tuple[int, int, int]
"""Layer, position, feature."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One prompt, recorded, with the head to explain."""

    tokens: list[int]
    active: dict[Place, float]
    explained: AttentionExplanation
    names: Names


@dataclass(frozen=True)
class Resampled:
    """Features of one side, and what they are in a prompt that differs in one token."""

    features: dict[Place, float]
    """Place -> activation there."""
    swap: str
    """What the prompt differs in."""


def active(recording: Recording) -> dict[Place, float]:
    """Active features of a recording."""
    found = recording.features
    columns = (found.layer, found.position, found.feature, found.activation)
    return {
        (layer, position, feature): value
        for layer, position, feature, value in zip(*(c.tolist() for c in columns), strict=True)
    }


def look(model: ReplacementModel, prompt: Prompt) -> Seen:
    """Explain the head that carries most of a prompt's answer, at its last position."""
    tokens = model.tokenize(prompt.text)
    graph = tracer.trace(model, tokens, max_features=0)
    rows = tracer.head_logits(model, graph).to_pylist()
    best = next(row for row in rows if row["target"] == rows[0]["target"])
    found = tracer.explain_attention(model, graph, layer=best["layer"], head=best["head"], query=-1)
    names = Names(graph.nodes, graph.metadata["tokens"])
    return Seen(tokens, active(model.record(tokens)), found, names)


def features_of(seen: Seen, side: str) -> list[tuple[Place, float]]:
    """Features that the words name on one side, with their weights."""
    table = seen.explained.q if side == "q" else seen.explained.k
    found = []
    for name, weight in named(table.to_pylist()):
        parts = name.split("_")
        if parts[0].isdigit() and parts[1] != "-1":
            place = (int(parts[0]), int(parts[2]), int(parts[1]))
            if place in seen.active:
                found.append((place, weight))
    return found


def others(
    seen: Seen, own: Sequence[int], words: Sequence[int]
) -> Iterator[tuple[list[int], int, int]]:
    """Prompts that differ in one token, those that differ near the features first.

    A token in the place of another, or put in: what fires after the start, or after a word, fires
    whatever stands there.

    Yields:
        The tokens, the position that changed, and by how many those from there on have moved.
    """
    rng, tokens = random.Random(f"{SEED} {seen.tokens}"), seen.tokens
    for at in own:
        for word in rng.sample(words, THERE):
            yield [*tokens[:at], word, *tokens[at + 1 :]], at, 0
    for at in own:
        for word in rng.sample(words, THERE):
            yield [*tokens[:at], word, *tokens[at:]], at, 1
    for at in range(1, len(tokens)):
        for word in rng.sample(words, ELSEWHERE) if at not in own else ():
            yield [*tokens[:at], word, *tokens[at + 1 :]], at, 0


def resampled(
    model: ReplacementModel, seen: Seen, chosen: Sequence[tuple[Place, float]], words: Sequence[int]
) -> Resampled | None:
    """A prompt with another token somewhere in which the features are least active."""
    own = list(dict.fromkeys(place[1] for place, _ in chosen))
    whole, best, least = sum(weight for _, weight in chosen), None, 1.0
    for number, (tokens, at, moved_by) in enumerate(others(seen, own, words)):
        if number and number % (len(own) * THERE) == 0 and least <= LESS:
            break
        found = active(model.record(tokens, last_logits=True))
        values = {}
        for (layer, position, feature), _ in chosen:
            there = position + moved_by * (position >= at)
            values[layer, position, feature] = found.get((layer, there, feature), 0.0)
        left = sum(weight * values[place] / seen.active[place] for place, weight in chosen) / whole
        if left < least:
            before = "" if moved_by else model.token_string(seen.tokens[at])
            swap = f"{before} -> {model.token_string(tokens[at])} at {at}"
            best, least = Resampled(values, swap), left
    return best if least <= LESS else None


def controls(seen: Seen, named_places: Sequence[Place]) -> list[Place]:
    """For each named feature one that was not named: there, below the head, as active."""
    taken: set[Place] = set(named_places) | {
        place for side in "qk" for place, _ in features_of(seen, side)
    }
    found = []
    for place in named_places:
        others = [
            other
            for other in seen.active
            if other not in taken and other[1] == place[1] and other[0] < seen.explained.layer
        ]
        if others:
            near = seen.active[place]
            other = min(others, key=lambda it: (abs(seen.active[it] - near), it))
            taken.add(other)
            found.append(other)
    return found


def moved(
    model: ReplacementModel, seen: Seen, values: dict[Place, float], mode: str = "constrained"
) -> float:
    """By how much the log-odds of the explained key change."""
    layers = range(len(model.host.blocks)) if mode == "constrained" else None
    edits = [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for (layer, position, feature), value in values.items()
    ]
    change = tracer.intervene(
        model, seen.tokens, edits, mode, layers=layers, freeze_attention=False, freeze_norms=False,
        patterns=True,
    )  # fmt: skip
    one = seen.explained
    assert change.patterns is not None
    assert change.base.patterns is not None
    found = [
        torch.logit(state[one.layer][one.head, one.query, one.key].double(), eps=1e-9).item()
        for state in (change.patterns, change.base.patterns)
    ]
    return found[0] - found[1]


def said(seen: Seen, place: Place) -> str:
    """A feature in words, by the label that the dictionary's store has for it."""
    layer, position, feature = place
    label = store()[layer, feature].label or f"feature {feature}"
    return f"{label} (L{layer}/{feature}, at {seen.names.at(position)})"


@cache
def store() -> "tracer.FeatureStore":
    """The store beside the embedded dictionary."""
    return tracer.FeatureStore.load(PACKAGE / "clt.features")


def judged(model: ReplacementModel, seen: Seen, side: str, words: Sequence[int]) -> dict[str, Any]:
    """Whether the words about one side are right, and why not."""
    chosen = features_of(seen, side)
    if not chosen:
        return {"right": False, "why": "names no feature"}
    places = [place for place, _ in chosen]
    other = resampled(model, seen, chosen, words)
    told: dict[str, Any] = {"named": [said(seen, place) for place in places]}
    if other is None:
        return told | {"right": False, "why": "no prompt differs in it"}
    share = {place: other.features[place] / seen.active[place] for place in places}
    predicted = sum(weight * (share[place] - 1) for place, weight in chosen)
    found = moved(model, seen, other.features)
    beside = controls(seen, places)
    left = sum(share.values()) / len(share)
    control = moved(model, seen, {place: left * seen.active[place] for place in beside})
    told |= {
        "swap": other.swap,
        "predicted": predicted,
        "measured": found,
        "all recomputed": moved(model, seen, other.features, "free"),
        "not named": control,
        "controls": len(beside),
    }
    if predicted * found <= 0:
        return told | {"right": False, "why": "another sign"}
    if abs(found) <= abs(control):
        return told | {"right": False, "why": "less than features that were not named"}
    return told | {"right": True}


def behaviour(
    model: ReplacementModel, prompts: Sequence[Prompt], words: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Judge the words about every prompt."""
    for prompt in prompts:
        seen = look(model, prompt)
        one = seen.explained
        sides = {side: judged(model, seen, side, words) for side in "qk"}
        yield {
            "prompt": prompt.text,
            "head": f"{one.layer}.{one.head}",
            "key": seen.names.at(one.key),
            "pattern": one.pattern,
            "log_odds": one.log_odds,
            "right": all(side["right"] for side in sides.values()),
            **sides,
        }


def asked(source: Source, count: int) -> dict[str, list[Prompt]]:
    """Prompts of either behaviour; two hops are about cities that no such sentence was about."""
    rng = random.Random(SEED)
    hops = city_questions(source, sorted(source.cities.test), corpus.TWO_HOP)
    return {
        "indirect objects": indirect_object_questions(source, rng, count),
        "two hops": rng.sample(hops, count),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares over the prompts of one behaviour."""
    judged_sides = [row[side] for row in rows for side in "qk"]
    tested = [side for side in judged_sides if "measured" in side]

    def share(good: Sequence[bool]) -> float:
        return sum(good) / len(good) if good else 0.0

    ratios = sorted(abs(one["measured"]) / max(abs(one["not named"]), 1e-9) for one in tested)
    return {
        "prompts": len(rows),
        "right": share([row["right"] for row in rows]),
        **{f"right about {side}": share([row[side]["right"] for row in rows]) for side in "qk"},
        "sign as predicted": share([one["predicted"] * one["measured"] > 0 for one in tested]),
        "sign with all recomputed": share(
            [one["predicted"] * one["all recomputed"] > 0 for one in tested]
        ),
        "median times what was not named": ratios[len(ratios) // 2] if ratios else None,
        "why not": {
            why: sum(side.get("why") == why for side in judged_sides)
            for why in sorted({side["why"] for side in judged_sides if "why" in side})
        },
    }


def main() -> None:
    """Measure, print the shares and what fails, write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=100, help="of each behaviour")
    parser.add_argument("--output", type=output_file, default=RESULTS / "attention_words.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, source = ReplacementModel.load(), first_source()
    source = replace(source, words=whole_words(model.tokenizer))
    words = sorted({model.tokenize(word)[-1] for word in source.words})
    told: dict[str, Any] = {}
    for name, prompts in asked(source, options.prompts).items():
        rows = list(behaviour(model, prompts, words))
        wrong = [row for row in rows if not row["right"]]
        told[name] = summary(rows) | {"examples": rows[:EXAMPLES], "wrong": wrong}
        print(name, json.dumps(summary(rows), indent=1), flush=True)
        for row in rows:
            for side in "qk":
                if not row[side]["right"]:
                    print(f"  {row['prompt']!r} {row['head']} {side}: {row[side]}")
    output: Path = options.output
    output.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
