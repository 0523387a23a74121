"""Classes of the corpus' words, as a person would call them: what labels of features may name."""

from collections.abc import Iterable, Mapping, Sequence

from replacement_models.tiny.recipe.corpus import DAYS, DIGITS, LETTERS, MONTHS, NUMBERS
from replacement_models.tiny.recipe.facts import load_facts

LANGUAGES = {"en": "an English", "fr": "a French", "es": "a Spanish", "de": "a German"}


def word_classes() -> Mapping[str, Sequence[str]]:
    """Words by the name of their class.

    Of a name of several words the last one stands for it, where no other name ends so.

    Returns:
        Class -> words.
    """
    facts = load_facts()
    states, countries = facts["states"], facts["countries"]
    cities = {state: entry["cities"] for state, entry in states.items()}
    ends = [
        words[-1] for some in cities.values() for city in some if len(words := city.split()) > 1
    ]
    once = {word for word in ends if ends.count(word) == 1}
    found = {f"a city in {state}": _last(some, once) for state, some in cities.items()}
    for state, entry in states.items():
        answers = [state, entry["abbreviation"], entry["capital"]]
        found[f"a word for {state}"] = [answer for answer in answers if " " not in answer]
        found[f"{state} or a city in it"] = [state.split()[-1], *found[f"a city in {state}"]]
    found["a state"] = [state.split()[-1] for state in states]
    for name, key in (
        ("a state's capital", "capital"),
        ("a bird", "bird"),
        ("a region", "region"),
        ("a state's abbreviation", "abbreviation"),
    ):
        found[name] = [entry[key].split()[-1] for entry in states.values()]
    found["a country"] = [country.split()[-1] for country in countries]
    for name, key in (
        ("a country's capital", "capital"),
        ("a language", "language"),
        ("a currency", "currency"),
        ("a continent", "continent"),
    ):
        found[name] = [entry[key].split()[-1] for entry in countries.values() if key in entry]
    for code, name in LANGUAGES.items():
        found[f"{name} adjective"] = _flat(facts["opposites"][code])
    found |= _forms(facts)
    found |= {
        "a day": DAYS,
        "a month": MONTHS,
        "a letter": LETTERS,
        "a number word": NUMBERS,
        "a number": DIGITS,
        "a person": facts["names"],
        "a place": facts["places"],
        "a thing given": facts["objects"],
    }
    return {name: sorted(set(_both_cases(words))) for name, words in found.items()}


def _forms(facts: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, list[str]]:
    """Forms of words: the first of each pair and the second."""
    named = {
        "plurals": ("a singular", "a plural"),
        "past": ("a verb", "a past tense"),
        "young": ("an animal", "a young animal"),
        "colors": ("a thing with a colour", "a colour"),
        "comparatives": ("a positive", "a comparative", "a superlative"),
    }
    return {
        name: [row[at] for row in facts[key]]
        for key, names in named.items()
        for at, name in enumerate(names)
    }


def _last(names: Iterable[str], once: set[str]) -> list[str]:
    return [words[-1] for name in names if len(words := name.split()) == 1 or words[-1] in once]


def _flat(pairs: Iterable[Sequence[str]]) -> list[str]:
    return [word for pair in pairs for word in pair]


def _both_cases(words: Iterable[str]) -> list[str]:
    return [form for word in words for form in (word, word[0].upper() + word[1:])]
