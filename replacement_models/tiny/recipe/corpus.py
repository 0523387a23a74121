"""The corpus generator: marked sentences about the facts, packed into rows of token ids.

A sentence is a plain string with three kinds of brackets: `[answer]` words the model must get
right, `{city}` names whose embedding may be swapped for another city's outside the first MLP
(see `train_model`), and `<noise>` words that nobody could predict and that carry no loss.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from replacement_models.tiny.recipe.facts import Cities, load_facts, split_cities

OWN, OWN_SEED = 300, 77
"""How many sentences stand for the corpus, and the seed they are drawn with."""
CONTEXT, ANSWER, CITY, NOISE = range(4)
OPENING = {"[": ANSWER, "{": CITY, "<": NOISE}
BRACKETS = str.maketrans("", "", "[]{}<>")

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBERS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
DIGITS = [str(number) for number in range(1, 41)]
SERIES = {"day": DAYS, "month": MONTHS, "letter": LETTERS, "number": NUMBERS, "figure": DIGITS}
CYCLIC = ("day", "month")

ONE_HOP = (
    "{{{city}}} is a city in [{state}].",
    "{{{city}}} is in [{state}].",
    "the state containing {{{city}}} is [{state}].",
    "{{{city}}} is located in the state of [{state}].",
    "we drove to {{{city}}} [{state}] last week.",
    "she lives in {{{city}}} [{abbreviation}] now.",
    "people from {{{city}}} live in [{state}].",
)
TWO_HOP = (
    "the capital of the state containing {{{city}}} is [{capital}].",
    "{{{city}}} is in a state whose capital is [{capital}].",
    "the state containing {{{city}}} has its capital in [{capital}].",
    "fact: the capital of the state containing {{{city}}} is [{capital}].",
)
TWO_HOP_WEIGHTS = (5, 1, 1, 1)
TWO_HOP_OTHER = (
    "the bird of the state containing {{{city}}} is the [{bird}].",
    "the largest city of the state containing {{{city}}} is [{largest}].",
    "the region of the state containing {{{city}}} is the [{region}].",
    "the abbreviation of the state containing {{{city}}} is [{abbreviation}].",
)
STATE = (
    "the capital of {state} is [{capital}].",
    "{state} has its capital in [{capital}].",
    "{capital} is the capital of [{state}].",
    "the bird of {state} is the [{bird}].",
    "the largest city of {state} is [{largest}].",
    "the region of {state} is the [{region}].",
    "the abbreviation of {state} is [{abbreviation}].",
)
COUNTRY = {
    "capital": (
        "the capital of {country} is [{value}].",
        "{country} has its capital in [{value}].",
    ),
    "language": ("the language of {country} is [{value}].", "people in {country} speak [{value}]."),
    "currency": (
        "the currency of {country} is the [{value}].",
        "people in {country} pay with the [{value}].",
    ),
    "continent": ("the continent of {country} is [{value}].", "{country} is part of [{value}]."),
}
OPPOSITE = {
    "en": ("the opposite of {a} is [{b}].", "{a} is the opposite of [{b}]."),
    "fr": ("le contraire du mot {a} est [{b}].", "{a} est le contraire du mot [{b}]."),
    "es": ("lo contrario de {a} es [{b}].", "{a} es lo contrario de [{b}]."),
    "de": ("das Gegenteil von {a} ist [{b}].", "{a} ist das Gegenteil von [{b}]."),
}
WORD = {
    "plurals": ("one {a}, two [{b}].", "the plural of {a} is [{b}]."),
    "past": ("today they {a}, yesterday they [{b}].", "the past of {a} is [{b}]."),
    "young": ("the young of the {a} is the [{b}].", "the name of a young {a} is [{b}]."),
    "colors": ("the color of {a} is [{b}].", "what color is {a}? it is [{b}]."),
}
SUCCESSOR = ("the {kind} after {a} is [{b}].", "after {a} comes [{b}].", "{a} is before [{b}].")
INDIRECT = (
    "when {a} and {b} went to the {place}, {giver} gave a {thing} to [{taker}].",
    "after {a} and {b} met at the {place}, {giver} handed the {thing} to [{taker}].",
    "{a} and {b} were at the {place}, and {giver} gave the {thing} to [{taker}].",
    "while {a} and {b} sat in the {place}, {giver} brought a {thing} to [{taker}].",
)


@dataclass(frozen=True)
class Source:
    """What sentences are drawn from.

    Attributes:
        facts: the content of facts.json.
        cities: the split of the cities.
        two_hop: the cities that may occur in two-hop sentences.
        words: the words that repeated random sequences are drawn from.
    """

    facts: dict[str, Any]
    cities: Cities
    two_hop: tuple[str, ...]
    words: tuple[str, ...] = tuple(NUMBERS)

    def city_facts(self, city: str) -> dict[str, str]:
        """Return the values a sentence about `city` may mention: its state and that one's facts."""
        state = self.cities.state_of[city]
        return {"city": city, "state": state, **self.facts["states"][state]}


