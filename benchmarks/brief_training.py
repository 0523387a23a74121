"""Dictionaries trained for a moment on random prompts of a small model: part of `ground_truth`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tracer
from replacement_models import ReplacementModel

DOCUMENTS, BATCH = 1500, 256
SEEDS = (0, 1)
KINDS = ("per_layer", "cross_layer")
STARTS = ("neurons", "data")
"""First features: the MLPs' own neurons, `tracer train`'s default, or at tokens."""


@dataclass(frozen=True)
class Brief:
    """What dictionaries are trained for."""

    folder: Path
    """Of the model."""
    letters: Sequence[int]
    """Tokens that prompts are drawn from."""
    longest: int
    """Tokens of a prompt, BOS aside."""
    layers: Sequence[int]
    l0: Sequence[float]
    """Features a token, a layer each."""
    features: int = 32
    """Of a layer."""
    steps: int = 400

    def trained(
        self, kind: str, start: str, seed: int, scratch: Path
    ) -> tuple[ReplacementModel, float]:
        """The model with a dictionary, and the error that is left of MLPs."""
        file = scratch / "corpus.jsonl"
        rows = np.random.default_rng(0).choice(self.letters, (DOCUMENTS, self.longest)).tolist()
        file.write_text("".join(f"{json.dumps({'text': row})}\n" for row in rows), "utf-8")
        run = tracer.train(
            {
                "output": str(scratch / "run"),
                "model": str(self.folder),
                "dictionary": {
                    "kind": kind,
                    "features": self.features,
                    "layers": list(self.layers),
                    "l0": list(self.l0),
                },
                "start": {"features": start},
                "optimiser": {"rate": 3e-3},
                "data": {
                    "corpus": str(file),
                    "alone": True,
                    "context": self.longest + 1,
                    "buffer": 8 * BATCH,
                    "prompts": 0,
                },
                "run": {"tokens": self.steps * BATCH, "batch": BATCH, "seed": seed},
            }
        )
        count = json.loads((self.folder / "config.json").read_text("utf-8"))["num_hidden_layers"]
        elsewhere = None if len(self.layers) == count else "error"
        model = ReplacementModel.load(
            self.folder, run.transcoder, dtype="float64", elsewhere=elsewhere
        )
        return model, float(np.mean(run.worth.error))
