"""Planted sparse features for the autoencoders of `trainers`: more directions than dimensions.

Each feature has a direction of its own, drawn at random, fires by itself, some often and some
seldom, and as strongly as is drawn; what is read is their sum, with a little noise. So it is known
what there is to be found.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replacement_models.training.finish import worth
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Batch
from replacement_models.transcoder import Transcoder

WIDTH, PLANTED, L0, NOISE = 64, 192, 4.0, 0.05
ALIKE = 0.9
"""Cosine from which a feature counts as found."""


@dataclass(eq=False)
class Planted:
    """What is planted, by a seed."""

    folder: Path
    tokens: int
    held: int = 20_000
    seed: int = 0

    def features(self, asked: int) -> int:
        """Of a dictionary: twice as many as are planted, whatever other sides have."""
        return min(asked, 2 * PLANTED)

    @cached_property
    def directions(self) -> Tensor:
        """(PLANTED, WIDTH), of norm 1."""
        drawn = torch.Generator().manual_seed(self.seed)
        found = torch.randn(PLANTED, WIDTH, generator=drawn)
        return found / found.norm(dim=1, keepdim=True)

    def rows(self, count: int, seed: int) -> Tensor:
        """(count, WIDTH): sums of what fires; how often falls with a feature's number."""
        drawn = torch.Generator().manual_seed(seed)
        share = 1 / (10 + torch.arange(PLANTED))
        there = torch.rand(count, PLANTED, generator=drawn) < L0 * share / share.sum()
        strength = there * (0.5 + torch.rand(count, PLANTED, generator=drawn))
        noise = NOISE * torch.randn(count, WIDTH, generator=drawn) / WIDTH**0.5
        return strength @ self.directions + noise

    def written(self, batch: int) -> Path:
        """The file of rows that both sides read, made once."""
        path = self.folder / "planted.npy"
        if not path.is_file():
            rows = self.rows(self.tokens // batch * batch, self.seed + 1).numpy()
            partial = path.with_suffix(".partial.npy")
            np.save(partial, np.stack([rows, rows], 1)[:, :, None])
            partial.rename(path)
        return path

    def figures(self, coder: Transcoder, whole: bool = True) -> dict[str, Any]:
        """Error and L0 on rows of their own, and which planted directions are found again.

        Returns:
            Beside them `recovered`, the mean over planted directions of the cosine with the nearest
            decoder row, and `recovered_firmly`, the share of those above `ALIKE`.
        """
        held = self.rows(self.held, self.seed + 2)
        found = worth(coder, [0], [Scale.of(held, 20.0)], Batch([held], [held]), 20.0, affine=False)
        rows = coder.decoder_rows(0, torch.arange(len(coder.layers[0].b_enc)))[:, 0]
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)
        near = (self.directions @ rows.T).amax(1)
        return {
            "error": found.error[0], "l0": found.l0[0], "dead": found.dead[0],
            "recovered": float(near.mean()),
            "recovered_firmly": float((near > ALIKE).float().mean()),
        }  # fmt: skip
