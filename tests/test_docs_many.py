"""Pages say what was measured."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.many_prompts import of_one_width
from benchmarks.prompts_plan import CARDS, PRODUCTS, PROMPTS, REACHED, Measured, Plan, read
from docs.fill_many import consensus, measured, places
from docs.fill_readme import ROOT, between
from replacement_models import DenseDecoder, JumpReLU, load_transcoder
from replacement_models.tiny.recipe.facts import PACKAGE
from tests.dictionaries import computed


@pytest.mark.parametrize("place", list(places()), ids=" ".join)
def test_what_stands_on_the_page_is_what_was_measured(place: tuple[str, str]):
    page, mark = place
    found = between(mark).search((ROOT / page).read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == places()[place], "python -m docs.fill_many"


def test_every_behaviour_stands_in_the_table_of_circuits():
    rows = consensus().splitlines()
    for name in measured("consensus")["behaviours"]:
        assert sum(row.startswith(f"| {name} |") for row in rows) == 1


def test_the_plan_follows_from_what_was_counted():
    known = Measured.read()
    plan = Plan(known)
    case = next(
        one
        for one in read("attribution")["results"]
        if (one["shape"], one["kind"]) == ("gemma", "per_layer")
    )
    counted = case["ours"]["stages"]["gflop"]
    assert known.sweep + known.scores == pytest.approx(
        1e9 * (sum(counted.values()) - counted["other"])
    )
    whole = sum(plan.operations.values())
    assert plan.card(1e12) == pytest.approx(whole / (1e12 * REACHED))
    one, many = plan.hours(PRODUCTS["float32"]), plan.hours(PRODUCTS["float32"], CARDS)
    assert one == pytest.approx(PROMPTS * (plan.card(PRODUCTS["float32"]) + plan.host) / 3600)
    assert many == pytest.approx(one / CARDS * 2 / known.two_over_one)
    assert plan.hours(PRODUCTS["TF32"]) < one


def test_twice_the_rows_are_twice_the_sweep(monkeypatch: pytest.MonkeyPatch):
    known = Measured.read()
    before = Plan(known).operations
    monkeypatch.setattr("benchmarks.prompts_plan.ROWS", 2010)
    after = Plan(known).operations
    for name in before:
        times = 2 if name.startswith("sweep") else 1
        assert after[name] == pytest.approx(times * before[name])


def test_no_row_of_the_sweep_meets_more_than_all_layers_and_positions():
    """What is scaled from the count stays below what every row would cost everywhere."""
    from benchmarks.prompts_plan import LAYERS, POSITIONS, ROWS, TARGETS, WIDTH

    heads = 2048  # heads times their width, written out where several read the same keys
    most = 2 * WIDTH * 2 * heads * (ROWS + TARGETS) * LAYERS * POSITIONS
    found = Plan(Measured.read()).operations["sweep: attention"]
    assert most / 10 < found < most


def test_results_are_json_that_ends_with_a_line():
    for name in ("influence", "consensus", "many_prompts", "universality"):
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        assert text.endswith("}\n")
        json.loads(text)


def test_layers_are_made_one_width_by_features_that_never_fire():
    given = load_transcoder(PACKAGE / "clt").to("cpu", torch.float32)
    rows = given.layers[0].decoder.rows(torch.arange(3))
    narrow = replace(
        given.layers[0],
        W_enc=given.layers[0].W_enc[:3],
        b_enc=given.layers[0].b_enc[:3],
        decoder=DenseDecoder(rows),
        activation=JumpReLU(torch.ones(3)),
    )
    uneven = type(given)([narrow, *given.layers[1:]], read=given.read, write=given.write)
    found = of_one_width(uneven)
    assert {len(layer.W_enc) for layer in found.layers} == {uneven.features}
    x = [torch.randn(5, given.d_model, generator=torch.Generator().manual_seed(0))] * 4
    for (active, got), (expected, wanted) in zip(
        zip(*computed(found, x), strict=True), zip(*computed(uneven, x), strict=True), strict=True
    ):
        assert torch.equal(active[:, : expected.shape[1]], expected)
        assert not active[:, expected.shape[1] :].any()
        torch.testing.assert_close(got, wanted)
