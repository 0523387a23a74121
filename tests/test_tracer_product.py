"""Products of traces: by whatever way, of whatever layout, the same; and on record."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tracer
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import host_of
from replacement_models.speed import few_rows, ways
from replacement_models.speed.ways import WAYS
from tests.chosen_ways import always, every_product_earns
from tests.random_models import FAMILIES, PROMPT, language_model, replacement_model
from tracer import TraceError
from tracer.attribution import product, sweep


def saved(graph: AttributionGraph, folder: Path) -> dict[str, bytes]:
    """The files of a graph."""
    graph.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def watch_weights(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each weight that oneDNN gets from now on is one that it is fast with."""
    seen: list[bool] = []
    plain, add = ways._onednn, ways._onednn_add

    def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(weight.is_contiguous() or weight.T.is_contiguous())
        return plain(x, weight, bias)

    def onednn_add(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        seen.append(weight.is_contiguous() or weight.T.is_contiguous())
        return add(base, x, weight)

    monkeypatch.setattr(ways, "_onednn", onednn)
    monkeypatch.setattr(ways, "_onednn_add", onednn_add)
    return seen


@pytest.mark.parametrize("wanted", [("onednn",), ("onednn turned", "onednn")], ids=lambda w: w[0])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_of_a_trace_reaches_onednn_with_strides_that_it_is_slow_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, wanted: tuple[str, ...]
):
    model = replacement_model(family, torch.float32)
    plain = tracer.trace(model, PROMPT)
    always(monkeypatch, tmp_path, *wanted)
    every_product_earns(monkeypatch)
    monkeypatch.setattr(few_rows, "LARGE", 1)
    monkeypatch.setattr(sweep, "KEYS", 2)
    seen = watch_weights(monkeypatch)
    found = tracer.trace(model, PROMPT)
    assert seen
    assert all(seen)
    assert set(found.metadata["versions"]["products"].values()) <= {"torch", *wanted}
    difference = abs(found.effect - plain.effect).max()
    assert difference < 1e-4 * abs(plain.effect).max()


def test_nor_does_one_of_a_models_neurons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    host = language_model("llama", torch.float32)
    always(monkeypatch, tmp_path, "onednn")
    every_product_earns(monkeypatch)
    seen = watch_weights(monkeypatch)
    model = ReplacementModel.from_huggingface(host, None, neurons(host_of(host)))
    tracer.trace(model, PROMPT)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_adds_to_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str):
    always(monkeypatch, tmp_path, way)
    every_product_earns(monkeypatch)
    torch.manual_seed(0)
    x, weight, base = torch.randn(8, 24), torch.randn(9, 3, 24)[:, 1], torch.randn(8, 9)
    expected = base + x @ weight.T
    for found in (
        product.add_product(base.clone(), x, weight),
        base + product.product(x, weight),
        base + product.scores_product(x, weight),
    ):
        assert float((found - expected).abs().max()) < 1e-5
    assert product.product(x, weight).is_contiguous()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "onednn"])
def test_what_is_added_goes_the_way_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
):
    """Torch's own adds in place: nothing is made beside."""
    always(monkeypatch, tmp_path, way)
    every_product_earns(monkeypatch)
    monkeypatch.setitem(WAYS, way, lambda x, weight: torch.full((len(x), len(weight)), 7.0))  # type: ignore[arg-type]
    base = torch.ones(8, 9)
    found = product.add_product(base, torch.ones(8, 24), torch.ones(9, 24))
    assert found.unique().tolist() == [25.0 if way == "torch" else 8.0]
    assert found.data_ptr() == base.data_ptr()


@pytest.mark.parametrize("shapes", [((0, 4), (5, 4)), ((3, 4), (0, 4)), ((3, 0), (5, 0))])
def test_products_of_nothing_are_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes):
    asked = always(monkeypatch, tmp_path, "onednn")
    every_product_earns(monkeypatch)
    x, weight = map(torch.zeros, shapes)
    assert torch.equal(product.product(x, weight), torch.zeros(len(x), len(weight)))
    assert not asked


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
):
    asked = always(monkeypatch, tmp_path, "onednn")
    every_product_earns(monkeypatch)
    x, weight = torch.ones(8, 24, dtype=dtype), torch.ones(9, 24, dtype=dtype)
    assert torch.equal(product.product(x, weight), x @ weight.T)
    assert not asked


def test_small_products_measure_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = always(monkeypatch, tmp_path, "onednn")
    graph = tracer.trace(replacement_model("llama", torch.float32), PROMPT)
    assert not asked
    assert graph.metadata["versions"]["products"] == {}


def test_a_trace_with_the_choices_on_record_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    model = replacement_model("llama", torch.float32)
    every_product_earns(monkeypatch)
    monkeypatch.setattr(few_rows, "LARGE", 1)
    always(monkeypatch, tmp_path / "cache", "blocks", "onednn")
    first = tracer.trace(model, PROMPT)
    record = first.metadata["versions"]["products"]
    assert {"blocks", "onednn"} <= set(record.values())
    expected = saved(first, tmp_path / "first.graph")

    asked = always(monkeypatch, tmp_path / "cache", "torch")  # another process, the same cache
    assert saved(tracer.trace(model, PROMPT), tmp_path / "cached.graph") == expected
    (tmp_path / "cache" / "products.json").unlink()
    asked = always(monkeypatch, tmp_path / "cache", "torch")
    again = tracer.trace(model, PROMPT, products=record)
    assert saved(again, tmp_path / "again.graph") == expected
    assert not asked
    other = tracer.trace(model, PROMPT)
    assert asked
    assert saved(other, tmp_path / "other.graph") != expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"the large ones": "torch"}, "'the large ones' is no class of products"),
        ({"map 16+ x 64+ by 64+, plain by plain, threads 1": "magic"}, "goes by 'magic'"),
    ],
)
def test_choices_that_cannot_be_had_are_refused(given: dict[str, str], words: str):
    with pytest.raises(TraceError, match=words):
        tracer.trace(replacement_model(), PROMPT, products=given)
