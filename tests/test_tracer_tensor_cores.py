"""Products on a GPU's tensor cores: refused without one; exact halves, nearly exact products."""

import pytest
import torch
from torch import Tensor

import tracer
from tests.random_models import PROMPT, replacement_model
from tracer import TraceError
from tracer.attribution import tensor_cores
from tracer.attribution.product import taking_products
from tracer.attribution.tensor_cores import ThreeProducts, halves, in_tf32, on_tensor_cores


def cut(x: Tensor) -> Tensor:
    """What a tensor core reads of a float32."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


def test_halves_add_up_exactly_and_the_larger_is_what_tensor_cores_have():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(1000) * 10.0**power for power in range(-20, 20)])
    for matrix in (x, x.view(-1, 8).T):
        large, small = halves(matrix)
        assert torch.equal(large + small, matrix)
        assert torch.equal(cut(large), large)
        assert bool((small.abs() <= matrix.abs() * 2.0**-11).all())


def test_three_products_of_what_tensor_cores_read_come_near_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(40, 300), torch.randn(50, 300)
    expected = x.double() @ weight.double().T
    (large, small), (heavy, light) = halves(x), halves(weight)
    parts = ((large, light), (small, heavy), (large, heavy))
    three = sum(cut(one).double() @ cut(other).double().T for one, other in parts)
    one = cut(x).double() @ cut(weight).double().T
    size = float(expected.abs().max())
    assert float((three - expected).abs().max()) / size < 1e-6
    assert float((one - expected).abs().max()) / size > 1e-4
    base = torch.randn(40, 50)
    found = ThreeProducts().add(x, weight, base.clone())
    torch.testing.assert_close(found, base + x @ weight.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_a_trace_by_three_products_is_the_same(kind: str):
    model = replacement_model("llama", torch.float32, kind=kind)
    expected = tracer.trace(model, PROMPT).effect
    with taking_products(ThreeProducts()):
        found = tracer.trace(model, PROMPT).effect
    assert 0 < abs(found - expected).max() < 1e-5 * abs(expected).max()


def test_the_precision_is_as_before_after_an_error():
    before = torch.get_float32_matmul_precision()
    with in_tf32():
        assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(ZeroDivisionError), in_tf32():
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("which", "device", "dtype", "said"),
    [
        ("tf32", "cpu", torch.float32, "tensor_cores: the model is on cpu, expected cuda; leave"),
        ("3xtf32", "cuda", torch.float64, "tensor_cores: the model is in float64, expected float"),
        ("fp8", "cuda", torch.float32, "tensor_cores is 'fp8', expected one of tf32, 3xtf32"),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(
    which: str, device: str, dtype: torch.dtype, said: str
):
    with pytest.raises(TraceError) as refused:
        on_tensor_cores(which, torch.device(device), dtype)
    assert str(refused.value).startswith(said)


def test_a_trace_without_a_gpu_refuses_and_records_nothing():
    model = replacement_model("gpt2", torch.float32)
    with pytest.raises(TraceError, match="tensor_cores: the model is on cpu"):
        tracer.trace(model, PROMPT, tensor_cores="tf32")


@pytest.mark.parametrize("which", tensor_cores.CHOICES)
def test_a_trace_says_how_far_its_targets_differ(monkeypatch: pytest.MonkeyPatch, which: str):
    """As if there were a GPU: main memory, which ignores TF32."""
    cpu, really = torch.device("cpu"), on_tensor_cores

    def anywhere(wanted: str | None, device: torch.device, dtype: torch.dtype):
        return really(wanted, torch.device("cuda") if device == cpu else device, dtype)

    monkeypatch.setattr("tracer.attribution.trace.on_tensor_cores", anywhere)
    monkeypatch.setattr(tensor_cores, "on_tensor_cores", anywhere)
    model = replacement_model("gpt2", torch.float32)
    graph = tracer.trace(model, PROMPT, tensor_cores=which)
    assert graph.metadata["settings"]["tensor_cores"] == which
    said = graph.metadata["tensor_cores"]
    assert said["products"] == which
    assert 0 <= said["deviation"] < 1e-5
    assert (said["deviation"] > 0) == (which == "3xtf32")
    assert "tensor_cores" not in tracer.trace(model, PROMPT).metadata
