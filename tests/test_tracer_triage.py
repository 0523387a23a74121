"""Triage of a dataset's graphs, and the check in one pass that it makes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import tracer
from graphs import AttributionGraph, GraphError
from graphs.collections.stability import stability, stable_share
from replacement_models import ReplacementModel
from tests.test_cli import SMALL, defaults, python_defaults, refused, succeed
from tests.test_graphs_aggregate import written
from tracer import GraphDataset, Intervention, TraceError
from tracer.datasets.triage import PARTS
from tracer.validation import spot_check as spot
from tracer.validation.spot_check import spot_check

ASKED = [[1, 7, 12, 30, 5], [1, 9, 3, 4], [999999], [1, 33, 2, 17, 8, 6], [1, 5, 5, 5]]
FAILED = 2


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.load(SMALL[1], SMALL[3])


@pytest.fixture(scope="module")
def dataset(model: ReplacementModel, tmp_path_factory: pytest.TempPathFactory) -> GraphDataset:
    place = tmp_path_factory.mktemp("many") / "graphs"
    return tracer.trace_many(model, ASKED, place, max_features=60)


def plain_agreement(model: ReplacementModel, graph: AttributionGraph, count: int) -> float:
    """The same with an intervention a feature."""
    rows = graph.nodes.to_pylist()
    target = max((r for r in rows if r["kind"] == "logit"), key=lambda r: r["probability"])
    features = [r for r in rows if r["kind"] == "feature"]
    features.sort(key=lambda r: (-r["influence"], r["id"]))
    at = {round(x) for x in np.linspace(0, len(features) - 1, min(count, len(features)))}
    some, falls = [features[x] for x in sorted(at)], []
    for row in some:
        place = {name: row[name] for name in ("layer", "position", "feature")}
        change = tracer.intervene(
            model, graph.metadata["token_ids"], [Intervention(**place, value=0.0)], mode="free"
        )
        before, after = (one[-1].double() for one in (change.base.logits, change.logits))
        fall = (before - before.mean()) - (after - after.mean())
        falls.append(abs(float(fall[target["token"]])))
    return float(spearmanr([row["influence"] for row in some], falls).statistic)


def test_the_check_is_the_rank_correlation_of_single_interventions(
    model: ReplacementModel, dataset: GraphDataset
):
    for number in (0, 3):
        graph = dataset.graph(number)
        found = spot_check(model, graph, 12)
        assert found == pytest.approx(plain_agreement(model, graph, 12), abs=1e-6)
        assert found is not None
        assert -1 <= found <= 1


def test_the_check_says_nothing_where_it_cannot(model: ReplacementModel, dataset: GraphDataset):
    assert spot_check(model, dataset.graph(0), 2) is None
    difference = tracer.trace(model, ASKED[0], targets=[tracer.Difference(5, 7)], max_features=20)
    assert spot_check(model, difference) is None


def test_usefulness_is_the_mean_of_what_is_known_and_sorts(dataset: GraphDataset):
    rows = tracer.triage(dataset).to_pylist()
    about = {row["prompt"]: row for row in dataset.prompts.to_table().to_pylist()}
    assert sorted(row["prompt"] for row in rows) == [0, 1, 3, 4]
    for row in rows:
        graph, said = dataset.graph(row["prompt"]), about[row["prompt"]]
        assert row["completeness"] == said["traced_completeness"]
        assert row["covered"] == 1 - said["uncovered"]
        assert row["stability"] == stable_share(stability(graph))
        assert row["agreement"] is None
        assert row["usefulness"] == pytest.approx(np.mean([row[name] for name in PARTS[:3]]))
        assert (row["text"], row["answer"]) == (said["text"], said["answer"])
    useful = [row["usefulness"] for row in rows]
    assert useful == sorted(useful, reverse=True)
    assert len(set(useful)) == len(useful)


def test_with_the_model_agreement_is_a_part(model: ReplacementModel, dataset: GraphDataset):
    told: list[tuple[int, int]] = []
    with_model = tracer.triage(dataset, model, 8, lambda *one: told.append(one)).to_pylist()
    assert told == [(at, 4) for at in range(1, 5)]
    for row in with_model:
        found = spot_check(model, dataset.graph(row["prompt"]), 8)
        assert found is not None
        assert row["agreement"] == max(0.0, found)
        assert row["usefulness"] == pytest.approx(np.mean([row[name] for name in PARTS]))


def test_what_cannot_be_triaged_is_refused(
    model: ReplacementModel, dataset: GraphDataset, tmp_path: Path
):
    with pytest.raises(TraceError, match="checks is 2, expected 3 or more features"):
        tracer.triage(dataset, model, 2)
    other = written(tmp_path / "other")
    with pytest.raises(TraceError, match="was traced with other weights than the model's"):
        tracer.triage(other, model)
    failed = tracer.trace_many(model, [[999999]], tmp_path / "failed")
    with pytest.raises(GraphError, match="holds no graph yet: none of its prompts was traced"):
        tracer.triage(failed)


def test_the_command_prints_and_gives_what_python_gives(
    model: ReplacementModel, dataset: GraphDataset
):
    place = str(dataset.path)
    rows = tracer.triage(dataset, model, 9).to_pylist()
    assert json.loads(succeed("triage", place, "--checks", "9", "--json", *SMALL)) == rows
    text = succeed("triage", place, "--checks", "9", "--top", "2", *SMALL)
    assert text.startswith("4 graphs, 2 listed, the most useful first\n")
    best = rows[0]
    shown = "\t".join(f"{best[name]:.3f}" for name in ("usefulness", *PARTS))
    assert f"\n{best['prompt']}\t" in text
    assert shown in text
    alone = tracer.triage(dataset).to_pylist()
    assert json.loads(succeed("triage", place, "--checks", "0", "--json")) == alone
    assert "checks is 1, expected 3" in refused("triage", place, "--checks", "1", *SMALL)
    assert "was traced with other weights" in refused("triage", place)


def test_the_command_has_the_defaults_of_the_python_function():
    assert defaults("triage")["checks"] == python_defaults(tracer.triage)["checks"]


def test_the_benchmark_correlates_halves_and_judges():
    from benchmarks.triage import halves, measured, with_interval

    middle, low, high = with_interval([1, 2, 3, 4, 5, 6], [2, 1, 3, 5, 4, 6])
    assert middle == round(float(spearmanr([1, 2, 3, 4, 5, 6], [2, 1, 3, 5, 4, 6]).statistic), 3)
    assert low <= middle <= high
    assert with_interval([1, 1, 1], [1, 2, 3])[0] == 0
    assert halves([1, 4, 3, 2], [0, 1, 0.5, 0]) == {"first half": 0.75, "rest": 0}
    summary = {
        "responses": {"nothing": {"1": {"cosine": 0.4}}},
        "faithfulness": {"above_empty": 1.3},
        "spearman": {"influence": 0.7},
    }
    found = measured(summary)
    assert found == {
        "circuit keeps": 1.0, "responses": 0.4, "spearman": 0.7, "all of it": pytest.approx(0.7),
    }  # fmt: skip


def test_a_spot_check_zeroes_features_at_even_steps_of_influence(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    rows = [{"kind": "feature", "id": f"n{at}", "influence": float(one), "layer": 0}
            for at, one in enumerate(rng.permutation(9))]  # fmt: skip
    rows += [{"kind": "logit", "id": name, "probability": share, "token": token}
             for name, share, token in (("a", 0.2, 5), ("b", 0.7, 6), ("c", 0.1, 7))]  # fmt: skip
    asked: list[list[float]] = []

    def falls(_: Any, ids: Any, features: Any, token: int) -> np.ndarray:
        assert (ids, token) == ([1, 2], 6)
        asked.append([row["influence"] for row in features])
        return np.array([-row["influence"] for row in features])

    monkeypatch.setattr(spot, "_falls", falls)
    graph: Any = SimpleNamespace(
        nodes=SimpleNamespace(to_pylist=lambda: rows),
        metadata={"token_ids": [1, 2, 3], "position": 1},
    )
    for count, chosen in ((3, [8, 4, 0]), (5, [8, 6, 4, 2, 0]), (24, [*range(8, -1, -1)])):
        assert spot_check(None, graph, count) == pytest.approx(1.0)  # type: ignore[arg-type]
        assert asked.pop() == chosen
    assert spot_check(None, graph, 2) is None  # type: ignore[arg-type]
