"""Ways of products: all give the same, one is chosen for each class, and stays chosen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from replacement_models.speed import choices, ways
from replacement_models.speed.choice_file import ChoiceFile
from replacement_models.speed.choices import BUDGET, Choices, ProductClass, chosen, noted, refused
from replacement_models.speed.probe import _sample, fastest
from replacement_models.speed.ways import LAYOUTS, WAYS, gathered, layout

SHAPE = (24, 40)
NAME = "map 16+ x 64+ by 64+, plain by plain, threads 1"


def laid_out(rows: int, columns: int, name: str) -> Tensor:
    """A random matrix, in memory as named."""
    if name == "transposed":
        return torch.randn(columns, rows).T
    if name == "rows":
        return torch.randn(rows, 3, columns)[:, 1]
    if name == "columns":
        return torch.randn(columns, 2, rows)[:, 1].T
    if name == "steps":
        return torch.randn(rows, 2 * columns)[:, ::2]
    if name == "expanded":
        return torch.randn(1, columns).expand(rows, -1)
    assert name == "plain"
    return torch.randn(rows * columns + 7)[7:].view(rows, columns)


EVERY = (*LAYOUTS, "steps", "expanded")


@pytest.mark.parametrize("name", EVERY)
def test_a_layout_is_told_by_its_strides(name: str):
    assert layout(laid_out(*SHAPE, name)) == (name if name in LAYOUTS else None)
    assert layout(gathered(laid_out(*SHAPE, name))) == (name if name in LAYOUTS else "plain")


def test_a_single_row_or_column_is_contiguous_whatever_its_strides():
    assert layout(torch.randn(5, 3, 8)[2:3, 1]) == "plain"
    assert layout(torch.randn(8, 1).T) == "plain"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("of_x", EVERY)
@pytest.mark.parametrize("of_weight", EVERY)
def test_every_way_gives_the_same_for_every_layout(way: str, of_x: str, of_weight: str):
    torch.manual_seed(0)
    x, weight = laid_out(*SHAPE, of_x), laid_out(37, SHAPE[1], of_weight)
    expected = x.double() @ weight.double().T
    assert float((WAYS[way](gathered(x), gathered(weight)) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("of_weight", EVERY)
def test_onednn_is_given_no_weight_that_it_is_slow_with(
    monkeypatch: pytest.MonkeyPatch, of_weight: str
):
    given: list[Tensor] = []
    monkeypatch.setattr(ways, "_onednn", lambda x, weight, bias: given.append(weight))
    monkeypatch.setattr(ways, "_onednn_add", lambda base, x, weight: given.append(weight))
    weight = laid_out(*SHAPE, of_weight)
    ways.onednn_linear(torch.zeros(2, 40), weight)
    ways.onednn_add(torch.zeros(2, 24), torch.zeros(2, 40), weight)
    for one in given:
        assert one.is_contiguous() or one.T.is_contiguous()
        assert torch.equal(one, weight)


@given(
    purpose=st.sampled_from(list(choices.USES)),
    sizes=st.tuples(*[st.integers(1, 5000)] * 3),
    names=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
)
def test_a_class_is_read_as_it_was_written(
    purpose: str, sizes: tuple[int, int, int], names: tuple[str, str]
):
    rows, inner, columns = sizes
    x = torch.empty(1).as_strided((rows, inner), (0, 0))
    weight = torch.empty(1).as_strided((columns, inner), (0, 0))
    one = ProductClass.of(purpose, x, weight)._replace(x=names[0], weight=names[1])
    assert ProductClass.read(str(one)) == one
    assert one.rows <= rows < 4 * one.rows or one.rows == 4096
    assert one.distance(one) == 0
    assert "torch" in one.ways()


def test_small_products_are_offered_nothing_that_compiles():
    x, weight = torch.zeros(16, 64), torch.zeros(64, 64)
    assert not ways.COMPILED & set(ProductClass.of("few", x, weight).ways())


def test_a_choice_is_made_once_and_outlives_the_process(tmp_path: Path):
    asked: list[str] = []

    def probe(offered: list[str], x: Tensor, weight: Tensor, uses: int) -> str:
        asked.append("asked")
        return "blocks"

    path = tmp_path / "cache" / "products.json"
    x, weight = torch.zeros(16, 64), torch.zeros(64, 64)
    product = ProductClass.of("map", x, weight)
    for _ in range(2):
        made = Choices(ChoiceFile(path), probe)
        assert [made.way(product, x, weight) for _ in range(2)] == ["blocks", "blocks"]
    assert asked == ["asked"]
    assert json.loads(path.read_text())["ways"] == {NAME: "blocks"}
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "held",
    [
        "",
        "{",
        [1],
        {"kind": "tracer products 1"},
        {"kind": "tracer products 1", "ways": 3},
        {"kind": "tracer products 1", "ways": {"a map": "blocks"}},
        {"kind": "tracer products 1", "ways": {NAME: "magic"}},
        {"kind": "tracer products 1", "ways": {NAME: ["blocks"]}},
        {"kind": "another", "ways": {NAME: "blocks"}},
    ],
    ids=str,
)
def test_a_file_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, held: Any):
    path = tmp_path / "products.json"
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    x, weight = torch.zeros(16, 64), torch.zeros(64, 64)
    made = Choices(ChoiceFile(path), lambda *_: "torch turned")
    product = ProductClass.of("map", x, weight)
    assert made.way(product, x, weight) == "torch turned"
    assert ChoiceFile(path).read()[str(product)] == "torch turned"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    x, weight = torch.zeros(16, 64), torch.zeros(64, 64)
    made = Choices(ChoiceFile(tmp_path / "file" / "products.json"), lambda *_: "blocks")
    assert made.way(ProductClass.of("map", x, weight), x, weight) == "blocks"


def test_the_file_lies_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ChoiceFile().add("name", "way")
    (path,) = (tmp_path / "tracer").glob("products-*.json")
    assert ChoiceFile(path).read() == {"name": "way"}


def test_measuring_ends_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, BUDGET])
    monkeypatch.setattr(choices, "thread_time", lambda: next(clock))
    answers = iter(["blocks"])
    made = Choices(ChoiceFile(tmp_path / "products.json"), lambda *_: next(answers))
    weight = torch.zeros(64, 64)
    for rows, expected in ((16, "blocks"), (4, "blocks"), (64, "torch")):
        x = torch.zeros(rows, 64)
        assert made.way(ProductClass.of("map", x, weight), x, weight) == expected


@pytest.mark.parametrize("of_x", EVERY)
@pytest.mark.parametrize("of_weight", EVERY)
def test_a_probe_times_what_lies_in_memory_as_the_product_does(of_x: str, of_weight: str):
    x, weight = laid_out(3000, 640, of_x), laid_out(2000, 640, of_weight)
    some, parts = _sample(x, weight)
    for whole, part in ((x, some), (weight, parts[0])):
        assert len(part) < len(whole)
        assert layout(part) == (layout(whole) or "plain")
        assert torch.equal(part, whole[: len(part)])
    assert {one.shape for one in parts} == {parts[0].shape}


def test_a_probe_answers_with_one_of_the_ways():
    x, weight = torch.randn(16, 64), torch.randn(64, 64)
    assert fastest(list(WAYS), x, weight, 3) in WAYS


def test_what_is_used_is_noted_and_what_is_given_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = Choices(ChoiceFile(tmp_path / "products.json"), lambda *_: "blocks")
    monkeypatch.setattr(choices, "process", made)
    x, weight = torch.zeros(16, 64), torch.zeros(64, 64)
    with noted() as used:
        assert chosen("map", x, weight) == "blocks"
    assert used == {NAME: "blocks"}
    with noted({NAME: "torch"}) as used:
        assert chosen("map", x, weight) == "torch"
    assert used == {NAME: "torch"}
    assert chosen("map", x, weight) == "blocks"


def test_a_list_of_choices_is_checked():
    assert refused({NAME: "torch"}) is None
    assert "'a map' is no class" in (refused({"a map": "torch"}) or "")
    assert "goes by 'magic', expected one of torch" in (refused({NAME: "magic"}) or "")
