"""How heads form: scores of the embedded model's heads over the first stages of its training.

    python -m benchmarks.head_formation train FOLDER [--rows 16] [--steps 4000 600]
    python -m benchmarks.head_formation score FOLDER [--output FILE.json]

The first trains by the recipe (replacement_models/tiny/recipe/train_model.py), one thread, and
writes checkpoints `FOLDER/step-00000` and so on; fewer rows and steps take less than the hour of a
core that the recipe's take. The second scores them and writes JSON and a plot beside it. Of any
checkpoints `tracer heads --checkpoint A --checkpoint B -o plot.svg` draws such a plot.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import tracer
from benchmarks.output import RESULTS, output_file
from graphs.pictures import charts
from replacement_models.tiny.recipe.corpus import whole_words
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.train import first_source
from replacement_models.tiny.recipe.train_model import (
    ModelRecipe,
    Pupil,
    Stage,
    StateMeans,
    batches,
    new_model,
    optimizers,
    rate,
    step_loss,
)

EVERY = (100, 50)
"""Steps of each stage after which a checkpoint is written."""
KINDS = ("previous", "induction", "duplicate", "successor", "name_mover")
MOMENTUM, NEWTON_SCHULZ, ITERATIONS = 0.95, (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """torch's, but in float32: its bfloat16 takes four times a step's time on old processors."""

    def __init__(self, known: torch.optim.Optimizer) -> None:
        [group] = known.param_groups
        super().__init__(group["params"], {name: group[name] for name in ("lr", "weight_decay")})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix along its orthogonalised momentum."""
        for group in self.param_groups:
            for matrix in group["params"]:
                held = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                held.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(held, MOMENTUM))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                high, wide = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * max(1, high / wide) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with all singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if tall else found


def steps(
    model: GPT2LMHeadModel, recipe: ModelRecipe, stage: Stage, pupil: Pupil
) -> Iterator[float]:
    """Train through one stage as the recipe does; the loss of every step."""
    first, *others = optimizers(model, recipe, stage)
    optims: list[torch.optim.Optimizer] = [Muon(first), *others]
    peaks = [optim.param_groups[0]["lr"] for optim in optims]
    means = StateMeans(pupil.source, pupil.tokenizer, recipe.width)
    for step, batch in enumerate(batches(recipe, stage, pupil)):
        loss = step_loss(model, batch, means, stage.agreement)
        loss.backward()  # type: ignore[no-untyped-call]
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * rate(step, stage, recipe.warmup)
            optim.step()
            optim.zero_grad()
        yield loss.item()


def train(folder: Path, rows: int, wanted: list[int]) -> None:
    """Write checkpoints of the first stages."""
    source, recipe = first_source(), ModelRecipe(rows=rows)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model")
    source = replace(source, words=whole_words(tokenizer))
    pupil = Pupil(tokenizer, source, source, folder)
    model, done, begin = new_model(recipe, tokenizer), 0, time.process_time()
    keep(model, tokenizer, folder, done)
    told = {"rows": rows, "steps": wanted}
    (folder / "training.json").write_text(json.dumps(told), encoding="utf-8")
    for stage, count, every in zip(recipe.stages, wanted, EVERY, strict=False):
        whole = replace(stage, steps=count)
        for step, loss in enumerate(steps(model, recipe, whole, pupil), start=done + 1):
            if (step - done) % every == 0:
                keep(model, tokenizer, folder, step)
                spent = time.process_time() - begin
                print(f"step {step}: loss {loss:.3f}, {spent:.0f} CPU seconds", flush=True)
        done += count


def keep(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path, step: int
) -> None:
    """Write a checkpoint that `tracer heads` loads."""
    place = folder / f"step-{step:05d}"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def score(folder: Path, output: Path) -> None:
    """Score every head of every checkpoint; JSON, and a plot of the highest of each kind."""
    found: list[dict[str, Any]] = []
    for place in sorted(folder.glob("step-*")):
        model = tracer.ReplacementModel.load(place, transcoders="neurons")
        rows = tracer.head_scores(model).to_pylist()
        found.append({"step": int(place.name.removeprefix("step-")), "heads": rows})
        best = {kind: max(row[kind] or 0.0 for row in rows) for kind in KINDS}
        print(
            found[-1]["step"], {kind: round(value, 3) for kind, value in best.items()}, flush=True
        )
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    told = {"training": training, "checkpoints": [rounded(one) for one in found]}
    output.write_text(json.dumps(told) + "\n", encoding="utf-8")
    output.with_suffix(".svg").write_text(plot(found, training["steps"][0]), encoding="utf-8")


def rounded(one: dict[str, Any]) -> dict[str, Any]:
    """Scores with four digits."""
    heads = [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in row.items()
        }
        for row in one["heads"]
    ]
    return one | {"heads": heads}


def plot(found: list[dict[str, Any]], first: int) -> str:
    """The highest score of each kind over the steps."""
    series = {
        kind.replace("_", " "): [max(row[kind] or 0.0 for row in one["heads"]) for one in found]
        for kind in KINDS
    }
    axis = (f"training step; repeats are frequent from {first} on", [one["step"] for one in found])
    return charts.lines("Heads of the embedded model as it trains", axis, "best head", series)


def main() -> None:
    """Train, or score."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs=2, default=[4000, 600])
    parser.add_argument("--output", type=output_file, default=RESULTS / "head_formation.json")
    args = parser.parse_args()
    if args.what == "train":
        train(args.folder, args.rows, args.steps)
    else:
        score(args.folder, args.output)


if __name__ == "__main__":
    main()
