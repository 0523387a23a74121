"""Pages say what was measured."""

import json

import pytest

from benchmarks.prompts_plan import CARDS, PRODUCTS, PROMPTS, REACHED, Measured, Plan, read
from docs.fill_many import consensus, measured, places
from docs.fill_readme import ROOT, between


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
