"""The optional kernel: the same numbers as torch's, and one line where it cannot be had."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tracer
from tests.random_models import PROMPT, replacement_model
from tracer import TraceError
from tracer.attribution import native, product

HERE = pytest.mark.skipif(
    native.missing() is not None, reason=f"no kernel for split products: {native.missing()}"
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@HERE
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1),
        (16, 16, 32),
        (17, 31, 33),
        (32, 32, 64),
        (43, 128, 100),
        (300, 70, 129),
        (5, 99, 7),
    ],
)
def test_the_kernel_gives_the_same_product(sizes: tuple[int, int, int], add: bool):
    rows, columns, inner = sizes
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 2 * inner)[:, :inner], torch.randn(columns, inner)
    base = torch.randn(rows, columns + 3)[:, :columns]
    exact = x.double() @ weight.double().T + (base.double() if add else 0)
    size = x.abs().double() @ weight.abs().double().T + 1
    found = native.kernel().add(x, weight, base if add else None)
    assert found.shape == (rows, columns)
    assert float(((found - exact).abs() / size).max()) < 2e-5
    assert not add or found.data_ptr() == base.data_ptr()


@HERE
def test_what_lies_beside_the_result_stays():
    room = torch.full((40, 40), 7.0)
    native.kernel().add(torch.randn(37, 50), torch.randn(33, 50), room[:37, :33].zero_())
    assert (room[37:] == 7).all()
    assert (room[:, 33:] == 7).all()


@HERE
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_a_trace_is_the_same_with_split_products(
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str
):
    monkeypatch.setattr(native, "WORTH_IT", 0)
    model = replacement_model(family, torch.float32, kind=kind)
    taken = []
    add = native.Kernel.add
    monkeypatch.setattr(
        native.Kernel, "add", lambda *given: (taken.append(len(given)), add(*given))[1]
    )
    plain = tracer.trace(model, PROMPT)
    assert not taken
    split = tracer.trace(model, PROMPT, split_products=True)
    assert {3, 4} <= set(taken)
    assert product.kernel.get() is None
    assert split.nodes["id"].to_pylist() == plain.nodes["id"].to_pylist()
    largest = abs(plain.effect).max()
    assert abs(split.effect - plain.effect).max() < 2e-5 * largest
    assert split.metadata["conservation"]["relative"] < 1e-4
    assert split.metadata["settings"]["split_products"] is True


@HERE
def test_other_products_are_left_alone():
    kernel = native.kernel()
    large = torch.zeros(1024, 1024)
    assert kernel.fits(large, large)
    assert not kernel.fits(large.double(), large.double())
    assert not kernel.fits(large.T, large)
    assert not kernel.fits(large[:1], large)


@HERE
def test_it_is_compiled_once(tmp_path: Path):
    native.kernel()
    (made,) = (tmp_path / "tracer").iterdir()
    stamp = made.stat().st_mtime_ns
    native._library.cache_clear()
    native.kernel()
    assert made.stat().st_mtime_ns == stamp


@HERE
def test_a_broken_cache_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    native.kernel()
    (made,) = (tmp_path / "tracer").iterdir()
    other = tmp_path / "other" / "tracer"
    other.mkdir(parents=True)
    (other / made.name).write_text("no library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(other.parent))
    native._library.cache_clear()
    with pytest.raises(TraceError, match=r"split_product-\w+\.so cannot be loaded, delete it"):
        native.kernel()


def test_a_processor_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(native.sys, "platform", "linux")
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    assert native.missing(cpuinfo) == f"{cpuinfo} cannot be read"
    cpuinfo.write_text("flags\t\t: avx512f avx512bw avx512_bf16 amx_tile\n")
    assert native.missing(cpuinfo) == "the processor has no amx_bf16"
    cpuinfo.write_text("flags\t\t: avx512f avx512bw avx512_bf16 amx_tile amx_bf16\n")
    assert native.missing(cpuinfo) is None
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    assert native.missing(cpuinfo) == "this is not Linux on x86-64"


def test_without_a_compiler_the_trace_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "missing", lambda: None)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(TraceError, match="no C compiler 'no-such-compiler'; install gcc"):
        tracer.trace(replacement_model(), PROMPT, split_products=True)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho unknown option >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(native, "missing", lambda: None)
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(TraceError, match="unknown option"):
        tracer.trace(replacement_model(), PROMPT, split_products=True)
    assert list((tmp_path / "tracer").iterdir()) == []


class Written:
    """Stands for the compiled library: notes what it is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[int, ...]] = {}
        for name in ("split_ready", "split_room", "split_product"):
            setattr(self, name, self.noted(name))

    def noted(self, name: str) -> Callable[..., int]:
        def call(*arguments: int) -> int:
            self.asked[name] = arguments
            return 0

        return call


@pytest.mark.parametrize("add", [False, True])
def test_the_kernel_is_told_places_strides_and_sizes_in_its_order(add: bool):
    library = Written()
    x, weight = torch.zeros(3, 12)[:, :7], torch.zeros(5, 7)
    base = torch.zeros(3, 9)[:, :5] if add else None
    out = native.Kernel(library).add(x, weight, base)  # type: ignore[arg-type]
    assert out.shape == (3, 5)
    assert library.asked["split_room"] == (3, 5, 7)
    told = [x.data_ptr(), 12, weight.data_ptr(), 7, out.data_ptr(), 9 if add else 5]
    assert [*library.asked["split_product"][:-1]] == [*told, 3, 5, 7, add]
    assert library.asked["split_product"][-1] % native.ALIGNMENT == 0
