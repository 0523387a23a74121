"""Make the feature stores that ship with the embedded default, labels included.

    python -m benchmarks.embedded_store [FOLDER]

writes `clt.features` and `plt.features` into FOLDER, which is where the dictionaries stand unless
another is named; what stood there is replaced. One thread, so that the bytes are the same again.
"""

import shutil
import sys
from pathlib import Path

import torch

import tracer
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.label_texts import LabelTexts, label_texts
from replacement_models.tiny.recipe.word_classes import word_classes

CONTEXT, EXAMPLES, NEIGHBOURS = 64, 8, 6
MOST_TOKENS = 160_000
"""Half to choose on, a quarter to mend on, a quarter held out."""
ALLOWED = 6e6
"""Bytes of both stores."""


def told(done: int, total: int | None, what: str) -> None:
    """Say now and then how far it is."""
    if done % 512 == 0:
        print(f"{what}: {done} of {total}", flush=True)


def make(name: str, folder: Path, texts: LabelTexts) -> Path:
    """One store, labelled; written beside its place and moved there."""
    model = tracer.ReplacementModel.load(transcoders=PACKAGE / name)  # with the embedded model
    place = folder / f"{name}.features"
    fresh = folder / f"{name}.features.fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    store = tracer.FeatureStore.build(
        model,
        texts.shown,
        fresh,
        context=CONTEXT,
        window=CONTEXT,
        examples=EXAMPLES,
        neighbours=NEIGHBOURS,
        batch=128,
        alone=True,
        progress=told,
    )
    store.label(
        model,
        texts.chosen,
        held_out=texts.held_out,
        outside=texts.outside,
        classes=word_classes(),
        max_tokens=MOST_TOKENS,
        progress=told,
    )
    shutil.rmtree(place, ignore_errors=True)
    fresh.replace(place)
    return place


def main(folder: Path) -> None:
    """Make both stores and say how large they are."""
    torch.set_num_threads(1)
    model = tracer.ReplacementModel.load()
    texts = label_texts(model.tokenizer)
    places = [make(name, folder, texts) for name in ("clt", "plt")]
    size = sum(file.stat().st_size for place in places for file in place.rglob("*"))
    print(f"{size:,} bytes in {', '.join(map(str, places))}")
    if size > ALLOWED:
        raise SystemExit(f"expected at most {ALLOWED:,.0f} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
