"""Give the cross-layer transcoder a top layer of features that mean one thing.

    python -m replacement_models.tiny.recipe.train_top FIRST FOLDER

FIRST is what train_transcoders.py made. Its lower layers go on from where they stand, the top layer
starts anew, by `tracer train` with clt-1.yaml to clt-4.yaml, each from what the one before it made.
FOLDER keeps text, runs and, in `clt`, the result, encoder and decoder rounded to float16. Called
again, an interrupted run goes on.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from replacement_models.formats import load_transcoder, save_transcoder
from replacement_models.tiny.recipe import dictionary_text
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.training.config import TrainConfig
from replacement_models.training.config_file import read_config
from replacement_models.training.train import train
from replacement_models.transcoder import DenseDecoder, Transcoder

log = logging.getLogger(__name__)
STAGES = tuple(Path(__file__).with_name(f"clt-{number}.yaml") for number in (1, 2, 3, 4))


def config(stage: Path, before: Path, folder: Path, model: Path) -> TrainConfig:
    """A committed configuration with its folders filled in."""
    found = read_config(stage)
    return replace(
        found,
        output=str(folder / stage.stem),
        model=str(model),
        start=replace(found.start, dictionary=str(before)),
        data=replace(found.data, corpus=str(folder / "text.jsonl")),
    )


def rounded(found: Transcoder) -> Transcoder:
    """Encoder and decoder rows as float16; biases and thresholds stay float32."""
    layers = []
    for layer in found.layers:
        rows = layer.decoder.rows(torch.arange(len(layer.W_enc)))
        layers.append(replace(layer, W_enc=layer.W_enc.half(), decoder=DenseDecoder(rows.half())))
    return type(found)(layers, read=found.read, write=found.write, model="tiny")


def told(words: str, done: int, total: int) -> None:
    """Say now and then how far it is."""
    if done % 50 == 0:
        log.info("%s: %d of %d", words, done, total)


def main(first: Path, folder: Path, model: Path = PACKAGE / "model") -> None:
    """Write text, train, write `clt`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "text.jsonl").is_file():
        dictionary_text.write(folder / "text.jsonl")
    for stage in STAGES:
        first = train(config(stage, first, folder, model), told).transcoder
    save_transcoder(rounded(load_transcoder(first)), folder / "clt")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(*map(Path, sys.argv[1:3]))
