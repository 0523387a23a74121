"""Maps of a few rows: the same numbers by another way, and only where they fit."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from replacement_models.hosts.weights import store_outputs_first
from replacement_models.speed import few_rows
from replacement_models.speed.few_rows import fast_maps
from replacement_models.speed.ways import WAYS
from tests.chosen_ways import always
from tests.random_models import PROMPT, replacement_model
from tracer.attribution import product

CPU = torch.device("cpu")


def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `_fits` answers from now on."""
    answers: list[bool] = []
    fits = few_rows._fits

    def watched(*given: torch.Tensor | None) -> bool:
        answers.append(fits(*given))
        return answers[-1]

    monkeypatch.setattr(few_rows, "_fits", watched)
    return answers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [8, 12, 32, 48, 64])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_large_weight_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, way: str, bias: bool
):
    asked = always(monkeypatch, tmp_path, way)
    torch.manual_seed(0)
    layer = nn.Linear(1024, 2048, bias=bias)
    x = torch.randn(1, rows, 1024)
    expected, answers = layer(x), calls(monkeypatch)
    with fast_maps(rows, CPU):
        found = layer(x)
    assert answers == [True]
    assert len(asked) == 1
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert float((found - expected).abs().max()) < 1e-5


@torch.no_grad()
def test_a_map_whose_input_has_strides_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    torch.manual_seed(0)
    layer, x = nn.Linear(1024, 2048), torch.randn(2, 1024, 8).mT
    expected = layer(x)
    for way in WAYS:
        always(monkeypatch, tmp_path / way, way)
        with fast_maps(16, CPU):
            found = layer(x)
        assert float((found - expected).abs().max()) < 1e-5


def test_a_product_of_the_sweep_goes_through_blocks_where_they_are_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    taken: list[int] = []

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taken.append(len(x))
        return WAYS["blocks"](x, weight)

    always(monkeypatch, tmp_path, "blocks")
    monkeypatch.setattr(product, "WAYS", WAYS | {"blocks": watched})
    torch.manual_seed(0)
    weight = torch.randn(1024, 2048)
    for rows in (2, 16, 64):
        x = torch.randn(rows, 2048)
        expected = x.double() @ weight.double().T
        assert float((product.product(x, weight) - expected).abs().max()) < 1e-3
    assert taken == [16]


@torch.no_grad()
def test_weights_of_gpt2_are_stored_outputs_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    always(monkeypatch, tmp_path, "onednn")
    torch.manual_seed(0)
    module = Conv1D(2048, 1024)
    x = torch.randn(1, 8, 1024)
    before, expected = module.weight.clone(), module(x)
    store_outputs_first(nn.Sequential(module))
    assert torch.equal(module.weight, before)
    assert module.weight.T.is_contiguous()
    answers = calls(monkeypatch)
    with fast_maps(8, CPU):
        found = module(x)
    assert answers == [True]
    assert float((found - expected).abs().max()) < 1e-5


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="on the way"), fast_maps(8, CPU):
        raise ValueError("on the way")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("rows", "weight", "dtype"),
    [
        (1, (2048, 1024), torch.float32),
        (129, (2048, 1024), torch.float32),
        (8, (64, 64), torch.float32),
        (8, (2048, 1024), torch.float64),
        (8, (2048, 1024), torch.bfloat16),
    ],
)
def test_other_maps_are_left_alone(rows: int, weight: tuple[int, int], dtype: torch.dtype):
    assert not few_rows._fits(
        torch.zeros(rows, weight[1], dtype=dtype), torch.zeros(weight).to(dtype)
    )


def test_transposed_weights_are_left_alone():
    assert not few_rows._fits(torch.zeros(8, 2048), torch.zeros(2048, 1024).T)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_recording_is_the_same_either_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str
):
    always(monkeypatch, tmp_path, "onednn")
    model = replacement_model(family, torch.float32)
    plain = model.record(PROMPT)
    monkeypatch.setattr(few_rows, "LARGE", 1)
    answers = calls(monkeypatch)
    again = model.record(PROMPT)
    assert any(answers)
    assert torch.equal(plain.features.feature, again.features.feature)
    for one, other in zip(plain.residuals, again.residuals, strict=True):
        assert float((one - other).abs().max() / one.abs().max()) < 1e-5


def test_on_a_gpu_no_operator_is_watched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_rows, "FewRows", None)  # would be called
    before = torch.get_num_threads()
    with fast_maps(8, torch.device("cuda")):
        assert torch.get_num_threads() == before
