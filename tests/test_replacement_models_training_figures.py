"""Short runs of every kind write down the same figures as ever: what no law says of training.

`python -m tests.test_replacement_models_training_figures` writes tests/data/trained anew; look at
what changed before you commit it.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from replacement_models.formats import load_transcoder
from replacement_models.training.journal import FILE, entries
from tests.training_runs import trained

FIGURES = Path(__file__).with_name("data") / "trained"
BRIEF: dict[str, dict[str, Any]] = {
    "dictionary": {"features": 96},
    "start": {"tokens": 1024, "detector_steps": 20},
    "loss": {"dead_after": 512, "revive_every": 3},
    "data": {"max_tokens": 6000, "held_out_tokens": 1024, "prompts": 0},
    "run": {"tokens": 1536, "batch": 128, "log_every": 3, "precision": "float32"},
}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "cross_layer": {"dictionary": {"kind": "cross_layer", "layers": [0, 1, 3], "l0": [3, 4, 5]}},
    "tied": {
        "dictionary": {"kind": "cross_layer", "tied": True, "span": 2, "layers": [1, 2]},
        "start": {"features": "random"},
        "loss": {"penalty": "tanh_quad", "frequent": 0.02},
    },
    "skip": {
        "dictionary": {"skip": True, "activation": "topk"},
        "start": {"features": "data"},
        "run": {"seed": 3},
    },
    "batch_topk": {
        "dictionary": {"activation": "batch_topk", "prefixes": [24, 48], "widths": [96, 64]},
        "start": {"features": "clusters"},
    },
    "relu": {
        "dictionary": {"activation": "relu", "read": "residual"},
        "loss": {"penalty": "l1", "gain": 3.0},
        "optimiser": {"clip": 0.1, "warmup": 0.5},
    },
    "gated": {
        "dictionary": {"kind": "sae", "site": "attn_out", "activation": "gated"},
        "start": {"decoder": False},
    },
    "divergence": {
        "dictionary": {"kind": "cross_layer", "layers": None},
        "loss": {"nudge": 0.0, "pre_activation": 0.1, "aux": 0.5, "aux_k": 8},
        "divergence": {"share": 0.5, "weight": 0.5, "sharp": 0.7, "rows": 2},
        "run": {"measure_every": 6},
    },
    "dense": {"run": {"sparse_below": 0.0}, "data": {"skip_positions": 3, "cache_type": "float16"}},
}
CLOCK = ("tokens_per_second", "cpu_seconds", "seconds")


def figures_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """Lines of a brief run's log, less what a clock tells; how large the weights are at its end."""
    sections = {key: BRIEF.get(key, {}) | RUNS[name].get(key, {}) for key in {*BRIEF, *RUNS[name]}}
    run = trained(folder / "run", **sections)
    lines = [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in entries(folder / "run" / FILE)
    ]
    sizes = {}
    for number, layer in enumerate(load_transcoder(run.transcoder).layers):
        rows = layer.decoder.rows(torch.arange(len(layer.W_enc)))
        parts = {"W_enc": layer.W_enc, "W_dec": rows, "b_enc": layer.b_enc, "b_dec": layer.b_dec}
        sizes[f"layer {number}"] = [float(part.abs().sum()) for part in parts.values()]
    return [*lines, sizes]


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Numbers by where they stand."""
    if isinstance(value, dict):
        value = list(value.items())
    elif isinstance(value, list):
        value = list(enumerate(value))
    else:
        return {name: value}
    return {key: one for at, part in value for key, one in flat(part, f"{name}.{at}").items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_writes_down_the_same_figures(name: str, tmp_path: Path):
    kept = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    assert flat(figures_of(name, tmp_path)) == pytest.approx(flat(kept), rel=2e-3, abs=2e-5)


def main() -> None:
    """Write the figures of all runs."""
    FIGURES.mkdir(exist_ok=True)
    for name in RUNS:
        with TemporaryDirectory() as folder:
            lines = ",\n".join(json.dumps(line) for line in figures_of(name, Path(folder)))
        (FIGURES / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
