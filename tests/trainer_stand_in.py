"""A trainer that learns nothing: `python -m tests.trainer_stand_in JOB.json`.

Reads every row in order, or, named "backwards", from the end; writes an autoencoder whose features
fire the more often the smaller the setting is.
"""

import sys
from pathlib import Path

import torch

from benchmarks.trainer_rows import Job, Rows
from replacement_models import DenseDecoder, ReLU, TranscoderLayer, save_transcoder
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.sites import Stage

job = Job.read(sys.argv[1])
rows = Rows(job)
rows.start()
numbers = range(job.steps)
for number in reversed(numbers) if job.side == "backwards" else numbers:
    inputs, _ = rows.batch(number)
weight = torch.randn(job.features, rows.width, generator=torch.Generator().manual_seed(0))
bias = -job.setting / 2 - job.rate
layer = TranscoderLayer(
    W_enc=weight, b_enc=torch.full((job.features,), bias), decoder=DenseDecoder(weight[:, None]),
    b_dec=torch.zeros(rows.width), activation=ReLU(), stage=Stage.RESID_PRE,
)  # fmt: skip
save_transcoder(SparseAutoencoder([layer]), Path(job.out) / "dictionary")
rows.finish()
