"""What the benchmark of consensus circuits measures, beside plain sums and single interventions."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import tracer
from benchmarks import consensus
from benchmarks.consensus import distinctive, losses, summed_up
from replacement_models.tiny.recipe.behaviours import Prompt


def test_the_ratio_is_of_means_on_the_diagonal_and_beside_it():
    table = np.array([[6.0, 0.5, 0.1], [2.0, 1.0, 0.4], [0.0, 0.0, 3.0]])
    found = summed_up(["a", "b", "c"], [[(0, 1)], [], [(1, 2), (1, 3)]], table)
    assert found["diagonal"] == pytest.approx(10 / 3, abs=1e-4)
    assert found["beside"] == 0.5
    assert found["ratio"] == pytest.approx(20 / 3, abs=1e-3)
    assert found["circuits whose own behaviour loses most"] == 2
    assert found["by circuit"]["b"] == {
        "features": 0, "loss": 1.0, "most beside": "a", "its loss": 2.0
    }  # fmt: skip


def test_losses_of_all_circuits_in_one_pass_are_those_of_single_interventions():
    model = tracer.ReplacementModel.load()
    prompt = Prompt("the opposite of hot is", "cold")
    nodes = tracer.trace(model, prompt.text).nodes.to_pylist()
    ranked = sorted(nodes, key=lambda node: -node["influence"])
    places = [(one["layer"], one["feature"]) for one in ranked if one["kind"] == "feature"]
    circuits = [places[:6], [places[-1]]]
    found = losses(model, prompt, circuits)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    answer = tokenizer.encode("cold", add_special_tokens=False)[0]
    for loss, places in zip(found, circuits, strict=True):
        change = tracer.intervene(
            model,
            prompt.text,
            [
                tracer.Intervention(layer=layer, position=slice(1, None), feature=feature, scale=0)
                for layer, feature in places
            ],
            mode="free",
        )
        said = [
            float(torch.log_softmax(logits[-1].double(), -1)[answer])
            for logits in (change.base.logits, change.logits)
        ]
        assert loss == pytest.approx(said[0] - said[1], abs=1e-4)
    assert found[0] > 0.1


class Counted:
    """What `distinctive` reads of an aggregate."""

    def __init__(self, frequencies: dict[str, dict[tuple[int, int], float]]) -> None:
        rows = [
            {
                "kind": "feature", "group": group, "layer": layer, "name": str(number),
                "frequency": value,
            }
            for group, of in frequencies.items()
            for (layer, number), value in of.items()
        ]  # fmt: skip
        answers = [{**rows[0], "kind": "logit", "name": "answer", "frequency": 1.0}]
        self.nodes = pa.Table.from_pylist(rows + answers)


def test_distinctive_features_are_frequent_here_and_not_elsewhere():
    found = Counted(
        {
            "a": {(0, 1): 1.0, (1, 2): 0.6, (1, 3): 0.1},
            "b": {(0, 1): 1.0, (2, 4): 0.3},
            "c": {(0, 1): 0.9},
        }
    )
    assert distinctive(found, ["a", "b", "c"], 1) == [[(1, 2)], [(2, 4)], [(0, 1)]]
    assert distinctive(found, ["a", "b", "c"], 9) == [
        [(1, 2), (0, 1)],
        [(2, 4), (0, 1)],
        [(0, 1)],
    ]


@pytest.mark.parametrize(("asked", "count"), [(1.0, 2), (3.0, 4), (9.0, 4)])
def test_the_fewest_features_that_reach_what_is_asked_are_chosen(
    asked: float, count: int, monkeypatch: pytest.MonkeyPatch
):
    found = Counted({"a": {(0, 1): 1.0}, "b": {(0, 2): 1.0}})
    ratios = iter([2.0, 4.0, 3.5, 1.0])
    tables = [np.array([[ratio, 1.0], [1.0, ratio]]) for ratio in ratios]
    monkeypatch.setattr(consensus, "table", lambda *_: np.concatenate(tables))
    monkeypatch.setattr(consensus, "ASKED", asked)
    best, tried = consensus.chosen(None, found, {"a": [], "b": []})
    assert best == count
    assert tried == {"2": 2.0, "4": 4.0, "8": 3.5, "16": 1.0}
