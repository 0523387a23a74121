"""Text that the features of the embedded default are described on, labelled on and tested on.

What a feature is called must owe nothing to TEST cities, so they are in none of the sentences that
examples are shown from and labels are chosen and mended on, random repeats included. They are in
the sentences held out, which labels are scored on, and in those of other templates.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerFast

from replacement_models.tiny.recipe.corpus import (
    DAYS,
    MONTHS,
    Source,
    induction,
    mixture,
    plain,
    sentences,
    whole_words,
)
from replacement_models.tiny.recipe.facts import load_facts, split_cities

REPEATS = 0.05
"""Share of random repeats, as in the last stages of the dictionaries' own text."""
SHOWN, CHOSEN, HELD_OUT, OUTSIDE = (4_000, 9001), (8_000, 9002), (4_500, 9003), (2_000, 9004)
"""How many sentences, and the seed they are drawn with."""
ELSEWHERE = (
    "people in {city} went to {largest} last week.",
    "what is the capital of {state}? is it {capital}?",
    "{name} lives in {city} and {other} lives in {capital}.",
    "what is the opposite of {a}? it is {b}.",
    "we sat in the {place} with one {one} and two {many}.",
    "after {day} we drove to {city}.",
    "the {bird} lives in {state}, whose largest city is {largest}.",
    "{name} gave {other} two {many} in {month}.",
    "yesterday we {past} at the {place} in {city}.",
    "{country} has people from {capital} and {largest}.",
)
"""Sentences of the corpus' words in templates that it does not have."""


@dataclass(frozen=True)
class LabelTexts:
    """Sentences, each a prompt of its own."""

    shown: Sequence[str]
    chosen: Sequence[str]
    held_out: Sequence[str]
    outside: Sequence[str]


def label_texts(tokenizer: PreTrainedTokenizerFast) -> LabelTexts:
    """The same sentences every time.

    Args:
        tokenizer: the embedded default's.
    """
    facts = load_facts()
    cities = split_cities(facts)
    known = cities.seen + cities.choice
    whole = Source(facts, cities, known, whole_words(tokenizer))
    words = tuple(word for word in whole.words if word not in cities.test)
    blind = replace(whole, cities=replace(cities, test=()), words=words)
    return LabelTexts(
        shown=_drawn(blind, *SHOWN),
        chosen=_drawn(blind, *CHOSEN),
        held_out=_drawn(whole, *HELD_OUT),
        outside=elsewhere(whole, *OUTSIDE),
    )


def elsewhere(source: Source, count: int, seed: int) -> list[str]:
    """Sentences of other templates; cities of every group."""
    rng = random.Random(seed)
    facts, cities = source.facts, sorted(source.cities.state_of)
    found = []
    for _ in range(count):
        known = source.city_facts(rng.choice(cities))
        a, b = rng.sample(rng.choice(facts["opposites"]["en"]), 2)
        name, other = rng.sample(facts["names"], 2)
        one, many = rng.choice(facts["plurals"])
        words = known | {"a": a, "b": b, "name": name, "other": other, "one": one, "many": many}
        words |= {"day": rng.choice(DAYS), "month": rng.choice(MONTHS)}
        words |= {"place": rng.choice(facts["places"]), "past": rng.choice(facts["past"])[1]}
        words["country"] = rng.choice(sorted(facts["countries"]))
        text = rng.choice(ELSEWHERE).format(**words)
        found.append(text[0].upper() + text[1:] if rng.random() < 0.5 else text)
    return found


def _drawn(source: Source, count: int, seed: int) -> list[str]:
    stream = sentences(source, seed, mixture(induction, REPEATS))
    return [plain(next(stream)) for _ in range(count)]