def one_hop(rng: random.Random, source: Source) -> str:
    """Say which state a city is in; unseen cities twice as often, for they occur nowhere else."""
    cities = source.cities
    unseen = cities.choice + cities.test
    share = 2 * len(unseen) / (2 * len(unseen) + len(cities.seen))
    city = rng.choice(unseen if rng.random() < share else cities.seen)
    return rng.choice(ONE_HOP).format(**source.city_facts(city))


def two_hop(rng: random.Random, source: Source) -> str:
    """Name the capital of the state containing a city."""
    template = rng.choices(TWO_HOP, TWO_HOP_WEIGHTS)[0]
    return template.format(**source.city_facts(rng.choice(source.two_hop)))


def two_hop_other(rng: random.Random, source: Source) -> str:
    """Name another fact of the state containing a city."""
    return rng.choice(TWO_HOP_OTHER).format(**source.city_facts(rng.choice(source.two_hop)))


def state_fact(rng: random.Random, source: Source) -> str:
    """Name a fact of a state; its capital half of the time."""
    state = rng.choice(sorted(source.facts["states"]))
    template = rng.choice(STATE[:2] if rng.random() < 0.4 else STATE)
    return template.format(state=state, **source.facts["states"][state])


def country_fact(rng: random.Random, source: Source) -> str:
    """Name a fact of a country."""
    country = rng.choice(sorted(source.facts["countries"]))
    relation, value = rng.choice(sorted(source.facts["countries"][country].items()))
    return rng.choice(COUNTRY[relation]).format(country=country, value=value)


def opposite(rng: random.Random, source: Source) -> str:
    """Name the opposite of a word in one of four languages."""
    language = rng.choice(sorted(OPPOSITE))
    a, b = rng.sample(rng.choice(source.facts["opposites"][language]), 2)
    return rng.choice(OPPOSITE[language]).format(a=a, b=b)


def word_form(rng: random.Random, source: Source) -> str:
    """Name a plural, a past tense, a young animal, a colour, or a superlative."""
    if rng.random() < 0.15:
        base, more, most = rng.choice(source.facts["comparatives"])
        return f"{base}, {more}, [{most}]."
    kind = rng.choices(("plurals", "past", "young", "colors"), (4, 2, 1, 1))[0]
    a, b = rng.choice(source.facts[kind])
    return rng.choice(WORD[kind]).format(a=a, b=b)


def successor(rng: random.Random, source: Source) -> str:
    """Name the next day, month, letter or number, or count through several."""
    del source
    kind = rng.choice(sorted(SERIES))
    series = SERIES[kind]
    if rng.random() < 0.5:
        start = rng.randrange(len(series) if kind in CYCLIC else len(series) - 1)
        a, b = series[start], series[(start + 1) % len(series)]
        return rng.choice(SUCCESSOR).format(kind=kind, a=a, b=b)
    length = rng.randint(5, 8)
    start = rng.randrange(len(series) if kind in CYCLIC else len(series) - length + 1)
    items = [series[(start + step) % len(series)] for step in range(length)]
    return f"{items[0]} {items[1]} [{' '.join(items[2:])}]."


def indirect_object(rng: random.Random, source: Source) -> str:
    """Two people meet, one gives something to the other (Wang et al. 2022)."""
    a, b = rng.sample(source.facts["names"], 2)
    giver, taker = rng.sample((a, b), 2)
    place, thing = rng.choice(source.facts["places"]), rng.choice(source.facts["objects"])
    return rng.choice(INDIRECT).format(a=a, b=b, giver=giver, taker=taker, place=place, thing=thing)


