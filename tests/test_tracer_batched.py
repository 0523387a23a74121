"""Products of all positions at once, as on a GPU: the effects of those made one by one."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.random_models import PROMPT, replacement_model
from tracer.attribution import scoring, sweep
from tracer.attribution.local_model import linearise
from tracer.attribution.sweep import Effects
from tracer.attribution.targets import TargetRows, feature_rows


def swept(monkeypatch: pytest.MonkeyPatch, at_once: bool, local: Any, rows: TargetRows) -> Effects:
    """Effects, with or without batches."""
    for module in (scoring, sweep):
        monkeypatch.setattr(module, "batched", lambda like: at_once)
    return sweep.sweep(local, rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@torch.no_grad()
def test_batches_of_positions_give_the_same_effects(
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str, dtype: torch.dtype
):
    model = replacement_model(family, dtype, kind=kind)
    recording = model.record(PROMPT)
    for local in (
        linearise(model, recording, skip_positions=1),
        linearise(model, recording, skip_positions=0, plain=True),
    ):
        rows = feature_rows(model, recording, local, np.arange(len(local.features)))
        one_by_one = swept(monkeypatch, False, local, rows)
        at_once = swept(monkeypatch, True, local, rows)
        near = 1e-12 if dtype == torch.float64 else 1e-5
        for name in ("sources", "constant"):
            expected, found = getattr(one_by_one, name), getattr(at_once, name)
            torch.testing.assert_close(found, expected, rtol=near, atol=near)


def products(monkeypatch: pytest.MonkeyPatch, at_once: bool, positions: int) -> int:
    """How many products a sweep makes."""
    model = replacement_model("gpt2")
    recording = model.record([1 + number % 7 for number in range(positions)])
    local = linearise(model, recording, skip_positions=1)
    rows = feature_rows(model, recording, local, np.arange(len(local.features)))
    with torch.profiler.profile() as seen:
        swept(monkeypatch, at_once, local, rows)
    names = ("aten::mm", "aten::bmm", "aten::addmm_")
    return sum(one.count for one in seen.key_averages() if one.key in names)


@torch.no_grad()
def test_longer_prompts_take_no_more_products(monkeypatch: pytest.MonkeyPatch):
    few, more = (products(monkeypatch, True, positions) for positions in (4, 12))
    assert more == few
    assert products(monkeypatch, False, 12) > 2 * more
