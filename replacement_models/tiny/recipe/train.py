"""Make the embedded default from scratch: `python -m replacement_models.tiny.recipe.train FOLDER`.

Writes `model/`, `clt/` and `plt/` into the folder. Weights are rounded to float16 before the
transcoders are trained, so that they learn the model that is shipped.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.tiny.recipe import train_dictionaries
from replacement_models.tiny.recipe.corpus import Source, sample, whole_words
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from replacement_models.tiny.recipe.tokenizer import build_tokenizer
from replacement_models.tiny.recipe.train_model import ModelRecipe, Pupil, train_model

VOCABULARY_SENTENCES = 200_000


def first_source() -> Source:
    """Return what the language model's sentences are drawn from, before there is a vocabulary."""
    facts = load_facts()
    cities = split_cities(facts)
    return Source(facts, cities, cities.seen)


def rounded(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Round every weight to float16, in place, and leave it float32."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    return model


def make_model(folder: Path) -> None:
    """Train the language model and write it, in float16, as a Hugging Face folder."""
    source, recipe = first_source(), ModelRecipe()
    tokenizer = build_tokenizer(sample(source, VOCABULARY_SENTENCES, seed=1), recipe.context)
    source = replace(source, words=whole_words(tokenizer))
    probe_source = replace(source, two_hop=source.cities.choice)
    model = train_model(recipe, Pupil(tokenizer, source, probe_source, folder / "checkpoint"))
    write_model(rounded(model), tokenizer, folder / "model")


def write_model(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model whose weights are already rounded, stored as float16."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(named, indent=2) + "\n")


def main(folder: Path) -> None:
    """Train everything into `folder`: the model with one thread, then the two dictionaries."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder)
    train_dictionaries.main(folder, folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
