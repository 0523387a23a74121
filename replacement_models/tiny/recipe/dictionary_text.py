"""The text that the dictionaries are trained on, as a file that `tracer train` reads.

    python -m replacement_models.tiny.recipe.dictionary_text FILE.jsonl [TOKENS]

Rows are token ids, one list a line. Some are full of sentences, as the language model was trained;
the others hold one to three sentences, as prompts do: features are asked about at the positions at
which they were learnt. Two hops are of seen and choice cities.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from replacement_models.checkpoint import AS_DATA
from replacement_models.tiny.recipe.corpus import (
    Encoder,
    Source,
    induction,
    mixture,
    sentences,
    whole_words,
)
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities

REPEATS = 0.05
"""Share of random repeats among the sentences."""
FULL = 0.4
"""Share of the rows that are full."""
SENTENCES = 3
"""At most so many stand in one of the others."""
CONTEXT = 64
SEED = 210
TOKENS = 3_000_000


def rows(tokenizer: PreTrainedTokenizerFast, seed: int = SEED) -> Iterator[list[int]]:
    """Yield rows for ever, the start token left out.

    Args:
        tokenizer: of the embedded default.
        seed: of the sentences.

    Returns:
        Token ids, at most `CONTEXT` - 1 a row.
    """
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    source = replace(source, two_hop=cities.seen + cities.choice)
    stream, encode = sentences(source, seed, mixture(induction, REPEATS)), Encoder(tokenizer)
    rng = random.Random(seed)
    while True:
        full = rng.random() < FULL
        wanted = rng.randint(1, SENTENCES)
        row: list[int] = []
        while len(row) < CONTEXT - 1 and (full or wanted):
            row += encode(next(stream))[0]
            wanted -= 1
        yield [int(token) for token in row[: CONTEXT - 1]]


def write(path: Path, tokens: int = TOKENS) -> None:
    """Write rows until there are so many tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model", **AS_DATA)
    left = tokens
    with path.open("w", encoding="utf-8") as file:
        for row in rows(tokenizer):
            file.write(json.dumps({"text": row}) + "\n")
            left -= len(row)
            if left <= 0:
                return


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
