"""Small training runs on the embedded model."""

from pathlib import Path
from typing import Any

import torch

from replacement_models.training.config import TrainConfig
from replacement_models.training.train import Run, train
from replacement_models.transcoder import Transcoder

BASE: dict[str, dict[str, Any]] = {
    "dictionary": {"features": 128, "l0": 4, "layers": [1, 2]},
    "start": {"tokens": 2048, "detector_steps": 40},
    "loss": {"dead_after": 10_000},
    "data": {
        "context": 32,
        "max_tokens": 12_000,
        "buffer": 4096,
        "held_out": 0.2,
        "held_out_tokens": 2048,
        "prompts": 2,
    },
    "run": {"tokens": 10_240, "batch": 256, "log_every": 20, "threads": 1},
}


def settings(output: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Fields by name, some in place of the usual ones."""
    found = {name: BASE.get(name, {}) | sections.get(name, {}) for name in {*BASE, *sections}}
    return {"output": str(output)} | found


def trained(output: Path, **sections: dict[str, Any]) -> Run:
    """A finished run."""
    return train(TrainConfig.of(settings(output, **sections)))


def same(first: Transcoder, second: Transcoder) -> bool:
    """Whether two dictionaries have the same weights, bit by bit."""
    return all(
        torch.equal(a.W_enc, b.W_enc)
        and torch.equal(a.b_enc, b.b_enc)
        and torch.equal(a.b_dec, b.b_dec)
        and torch.equal(_rows(a), _rows(b))
        and torch.equal(_threshold(a), _threshold(b))
        for a, b in zip(first.layers, second.layers, strict=True)
    )


def _threshold(layer: Any) -> torch.Tensor:
    """Of each feature; nothing where there are none."""
    return torch.as_tensor(getattr(layer.activation, "threshold", ()))


def _rows(layer: Any) -> torch.Tensor:
    found: torch.Tensor = layer.decoder.rows(torch.arange(len(layer.W_enc)))
    return found
