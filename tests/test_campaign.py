"""A slice of `python -m benchmarks.faults`: a few attacks of every class, and what counts."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks.attacks.trial import WrongError, deep, mutated_json, outcome
from benchmarks.faults import CLASSES, COUNTED, attacked
from graphs import GraphError

FEW = {"command lines": 4, "models": 3, "threads on one model": 2, "feature stores": 4}
"""Attacks of a class that takes long; of the others there are eight."""
RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.json"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSES)
def test_a_slice_of_the_campaign_finds_nothing(name: str):
    found = attacked(name, seed=3, each=FEW.get(name, 8))
    assert found["failures"] == []
    assert found["tried"] == found["refused"] + found["accepted rightly"]


def raising(error: BaseException) -> Callable[[], None]:
    def attack() -> None:
        raise error

    return attack


@pytest.mark.parametrize(
    ("attack", "result"),
    [
        (lambda: None, "accepted"),
        (raising(GraphError("one line")), "refused"),
        (raising(click.ClickException("one line")), "refused"),
        (raising(GraphError("two\nlines")), "failed"),
        (raising(WrongError("accepted")), "failed"),
        (raising(KeyError("a")), "failed"),
        (raising(RecursionError()), "failed"),
        (raising(SystemExit(1)), "failed"),
    ],
)
def test_an_attack_fails_unless_it_is_refused_in_one_line_or_rightly_accepted(
    attack: Callable[[], None], result: str
):
    assert outcome(attack)[0] == result


def test_an_attack_that_does_not_end_is_a_hang(monkeypatch: pytest.MonkeyPatch):
    def attack() -> None:
        while True:
            try:
                deep(1000)
            except Exception:
                continue

    monkeypatch.setattr("benchmarks.attacks.trial.LIMIT", 0.2)
    assert outcome(attack) == ("failed", "hang")


def test_mutated_json_is_another_value_and_leaves_the_first_as_it_was():
    value = {"a": [1, {"b": "c"}], "d": None}
    rng = np.random.default_rng(0)
    changed = [mutated_json(rng, value) for _ in range(50)]
    assert value == {"a": [1, {"b": "c"}], "d": None}
    assert len({repr(one) for one in changed}) > 30


@pytest.mark.skipif(not RESULT.is_file(), reason="the campaign's result is not there")
def test_the_campaign_tried_ten_thousand_and_none_failed():
    found = json.loads(RESULT.read_text())
    assert set(found["classes"]) == set(CLASSES)
    assert min(one["tried"] for one in found["classes"].values()) >= 500
    assert found["sums"]["tried"] >= 10_000
    assert found["sums"]["failed"] == 0
    assert set(found["sums"]) == set(COUNTED)
