"""Toy models whose truth is known: superposition, and planted sparse features."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement_models import ModelError
from replacement_models.training.arrays import train_on
from replacement_models.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "training" / "superposition.py"
WIDTH, PLANTED, TOKENS, L0 = 32, 64, 40_000, 3.0


def config(**dictionary: Any) -> TrainConfig:
    return TrainConfig.of(
        {
            "dictionary": {"kind": "sae", "features": 96, "l0": L0} | dictionary,
            "start": {"tokens": 4096},
            "optimiser": {"rate": 3e-3},
            "loss": {"dead_after": 3000, "revive_every": 25},
            "data": {"buffer": 16_384},
            "run": {"tokens": 120_000, "batch": 256},
        }
    )


def planted() -> tuple[Tensor, Tensor]:
    """Directions (PLANTED, WIDTH), and tokens (TOKENS, WIDTH) that are sparse sums of them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(PLANTED, WIDTH, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    there = torch.rand(TOKENS, PLANTED, generator=generator) < L0 / PLANTED
    strength = there * (0.5 + torch.rand(TOKENS, PLANTED, generator=generator))
    return directions, strength @ directions


def recovered(directions: Tensor, decoder: Tensor) -> Tensor:
    """Cosine of each planted direction with the nearest decoder row."""
    rows = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return (directions @ rows.T).amax(1)


@pytest.mark.parametrize("activation", ["jump_relu", "batch_topk"])
def test_planted_features_are_found(activation: str):
    torch.set_num_threads(1)
    directions, x = planted()
    fitted = train_on(config(activation=activation), x)
    decoder = fitted.transcoder.decoder_rows(0, torch.arange(96))[:, 0]
    found = recovered(directions, decoder)
    assert float(found.mean()) > 0.9, found.mean()
    assert float((found > 0.9).float().mean()) > 0.8
    assert fitted.worth.error[0] < 0.2
    assert fitted.worth.l0[0] == pytest.approx(L0, rel=0.1)


def test_thresholds_are_right_where_twenty_tokens_are_held_out():
    torch.set_num_threads(1)
    x, asked = planted()[1], config()
    few = replace(asked.data, held_out=20 / TOKENS)
    short = replace(asked.run, tokens=20_000)
    fitted = train_on(replace(asked, data=few, run=short), x)
    assert fitted.worth.held_tokens == 20
    fired = fitted.transcoder.encode(0, x)[1].count_nonzero(1).float().mean()
    assert float(fired) == pytest.approx(L0, rel=0.03)


def test_thresholds_stay_where_that_is_asked_of_activations_in_hand_too():
    torch.set_num_threads(1)
    x, asked = planted()[1], config()
    asked = replace(asked, loss=replace(asked.loss, gain=0.0, nudge=0.0))
    moved, stayed = (
        train_on(replace(asked, run=replace(asked.run, tokens=4096, set_thresholds=move)), x)
        for move in (True, False)
    )
    assert moved.worth.l0[0] == pytest.approx(L0, rel=0.1)
    assert stayed.worth.l0[0] != pytest.approx(L0, rel=0.1)
    rows = (one.transcoder.layers[0].W_enc for one in (moved, stayed))
    assert torch.equal(*rows)


def test_superposition_is_laid_out_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["superposition", str(tmp_path / "toy.svg")])
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    lengths, gaps, cosines = (
        [float(value) for value in line.partition("[")[2].rstrip("]").split(", ")]
        for line in capsys.readouterr().out.splitlines()
    )
    assert min(lengths) > 0.9  # all five, in two dimensions
    assert min(gaps) > 60  # a pentagon
    assert min(cosines) > 0.95
    assert (tmp_path / "toy.svg").read_text().count("<circle") == names["SOUGHT"]


def test_what_does_not_go_together_is_refused():
    x = torch.randn(2000, 8)
    with pytest.raises(ModelError, match="an sae has none"):
        train_on(config(), x, x)
    with pytest.raises(ModelError, match="expected the shape of the inputs"):
        train_on(config(kind="per_layer"), x, x[:5])
    with pytest.raises(ModelError, match="at least two batches"):
        train_on(config(), x[:300])
