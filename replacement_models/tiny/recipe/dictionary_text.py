"""The texts that the dictionaries are trained on, as files that `tracer train` reads.

    python -m replacement_models.tiny.recipe.dictionary_text FOLDER

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
from typing import NamedTuple

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

FULL = 0.4
"""Share of the rows that are full."""
SENTENCES = 3
"""At most so many stand in one of the others."""
CONTEXT = 64


class Text(NamedTuple):
    """Of one file: how many tokens, the share of random repeats among its sentences, its seed."""

    tokens: int
    repeats: float
    seed: int


TEXTS = {
    "text.jsonl": Text(3_000_000, 0.05, 210),
    "repeats.jsonl": Text(3_000_000, 0.12, 211),
    "sentences.jsonl": Text(1_500_000, 0.02, 212),
}


def rows(tokenizer: PreTrainedTokenizerFast, repeats: float, seed: int) -> Iterator[list[int]]:
    """Yield rows for ever, the start token left out.

    Args:
        tokenizer: of the embedded default.
        repeats: share of random repeats among the sentences.
        seed: of the sentences.

    Returns:
        Token ids, at most `CONTEXT` - 1 a row.
    """
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    source = replace(source, two_hop=cities.seen + cities.choice)
    stream, encode = sentences(source, seed, mixture(induction, repeats)), Encoder(tokenizer)
    rng = random.Random(seed)
    while True:
        full = rng.random() < FULL
        wanted = rng.randint(1, SENTENCES)
        row: list[int] = []
        while len(row) < CONTEXT - 1 and (full or wanted):
            row += encode(next(stream))[0]
            wanted -= 1
        yield [int(token) for token in row[: CONTEXT - 1]]


def write(path: Path, text: Text) -> None:
    """Write rows until there are so many tokens; a file is there once it is whole."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model", **AS_DATA)
    left, partial = text.tokens, path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows(tokenizer, text.repeats, text.seed):
            file.write(json.dumps({"text": row}) + "\n")
            left -= len(row)
            if left <= 0:
                break
    partial.replace(path)


def write_all(folder: Path) -> None:
    """Write those of `TEXTS` that are not there yet."""
    for name, text in TEXTS.items():
        if not (folder / name).is_file():
            write(folder / name, text)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
