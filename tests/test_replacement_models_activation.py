"""When a feature fires, and how strongly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replacement_models import BatchTopK, JumpReLU, ModelError, ReLU, TopK

finite = st.floats(-8, 8, width=32)
rows = st.lists(finite, min_size=5, max_size=5).map(torch.tensor)


def test_relu_keeps_what_is_positive():
    hidden = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    assert ReLU()(hidden).tolist() == [0.0, 0.0, 0.5, 2.0]


def test_jump_relu_passes_strictly_above_each_features_threshold():
    act = JumpReLU(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]))
    hidden = torch.tensor([1.0, 1.0000001, 0.5, -0.5, -2.0])
    assert act(hidden).tolist() == [0.0, hidden[1].item(), 0.0, -0.5, 0.0]


def test_topk_keeps_the_largest_even_if_negative():
    hidden = torch.tensor([[-3.0, -1.0, -2.0], [5.0, 1.0, 2.0]])
    assert TopK(2)(hidden).tolist() == [[0.0, -1.0, -2.0], [5.0, 0.0, 2.0]]


def test_batch_topk_has_one_threshold_and_never_passes_what_is_negative():
    hidden = torch.tensor([-0.5, 0.2, 0.3, 0.4])
    assert BatchTopK(torch.tensor([0.3]))(hidden).tolist() == [0.0, 0.0, 0.0, hidden[3].item()]
    assert BatchTopK(torch.tensor([-1.0]))(hidden)[0] == 0


@given(rows, rows)
def test_jump_relu_gives_the_input_or_nothing(hidden: torch.Tensor, threshold: torch.Tensor):
    out = JumpReLU(threshold)(hidden)
    assert torch.equal(out != 0, (hidden > threshold) & (hidden != 0))
    assert torch.equal(out[out != 0], hidden[out != 0])


@given(rows)
def test_relu_is_jump_relu_at_zero_and_batch_topk_at_zero(hidden: torch.Tensor):
    expected = ReLU()(hidden)
    assert torch.equal(JumpReLU(torch.zeros(5))(hidden), expected)
    assert torch.equal(BatchTopK(torch.zeros(1))(hidden), expected)


@given(rows, finite)
def test_batch_topk_is_jump_relu_with_its_threshold_for_all(hidden: torch.Tensor, at: float):
    threshold = torch.tensor([at])
    expected = JumpReLU(threshold.clamp(min=0).expand(5))(hidden)
    assert torch.equal(BatchTopK(threshold)(hidden), expected)


@given(st.lists(rows, min_size=1, max_size=3).map(torch.stack), st.integers(1, 5))
def test_topk_takes_k_a_token_none_below_one_left_out(hidden: torch.Tensor, k: int):
    out = TopK(k)(hidden)
    for before, after in zip(hidden, out, strict=True):
        kept = after != 0
        assert kept.sum() <= k
        assert torch.equal(after[kept], before[kept])
        assert torch.equal(after.sort().values, TopK(k)(before).sort().values)
        assert after.sum() == pytest.approx(before.sort().values[-k:].sum().item(), abs=1e-4)


@pytest.mark.parametrize("act", [ReLU(), TopK(2)])
def test_what_has_no_parameters_moves_as_it_is(act: ReLU | TopK):
    assert act.to(torch.device("cpu"), torch.float64) == act


@pytest.mark.parametrize("kind", [JumpReLU, BatchTopK])
def test_thresholds_move_with_the_weights(kind: type):
    moved = kind(torch.tensor([0.5])).to(torch.device("cpu"), torch.float64)
    assert moved.threshold.dtype == torch.float64


@pytest.mark.parametrize("k", [0, -3])
def test_topk_of_nothing_is_refused(k: int):
    with pytest.raises(ModelError, match=f"k is {k}, expected at least 1"):
        TopK(k)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (JumpReLU(torch.zeros(4)), r"threshold has shape \(4,\), expected \(5,\)"),
        (JumpReLU(torch.zeros(1)), r"threshold has shape \(1,\), expected \(5,\)"),
        (BatchTopK(torch.zeros(5)), r"threshold has shape \(5,\), expected \(1,\)"),
        (TopK(6), "k is 6, but there are only 5 features"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(act: JumpReLU, message: str):
    with pytest.raises(ModelError, match=message):
        act.check(5)
    ReLU().check(5)
