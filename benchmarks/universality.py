"""Two seeds of one language model: `python -m benchmarks.universality FOLDER [FILE] [--quick]`.

A language model of the embedded default's recipe is trained from a second seed (weights, frozen
embeddings and sentences are other ones) with a third of the steps, and one is drawn and left
untrained, which is the control. `tracer.match` then says on the same sentences how far their
streams and the default's are one space (CKA, best rotation) and which of the default's neurons are
found again. FOLDER keeps what is trained, stage by stage, and the same command goes on; a quarter
of an hour of one core. `--stages N` ends after some stages,
`--quick` takes few steps and writes no result.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

import tracer
from benchmarks.output import RESULTS, output_file
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.corpus import (
    Encoder,
    induction,
    long_induction,
    mixture,
    sample,
    whole_words,
)
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.train import first_source, rounded, write_model
from replacement_models.tiny.recipe.train_model import (
    ModelRecipe,
    Pupil,
    Stage,
    StateMeans,
    batches,
    new_model,
    probe,
    rate,
    step_loss,
)

STAGES = (
    Stage(800, 2400, 0.01, 0.03, mixture(long_induction, 0.07), 20),
    Stage(700, 1400, 0.008, 0.1, mixture(long_induction, 0.07), 21),
    Stage(400, 1000, 0.01, 0.5, mixture(induction, 0.3), 27),
    Stage(1000, 1000, 0.008, 0.02, mixture(induction, 0.12), 28),
    Stage(400, 400, 0.004, 0.02, mixture(induction, 0.12), 29, 1e-3, agreement=1.0),
)
"""The recipe's stages at a third of their steps, with other sentences."""
SECOND, UNTRAINED = ModelRecipe(seed=1, stages=STAGES), ModelRecipe(seed=2, stages=())
COEFFICIENTS = (3.4445, -4.775, 2.0315)
TEXTS, TEXTS_SEED = 200, 41
"""Sentences that neurons are matched on."""
LEAST = (0.5, 0.7, 0.9)
"""Correlations from which a mutual match is counted."""


