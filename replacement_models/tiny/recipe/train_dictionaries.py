"""Train the embedded default's dictionaries by `tracer train`, from the files beside this one.

    python -m replacement_models.tiny.recipe.train_dictionaries FOLDER

clt-1.yaml is trained first, then each of the others from what the one before it made; those of the
per-layer dictionary beside them, in a process of its own. FOLDER keeps text, runs and, in `clt` and
`plt`, the results, encoder and decoder rounded to float16. Called again, interrupted runs go on.
"""

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
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
STAGES = {
    name: tuple(sorted(Path(__file__).parent.glob(f"{name}-[0-9].yaml"))) for name in ("clt", "plt")
}


def config(stage: Path, folder: Path, model: Path) -> TrainConfig:
    """A committed configuration, its folders those in `folder`."""
    found = read_config(stage)
    before = found.start.dictionary
    return replace(
        found,
        output=str(folder / found.output),
        model=str(model),
        start=replace(found.start, dictionary=None if before is None else str(folder / before)),
        data=replace(found.data, corpus=str(folder / str(found.data.corpus))),
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


def train_dictionary(name: str, stages: Sequence[Path], folder: Path, model: Path) -> None:
    """Train one stage after the other and write what the last one made."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(message)s")
    for stage in stages:
        made = train(config(stage, folder, model), told).transcoder
    save_transcoder(rounded(load_transcoder(made)), folder / name)


def main(folder: Path, model: Path = PACKAGE / "model") -> None:
    """Write text, train both dictionaries side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    dictionary_text.write_all(folder)
    with ProcessPoolExecutor(len(STAGES), get_context("spawn")) as pool:
        runs = [
            pool.submit(train_dictionary, name, stages, folder, model)
            for name, stages in STAGES.items()
        ]
        for run in runs:
            run.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
