"""Products of all positions at once, as on a GPU: the effects of those made one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from replacement_models import ReplacementModel
from tests.random_hybrids import hybrid
from tests.random_models import PROMPT, replacement_model
from tracer.attribution import chunks, local_model, scoring, sweep, writers
from tracer.attribution.local_model import linearise
from tracer.attribution.sweep import Effects
from tracer.attribution.targets import TargetRows, feature_rows


def swept(monkeypatch: pytest.MonkeyPatch, at_once: bool, local: Any, rows: TargetRows) -> Effects:
    """Effects, with or without batches."""
    for module in (scoring, sweep):
        monkeypatch.setattr(module, "batched", lambda like: at_once)
    return sweep.sweep(local, rows)


def assert_at_once(
    monkeypatch: pytest.MonkeyPatch, model: ReplacementModel, dtype: torch.dtype = torch.float64
) -> None:
    """The effects on all features, with batches and without."""
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@torch.no_grad()
def test_batches_of_positions_give_the_same_effects(
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str, dtype: torch.dtype
):
    assert_at_once(monkeypatch, replacement_model(family, dtype, kind=kind), dtype)


@pytest.mark.parametrize("blocks", [1, 2, 8])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_long_patterns_are_mixed_in_batches_with_the_same_effects(
    monkeypatch: pytest.MonkeyPatch, family: str, blocks: int
):
    monkeypatch.setattr(sweep, "KEYS", 2)
    monkeypatch.setattr(sweep, "BLOCKS_OF_KEYS", blocks)
    assert_at_once(monkeypatch, replacement_model(family))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3])
def test_queries_before_a_block_of_keys_and_what_the_room_held_do_not_count(
    monkeypatch: pytest.MonkeyPatch, group: int, dtype: torch.dtype
):
    monkeypatch.setattr(sweep, "KEYS", 4)
    monkeypatch.setattr(sweep, "BLOCKS_OF_KEYS", 3)
    drawn = torch.Generator().manual_seed(group)
    pattern = torch.rand(2, 11, group, 11, generator=drawn).to(dtype)
    pattern *= torch.ones(11, 11, dtype=dtype).triu()[:, None]
    heads = torch.rand(2, group, 11, 5, generator=drawn).to(dtype)
    found = torch.full((2, 11, 5), float("nan"), dtype=dtype)
    sweep._mix_at_once(pattern, heads, found)
    expected = torch.einsum("vkgq,vgqc->vkc", pattern.double(), heads.double())
    near = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_next", "mamba2", "zamba2"])
@torch.no_grad()
def test_taps_and_factors_around_patterns_are_passed_at_once(
    monkeypatch: pytest.MonkeyPatch, family: str
):
    assert_at_once(monkeypatch, hybrid(family))


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
@torch.no_grad()
def test_what_features_write_passes_a_norm_at_once(
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str
):
    model = replacement_model(family, kind=kind)
    recording = model.record(PROMPT)
    expected = linearise(model, recording, skip_positions=1)
    monkeypatch.setattr(local_model, "needed", lambda device: True)
    monkeypatch.setattr(writers, "AT_ONCE", 3)
    found = linearise(model, recording, skip_positions=1)
    for one, other in zip(found.writers, expected.writers, strict=True):
        assert torch.equal(one.vectors, other.vectors)


class Counted(TorchDispatchMode):
    """Counts products, as they are asked for."""

    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func.overloadpacket.__name__ in ("mm", "bmm", "addmm_", "baddbmm_")
        return func(*args, **(kwargs or {}))


def products(
    monkeypatch: pytest.MonkeyPatch, at_once: bool, positions: int, family: str = "gpt2"
) -> int:
    """How many products a sweep makes."""
    model = (replacement_model if family == "gpt2" else hybrid)(family)
    recording = model.record([1 + number % 7 for number in range(positions)])
    local = linearise(model, recording, skip_positions=1)
    rows = feature_rows(model, recording, local, np.arange(len(local.features)))
    with Counted() as seen:
        swept(monkeypatch, at_once, local, rows)
    return seen.products


@pytest.mark.parametrize("family", ["gpt2", "qwen3_next"])
@torch.no_grad()
def test_longer_prompts_take_no_more_products(monkeypatch: pytest.MonkeyPatch, family: str):
    monkeypatch.setattr(chunks, "CHUNK", 10**6)
    monkeypatch.setattr(sweep, "KEYS", 2)
    monkeypatch.setattr(sweep, "BLOCKS_OF_KEYS", 2)
    few, more = (products(monkeypatch, True, positions, family) for positions in (4, 12))
    assert more == few
    assert products(monkeypatch, False, 12, family) > 2 * more
