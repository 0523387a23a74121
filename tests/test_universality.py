"""What the benchmark of two seeds trains with, and how it goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import universality
from benchmarks.universality import STAGES, Muon, again, orthogonal, trained
from replacement_models.tiny.recipe.train_model import ModelRecipe

SMALL = ModelRecipe(
    width=16, layers=1, heads=2, rows=2, context=32, seed=1,
    stages=tuple(replace(stage, steps=1) for stage in STAGES[:2]),
)  # fmt: skip


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 8)])
def test_directions_are_kept_and_lengths_made_alike(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = torch.diag(left.T @ orthogonal(matrix) @ right.T)
    assert float(inside.min()) > 0.5
    assert float(inside.max()) < 1.5


def test_a_step_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 12, generator=generator)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    optims = [
        Muon([weights[0]], 0.01, 0.1),
        torch.optim.Muon([weights[1]], lr=0.01, weight_decay=0.1),
    ]
    for _ in range(3):
        gradient = torch.randn(24, 12, generator=generator)
        for weight, optim in zip(weights, optims, strict=True):
            weight.grad = gradient.clone()
            optim.step()
    moved = [(weight.detach() - start).flatten() for weight in weights]
    assert float(torch.cosine_similarity(*moved, dim=0)) > 0.999  # torch multiplies in bfloat16
    assert float(moved[0].norm() / moved[1].norm()) == pytest.approx(1, abs=0.01)


def test_stages_done_stay_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, done = universality.run_stage, []

    def counted(model: object, recipe: object, stage: universality.Stage, pupil: object) -> None:
        done.append(stage.seed)
        run(model, recipe, stage, pupil)

    monkeypatch.setattr(universality, "run_stage", counted)
    found = trained(SMALL, tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert done == [20, 21]
    assert found["steps"] == 2
    assert set(found["answers right"]) >= {"one_hop", "opposite"}
    assert trained(SMALL, tmp_path) == found
    assert done == [20, 21]
    for name in ("about.json", "stage-1.json"):
        (tmp_path / name).unlink()
    trained(SMALL, tmp_path)
    assert done == [20, 21, 21]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_a_feature_is_found_again_where_its_match_is_mutual_and_close():
    rows = [
        {"layer": 0, "mutual": True, "correlation": 0.9},
        {"layer": 0, "mutual": True, "correlation": 0.6},
        {"layer": 0, "mutual": False, "correlation": 0.99},
        {"layer": 0, "mutual": True, "correlation": 0.7},
        {"layer": 1, "mutual": True, "correlation": 1.0},
    ]
    assert [again(rows, layer) for layer in (0, 1)] == [0.5, 1.0]
