"""How often swapping one state's features for another's changes the answer, for any dictionary."""

from typing import Any

from replacement_models.tiny.recipe import swaps
from replacement_models.tiny.recipe.corpus import Source, whole_words
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from replacement_models.transcoder import Transcoder


def own_swaps(tokenizer: Any, model: Any, transcoder: Transcoder, count: int) -> dict[str, Any]:
    """Swap states as the embedded model's own figures do (`swaps.py`).

    On the cities choices are made on, not those kept for final figures: this is for choosing among
    dictionaries.

    Args:
        tokenizer: of the embedded model.
        model: itself, as transformers has it.
        transcoder: of all its layers.
        count: pairs of states, evenly spread over all.

    Returns:
        Shares of pairs whose answer becomes the other's capital or stays, at the city and the last
        position, and with random features of equal norm instead.
    """
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    lab = swaps.Laboratory(model, tokenizer, transcoder, source)
    profile = lab.profile(cities.seen)
    pairs = swaps.ordered_pairs(lab, cities.choice)
    every = max(1, len(pairs) // count)
    swap = swaps.Swap(pairs[::every][:count], (1, 1), swaps.CHOSEN)
    found, control = swaps.run(lab, profile, swap), swaps.random_control(lab, profile, swap)
    return {
        "source": "states of the embedded model, choice cities",
        "pairs": found.pairs,
        "flipped": found.flipped,
        "kept": found.kept,
        "flipped_by_random_features": control.flipped,
    }
