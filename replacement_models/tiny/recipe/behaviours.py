"""Prompts with known answers, one list per behaviour, generated from a seed.

A behaviour's prompts are first every bare question once, then questions after one or two unrelated
sentences, until there are at least `LEAST`. No prompt occurs twice. A prompt counts as right when
every token of the answer is the model's most likely next token.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replacement_models.tiny.recipe import corpus
from replacement_models.tiny.recipe.corpus import BRACKETS, SERIES, SHARES, Source, sentences

LEAST = 200
CLEAR_ONE_HOP = tuple(template for template in corpus.ONE_HOP if " is in [" not in template)
"""One-hop phrasings with one continuation: "Dallas is in" also begins "is in a state whose ..."."""


@dataclass(frozen=True)
class Prompt:
    """A question and its only right answer, both plain text without surrounding blanks."""

    text: str
    answer: str


def asked(sentence: str) -> Prompt:
    """Turn a marked sentence into a question: what stands before its first answer, and that."""
    before, _, rest = sentence.partition("[")
    return Prompt(before.translate(BRACKETS).strip(), rest.partition("]")[0])


def city_questions(source: Source, cities: Iterable[str], templates: Iterable[str]) -> list[Prompt]:
    """Ask every template about every city."""
    wanted = list(cities)
    return [
        asked(template.format(**source.city_facts(city)))
        for template in templates
        for city in wanted
    ]


def state_questions(source: Source) -> list[Prompt]:
    """Ask every fact of every state."""
    return [
        asked(template.format(state=state, **facts))
        for template in corpus.STATE
        for state, facts in source.facts["states"].items()
    ]


def country_questions(source: Source) -> list[Prompt]:
    """Ask every fact of every country, in two phrasings."""
    return [
        asked(template.format(country=country, value=value))
        for country, facts in source.facts["countries"].items()
        for relation, value in facts.items()
        for template in corpus.COUNTRY[relation]
    ]


def opposite_questions(source: Source, language: str) -> list[Prompt]:
    """Ask both directions of every pair of opposites of one language."""
    return [
        asked(template.format(a=first, b=second))
        for pair in source.facts["opposites"][language]
        for first, second in (pair, pair[::-1])
        for template in corpus.OPPOSITE[language]
    ]


def plural_questions(source: Source) -> list[Prompt]:
    """Ask every plural in two phrasings."""
    templates = corpus.WORD["plurals"]
    return [asked(t.format(a=a, b=b)) for a, b in source.facts["plurals"] for t in templates]


def successor_questions(kind: str) -> list[Prompt]:
    """Ask what follows each item of a series, after a phrase or after two to four items."""
    series = SERIES[kind]
    last = len(series) if kind in corpus.CYCLIC else len(series) - 1
    questions = []
    for index in range(last):
        following = series[(index + 1) % len(series)]
        for template in corpus.SUCCESSOR:
            questions.append(asked(template.format(kind=kind, a=series[index], b=following)))
        for length in range(2, 5):
            if kind in corpus.CYCLIC or index + 1 >= length:
                items = [series[index - back] for back in reversed(range(length))]
                questions.append(Prompt(" ".join(items), following))
    return questions


def indirect_object_questions(source: Source, rng: random.Random, count: int) -> list[Prompt]:
    """Ask who received something, for random names, places and things."""
    return [asked(corpus.indirect_object(rng, source)) for _ in range(count)]


def induction_questions(source: Source, rng: random.Random, count: int) -> list[Prompt]:
    """Repeat the beginning of 4 to 16 random words and ask for the next one."""
    questions = []
    for _ in range(count):
        words = rng.sample(source.words, rng.randint(4, 16))
        told = rng.randint(1, len(words) - 1)
        questions.append(Prompt(" ".join(words + words[:told]), words[told]))
    return questions


def spread(questions: list[Prompt], source: Source, seed: int, least: int = LEAST) -> list[Prompt]:
    """Return every question once, then questions after other sentences, `least` in all at least.

    Half of the prompts start with a capital letter.
    """
    rng = random.Random(seed)
    others: Iterator[str] = sentences(source, seed, SHARES)
    prompts: dict[Prompt, None] = {}
    queue = list(questions)
    while queue or len(prompts) < least:
        bare = queue.pop(0) if queue else rng.choice(questions)
        told = 0 if len(prompts) < len(questions) else rng.randint(1, 2)
        text = bare.text[0].upper() + bare.text[1:] if rng.random() < 0.5 else bare.text
        before = [corpus.plain(next(others)) for _ in range(told)]
        prompts[Prompt(" ".join([*before, text]), bare.answer)] = None
    return list(prompts)


def behaviours(source: Source, seed: int = 0) -> dict[str, list[Prompt]]:
    """Return all behaviours but those that ask two hops about cities kept apart."""
    rng = random.Random(seed)
    cities = source.cities
    everywhere = sorted(cities.state_of)
    found = {
        "one hop: city to state": city_questions(source, everywhere, CLEAR_ONE_HOP),
        "one hop: state to fact": state_questions(source),
        "one hop: country to fact": country_questions(source),
        "plurals": plural_questions(source),
        **{f"opposites {name}": opposite_questions(source, name) for name in corpus.OPPOSITE},
        **{f"successor {kind}": successor_questions(kind) for kind in SERIES},
        "indirect object": indirect_object_questions(source, rng, 400),
        "induction": induction_questions(source, rng, 400),
        "two hops, seen cities": city_questions(source, cities.seen, corpus.TWO_HOP),
    }
    return {name: spread(questions, source, seed) for name, questions in found.items()}


def two_hop_behaviour(source: Source, cities: Iterable[str], seed: int = 0) -> list[Prompt]:
    """Ask the capital of the state containing each city, in every phrasing of the corpus."""
    return spread(city_questions(source, cities, corpus.TWO_HOP), source, seed)
