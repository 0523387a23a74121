"""What dictionaries of `trainers` are worth, measured alike for all sides."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.trainer_rows import Job
from replacement_models import ReplacementModel, load_transcoder
from replacement_models.replaced import Where, special_tokens
from replacement_models.training.config import TrainConfig
from replacement_models.training.finish import stands_in, worth
from replacement_models.training.harvest import Harvester
from replacement_models.training.pool import Batches
from replacement_models.training.pool import Rows as TextRows
from replacement_models.training.scales import Scale
from replacement_models.training.source import Source
from replacement_models.training.text import packed
from replacement_models.training.trainee import Batch
from replacement_models.transcoder import Transcoder
from tracer.training.train import score

OUTLIERS = 20.0
SHARED = 8
"""Rows of text a forward pass."""


@dataclass(eq=False)
class Text:
    """The embedded model on sentences of its own: rows to train on, and others to measure on."""

    folder: Path
    tokens: int
    """To train on."""
    held: int = 20_000
    """Tokens that figures are taken on, most."""
    prompts: int = 20
    """Beginnings of rows that graphs are traced on."""
    spoken: int = 64
    """Rows that the replaced model speaks."""

    @cached_property
    def model(self) -> ReplacementModel:
        """The embedded one."""
        return ReplacementModel.load()

    @cached_property
    def source(self) -> Source:
        """Its sentences, packed once."""
        wanted = self.tokens + 4 * self.held
        config = TrainConfig.of(
            {"data": {"max_tokens": wanted, "buffer": 32_768}, "run": {"tokens": wanted}}
        )
        text = packed(config, self.model, self.folder)
        rows = TextRows.of(len(text.tokens), 0.05, 512, config.run.seed)
        layers = tuple(range(len(self.model.host.blocks)))
        harvester = Harvester(self.model, config, layers, special_tokens(self.model))
        return Source(harvester, text.tokens, rows)

    @cached_property
    def where(self) -> Where:
        """What is replaced."""
        harvester = self.source.harvester
        return Where(
            skip_positions=harvester.config.data.skip_positions, keep_tokens=harvester.special
        )

    def features(self, asked: int) -> int:
        """Of a layer of a dictionary: as many as are asked for."""
        return asked

    def written(self, batch: int) -> Path:
        """The file of rows that every side reads, made once."""
        path = self.folder / "rows.npy"
        if path.is_file():
            return path
        host, stream = self.model.host, Batches(self.source, self.source.rows.chunks, batch, 0)
        shape = (self.tokens, 2, len(host.blocks), host.d_model)
        partial = path.with_suffix(".partial")
        data = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        for begin in range(0, self.tokens, batch):
            part = next(stream)
            for side, tensors in enumerate((part.inputs, part.outputs)):
                data[begin : begin + batch, side] = torch.stack(list(tensors), 1).numpy()
        data.flush()
        partial.rename(path)
        return path

    @cached_property
    def measured_on(self) -> Batch:
        """Activations of text that nobody trained on."""
        return self.source.of_rows(self.source.rows.held_out, self.held)

    @cached_property
    def asked(self) -> list[list[int]]:
        """Prompts out of that text."""
        rows = self.source.tokens[self.source.rows.held_out, :16]
        return [[int(token) for token in row] for row in rows[(rows >= 0).all(1)][: self.prompts]]

    def spoken_rows(self) -> Iterator[np.ndarray]:
        """Rows of that text without fill."""
        rows = self.source.tokens[self.source.rows.held_out[: self.spoken]]
        lengths = (rows >= 0).sum(1)
        for length in sorted(set(lengths.tolist())):
            some = rows[lengths == length][:, :length]
            for begin in range(0, len(some), SHARED):
                yield some[begin : begin + SHARED]

    def figures(self, transcoder: Transcoder, whole: bool = True) -> dict[str, Any]:
        """Means over layers, and layer by layer; the rest where the whole of it is asked for."""
        held = self.measured_on
        scales = [Scale.of(y, OUTLIERS) for y in held.outputs]
        layers = range(len(held.inputs))
        found = worth(transcoder, layers, scales, held, OUTLIERS, affine=False)
        figures = {
            "error": fmean(found.error), "l0": fmean(found.l0), "dead": fmean(found.dead),
            "layers": {"error": found.error, "l0": found.l0, "dead": found.dead},
        }  # fmt: skip
        if not whole:
            return figures
        model = ReplacementModel(self.model.host, transcoder.to("cpu", torch.float32))
        spoken = stands_in(model, self.spoken_rows(), self.where)
        return figures | spoken | score(model, self.asked)


def read(job: Job) -> Transcoder:
    """What a side wrote, reading and writing where all were trained whatever its files say."""
    found = load_transcoder(Path(job.out) / "dictionary")
    return type(found)(found.layers)
