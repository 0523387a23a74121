"""The proof-read facts the corpus is written from, and which cities it keeps apart."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
"""Where model and dictionaries stand."""
FACTS = Path(__file__).with_name("facts.json")
TEST_PER_STATE, CHOICE_PER_STATE = 2, 1
ALWAYS_TEST = ("Dallas", "Oakland")
EXTRA_TEST_STATES = 12


@dataclass(frozen=True)
class Cities:
    """Three disjoint groups of cities, and the state of each.

    Attributes:
        seen: cities that occur in two-hop sentences of the language model's corpus.
        choice: cities that occur only in one-hop sentences of that corpus; choices were made on
            these, but for those that ../README.md owns up to in its last section but one.
        test: likewise; their sentences of two hops are asked in measurements only. Their
            embeddings stood in training: swapped ones are drawn from all cities.
        state_of: city -> state, for every city of the corpus.
    """

    seen: tuple[str, ...]
    choice: tuple[str, ...]
    test: tuple[str, ...]
    state_of: dict[str, str]


def load_facts(path: Path = FACTS) -> dict[str, Any]:
    """Read the facts: states, countries, opposites, plurals and the smaller word lists."""
    return json.loads(path.read_text(encoding="utf-8"))


def split_cities(facts: dict[str, Any], seed: int = 0) -> Cities:
    """Divide the cities state by state, so that every state has cities in all three groups.

    A state's capital is always a seen city. Two test cities per state, three in the first
    `EXTRA_TEST_STATES` states of a shuffled list, and one choice city per state.
    """
    rng = random.Random(seed)
    names = sorted(facts["states"])
    generous = set(rng.sample(names, EXTRA_TEST_STATES))
    groups: dict[str, list[str]] = {"test": [], "choice": [], "seen": []}
    for state in names:
        entry = facts["states"][state]
        pool = [city for city in entry["cities"] if city != entry["capital"]]
        rng.shuffle(pool)
        pool.sort(key=lambda city: city not in ALWAYS_TEST)
        tested = TEST_PER_STATE + (state in generous)
        groups["test"] += pool[:tested]
        groups["choice"] += pool[tested : tested + CHOICE_PER_STATE]
        groups["seen"] += sorted(set(entry["cities"]) - set(pool[: tested + CHOICE_PER_STATE]))
    state_of = {city: state for state in names for city in facts["states"][state]["cities"]}
    return Cities(tuple(groups["seen"]), tuple(groups["choice"]), tuple(groups["test"]), state_of)
