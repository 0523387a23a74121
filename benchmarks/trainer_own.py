"""Our side of `trainers`, in a process of its own: `python -m benchmarks.trainer_own JOB.json`.

`tracer train`'s loop and defaults on the rows that all sides read. First features are the MLPs' own
neurons, which only this trainer takes from the model; thresholds are set on rows trained on.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainer_rows import Job, Rows
from replacement_models import ReplacementModel, save_transcoder
from replacement_models.training.config import TrainConfig
from replacement_models.training.fold import folded
from replacement_models.training.loop import Loop
from replacement_models.training.pool import generator
from replacement_models.training.product import chosen
from replacement_models.training.sparsity import calibrate
from replacement_models.training.start import started
from replacement_models.training.trainee import Batch
from replacement_models.training.wiring import Wiring

KINDS = {"tracer": "cross_layer", "tracer per-layer": "per_layer", "tracer sae": "sae"}
SAMPLE = 16_384
"""Rows that training starts from."""


@dataclass
class InOrder:
    """Batches as `Loop` takes them."""

    rows: Rows
    number: int = 0

    def __next__(self) -> Batch:
        """The next rows of the file."""
        inputs, outputs = self.rows.batch(self.number)
        self.number += 1
        return as_batch(inputs, outputs)


def as_batch(inputs: Any, outputs: Any) -> Batch:
    """Layer by layer."""
    return Batch(
        [one.contiguous() for one in inputs.unbind(1)],
        [one.contiguous() for one in outputs.unbind(1)],
    )


def config_of(job: Job) -> TrainConfig:
    """The loop's defaults, beside what all sides share."""
    return TrainConfig.of(
        {
            "dictionary": {
                "kind": KINDS[job.side], "features": job.features, "l0": job.setting,
            },
            "start": {"tokens": min(SAMPLE, job.tokens)},
            "optimiser": {"rate": job.rate},
            "run": {"tokens": job.tokens, "batch": job.batch},
        }
    )  # fmt: skip


def main() -> None:
    """Train, calibrate, write."""
    torch.set_num_threads(1)
    job = Job.read(sys.argv[1])
    config = config_of(job)
    sae = config.dictionary.kind == "sae"
    host = None if sae else ReplacementModel.without_dictionary(None).host
    rows = Rows(job)
    wiring = Wiring.of(config.dictionary, rows.layers)
    rows.start()
    sample = as_batch(*rows.part(0, config.start.tokens))
    trainee = started(config, wiring, host, sample, generator(config.run.seed, 10))
    like = trainee.b_dec[0].detach()
    loop = Loop(
        config, Path(), None, trainee, None, InOrder(rows), sample,
        chosen(config.run.precision, job.batch, job.features, like),
        generator(config.run.seed, 11),
    )  # fmt: skip
    while loop.done < config.steps:
        loop.step(next(loop.batches))
        loop.done += 1
    calibrate(loop.trainee, sample)
    save_transcoder(folded(loop.trainee, rows.layers, ""), Path(job.out) / "dictionary")
    rows.finish(precision=loop.precision)


if __name__ == "__main__":
    main()