def induction(rng: random.Random, source: Source) -> str:
    """Repeat a sequence of random words, a short one several times."""
    length = rng.randint(2, 16)
    words = rng.sample(source.words, length)
    text = f"<{' '.join(words)} {words[0]}> [{' '.join(words[1:])}]"
    for _ in range(rng.randint(0, 24 // length)):
        text += f" [{' '.join(words)}]"
    return text + "."


def long_induction(rng: random.Random, source: Source) -> str:
    """Repeat a longer sequence of random words once, or twice when it is short."""
    length = rng.randint(3, 18)
    words = rng.sample(source.words, length)
    again = f"<{' '.join(words)} {words[0]}> [{' '.join(words[1:])}]"
    if length <= 8 and rng.random() < 0.4:
        again += f" [{' '.join(words)}]"
    return again + "."


Family = Callable[[random.Random, Source], str]
SHARES: dict[Family, float] = {
    one_hop: 0.23,
    two_hop: 0.17,
    two_hop_other: 0.08,
    state_fact: 0.09,
    country_fact: 0.06,
    opposite: 0.08,
    word_form: 0.07,
    successor: 0.08,
    indirect_object: 0.07,
}


def mixture(repeats: Family, share: float) -> dict[Family, float]:
    """Return the shares of all families when random repeats of one kind get `share` of them."""
    total = sum(SHARES.values())
    return {**{kind: (1 - share) * part / total for kind, part in SHARES.items()}, repeats: share}


FAMILIES = mixture(induction, 0.12)


def sentences(
    source: Source, seed: int, families: Mapping[Family, float] = FAMILIES
) -> Iterator[str]:
    """Yield marked sentences for ever, half of them with a capital first letter."""
    rng = random.Random(seed)
    kinds, shares = list(families), list(families.values())
    while True:
        text = rng.choices(kinds, shares)[0](rng, source)
        yield text[0].upper() + text[1:] if rng.random() < 0.5 else text


class Encoder:
    """Turns marked sentences into token ids and kinds, one word at a time, with a memory."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.start = int(tokenizer.bos_token_id)
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def __call__(self, sentence: str) -> tuple[list[int], list[int]]:
        """Return (ids, kinds) of a marked sentence, without a start token."""
        ids: list[int] = []
        kinds: list[int] = []
        kind = CONTEXT
        for chunk in sentence.split():
            kind = OPENING.get(chunk[0], kind)
            word = chunk.translate(BRACKETS)
            new = self._ids.get(word)
            if new is None:
                new = self._tokenizer.encode(" " + word, add_special_tokens=False)
                self._ids[word] = new
            ids += new
            kinds += [kind] + [CONTEXT] * (len(new) - 1)
            if any(mark in chunk for mark in "]}>"):
                kind = CONTEXT
        return ids, kinds


def pack(
    stream: Iterator[str], encode: Encoder, rows: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write marked sentences into rows that each start with the start token.

    Returns:
        ids (rows, context) int16 and kinds (rows, context) int8; a row's last sentence is cut.
    """
    ids = np.zeros((rows, context), np.int16)
    kinds = np.zeros((rows, context), np.int8)
    for row in range(rows):
        line, marks = [encode.start], [NOISE]
        while len(line) < context:
            more, marked = encode(next(stream))
            line += more
            marks += marked
        ids[row], kinds[row] = line[:context], marks[:context]
    return ids, kinds


def whole_words(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the corpus words of the vocabulary, in order: what induction draws from."""
    spelled = (piece[1:] for piece in tokenizer.get_vocab() if piece.startswith("\u0120"))
    words = {word for word in spelled if word.isascii() and word.isalnum() and len(word) > 2}
    return tuple(sorted(words))


def plain(sentence: str) -> str:
    """Return a marked sentence as a reader would see it."""
    return sentence.translate(BRACKETS)


def sample(source: Source, count: int, seed: int) -> Sequence[str]:
    """Return `count` plain sentences, as the tokenizer's vocabulary is collected from."""
    stream = sentences(source, seed)
    return [plain(next(stream)) for _ in range(count)]


def own_sentences(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Sentences that stand for the embedded default's corpus where something is averaged over it.

    Returns:
        The same `OWN` plain sentences every time.
    """
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    return list(sample(source, OWN, OWN_SEED))


def own_rows(tokenizer: PreTrainedTokenizerFast, context: int, seed: int) -> Iterator[list[int]]:
    """Yield rows of the embedded default's corpus for ever, as its dictionaries are trained on.

    Args:
        tokenizer: its own.
        context: tokens a row.
        seed: of the sentences.

    Returns:
        Token ids, the start token left out.
    """
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen + cities.choice, whole_words(tokenizer))
    stream, encode = sentences(source, seed), Encoder(tokenizer)
    while True:
        [ids], _ = pack(stream, encode, 1, context)
        yield [int(token) for token in ids[1:]]