class Muon(torch.optim.Optimizer):
    """Muon as torch.optim has it, its products in float32: in bfloat16 many processors are slow.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix along the nearest orthogonal one of its momentum."""
        for group in self.param_groups:
            for weight in group["params"]:
                held = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                held.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(held, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly: five steps of Newton and Schulz."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimizers(
    model: GPT2LMHeadModel, recipe: ModelRecipe, stage: Stage
) -> list[torch.optim.Optimizer]:
    """The recipe's: matrices inside blocks, and the rest."""
    inside = [one for one in model.transformer.h.parameters() if one.ndim == 2]
    chosen = {id(one) for one in inside}
    rest = [one for one in model.parameters() if one.requires_grad and id(one) not in chosen]
    return [
        Muon(inside, stage.muon_rate, recipe.decay),
        torch.optim.AdamW(rest, lr=stage.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def run_stage(model: GPT2LMHeadModel, recipe: ModelRecipe, stage: Stage, pupil: Pupil) -> None:
    """Train through one stage, as the recipe does."""
    optims = optimizers(model, recipe, stage)
    peaks = [one.param_groups[0]["lr"] for one in optims]
    means = StateMeans(pupil.source, pupil.tokenizer, recipe.width)
    for step, batch in enumerate(batches(recipe, stage, pupil)):
        step_loss(model, batch, means, stage.agreement).backward()
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * rate(step, stage, recipe.warmup)
            optim.step()
            optim.zero_grad()


def pupil_of(folder: Path) -> Pupil:
    """The shipped tokenizer, and the recipe's sentences."""
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "model")
    source = replace(first_source(), words=whole_words(tokenizer))
    return Pupil(tokenizer, source, replace(source, two_hop=source.cities.choice), folder)


def trained(recipe: ModelRecipe, folder: Path) -> dict[str, Any]:
    """Train a language model into a folder, unless it stands there; stages done stay done.

    Returns:
        Steps, and the share of answer tokens got right on fresh sentences by their kind; CPU
        seconds of all its stages.
    """
    about, steps = folder / "about.json", sum(stage.steps for stage in recipe.stages)
    if about.is_file() and json.loads(about.read_text("utf-8"))["steps"] == steps:
        return json.loads(about.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    pupil = pupil_of(folder)
    model, seconds = new_model(recipe, pupil.tokenizer), 0.0
    for number, stage in enumerate(recipe.stages):
        file, took = folder / f"stage-{number}.safetensors", folder / f"stage-{number}.json"
        if took.is_file():
            model.load_state_dict(load_file(file))
        else:
            start = time.process_time()
            run_stage(model, recipe, stage, pupil)
            save_file(model.state_dict(), file)
            took.write_text(json.dumps(time.process_time() - start), encoding="utf-8")
        seconds += json.loads(took.read_text("utf-8"))
    write_model(rounded(model), pupil.tokenizer, folder / "model")
    right = probe(model, pupil.probe_source, Encoder(pupil.tokenizer), recipe.context)
    found = {
        "steps": steps,
        "CPU seconds": round(seconds),
        "answers right": {name: round(share, 3) for name, share in right.items()},
    }
    about.write_text(json.dumps(found), encoding="utf-8")
    return found


def alike(model: ReplacementModel, other: ReplacementModel, texts: list[str]) -> dict[str, Any]:
    """What `tracer.match` finds: features by layer, and streams."""
    found = tracer.match(model, other, texts)
    rows = found.features.to_pylist()
    layers = sorted({row["layer"] for row in rows})
    return {
        "features that fired": len(rows),
        "found again": {str(least): round(found.shared(least), 3) for least in LEAST},
        "found again at 0.7, by layer": [again(rows, layer) for layer in layers],
        "median correlation": round(
            float(np.median([row["correlation"] or 0.0 for row in rows])), 3
        ),
        "CKA": [round(row["cka"], 3) for row in found.streams.to_pylist()],
        "aligned": [round(row["aligned"], 3) for row in found.streams.to_pylist()],
    }


def again(rows: list[dict[str, Any]], layer: int) -> float:
    """Share of a layer's features with a mutual match of 0.7 or more."""
    of = [row for row in rows if row["layer"] == layer]
    return round(sum(row["mutual"] and row["correlation"] >= 0.7 for row in of) / len(of), 3)


def measured(folder: Path, texts: int, recipe: ModelRecipe) -> dict[str, Any]:
    """Everything that is written."""
    models = {"default": PACKAGE, "second seed": folder / "second", "untrained": folder / "zero"}
    about = {
        "second seed": trained(recipe, models["second seed"]),
        "untrained": trained(UNTRAINED, models["untrained"]),
    }
    asked = list(sample(pupil_of(folder).source, texts, TEXTS_SEED))
    own = {
        name: ReplacementModel.load(str(model / "model"), transcoders="neurons")
        for name, model in models.items()
    }
    return {
        "models": about,
        "sentences": len(asked),
        "neurons": {
            name: alike(own["default"], other, asked)
            for name, other in own.items()
            if name != "default"
        },
    }


def main() -> None:
    """Train, measure, print and write."""
    torch.set_num_threads(1)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("file", nargs="?", type=output_file)
    arguments.add_argument("--quick", action="store_true", help="Few steps; writes no result.")
    arguments.add_argument("--stages", type=int, default=len(STAGES), help="End after so many.")
    given = arguments.parse_args()
    recipe, texts = replace(SECOND, stages=STAGES[: given.stages]), TEXTS
    if given.quick:
        recipe, texts = replace(SECOND, stages=(replace(STAGES[-1], steps=2),)), 10
    found = measured(given.folder, texts, recipe)
    print(json.dumps(found, indent=1))
    file = given.file or (None if given.quick else RESULTS / "universality.json")
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
