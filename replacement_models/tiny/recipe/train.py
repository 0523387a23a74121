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

from replacement_models.formats import save_transcoder
from replacement_models.tiny.recipe.corpus import Source, sample, whole_words
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from replacement_models.tiny.recipe.tokenizer import build_tokenizer
from replacement_models.tiny.recipe.train_model import ModelRecipe, Pupil, train_model
from replacement_models.tiny.recipe.train_transcoders import (
    PER_LAYER_STAGES,
    TranscoderRecipe,
    TranscoderTraining,
)

VOCABULARY_SENTENCES = 200_000
RECIPES = {
    "clt": TranscoderRecipe(),
    "plt": TranscoderRecipe(cross_layer=False, stages=PER_LAYER_STAGES, last_share=1.0),
}


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


def transcoder_source(source: Source) -> Source:
    """Return what a transcoder's sentences are drawn from: two hops of seen and choice cities."""
    return replace(source, two_hop=source.cities.seen + source.cities.choice)


def make_model(folder: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, Source]:
    """Train the language model and write it, in float16, as a Hugging Face folder."""
    source, recipe = first_source(), ModelRecipe()
    tokenizer = build_tokenizer(sample(source, VOCABULARY_SENTENCES, seed=1), recipe.context)
    source = replace(source, words=whole_words(tokenizer))
    probe_source = replace(source, two_hop=source.cities.choice)
    model = train_model(recipe, Pupil(tokenizer, source, probe_source, folder / "checkpoint"))
    write_model(rounded(model), tokenizer, folder / "model")
    return model, tokenizer, source


def write_model(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model whose weights are already rounded, stored as float16."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(named, indent=2) + "\n")


def make_transcoder(
    name: str,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    source: Source,
    folder: Path,
) -> None:
    """Train one transcoder, stage after stage, and write it."""
    training = TranscoderTraining(RECIPES[name], model, transcoder_source(source), tokenizer)
    training.run()
    save_transcoder(training.trainee.finished("tiny"), folder / name)


def main(folder: Path) -> None:
    """Train everything, one thread, into `folder`."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer, source = make_model(folder)
    for name in RECIPES:
        make_transcoder(name, model, tokenizer, source, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
