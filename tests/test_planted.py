"""Models with planted features: the truth that `benchmarks.ground_truth` holds graphs against."""

import numpy as np
import pytest
import torch

import tracer
from benchmarks import planted
from benchmarks.found_circuits import Tally, edges_at_random, merged
from benchmarks.planted import BOS, CLASSES, LAYERS, PAIRS, Found, Planted, class_name, pair_name
from benchmarks.tracr.truth import OUTPUT, TOKENS, Circuit
from replacement_models import ReplacementModel


@pytest.fixture(scope="module")
def known() -> Planted:
    return Planted(5)


@pytest.fixture(scope="module")
def model(known: Planted, tmp_path_factory: pytest.TempPathFactory) -> ReplacementModel:
    folder = known.written(tmp_path_factory.mktemp("planted"))
    return ReplacementModel.load(folder, "neurons", dtype="float64")


NEURONS = {
    **{(0, at): class_name(at) for at in range(CLASSES)},
    **{(1, at): pair_name(at) for at in range(PAIRS)},
}


def test_features_fire_where_they_are_planted(known: Planted, model: ReplacementModel):
    assert planted.agreement(known, model) > 0.99


def test_more_directions_than_dimensions(known: Planted):
    names = ("tokens", "classes", "tokens before", "classes before", "pairs")
    every = torch.cat([known.directions[name] for name in names])
    assert len(every) > every.shape[1] == planted.DIMENSIONS


def test_a_circuit_goes_from_words_over_classes_and_pairs_to_the_answer(known: Planted):
    words, answer = next(known.prompts())
    true = known.circuit(words, answer)
    assert (TOKENS, len(words)) in true.nodes
    for source, target in true.edges:
        layers = {TOKENS: -1, OUTPUT: 2, **LAYERS}
        assert layers[source[0]] + 1 == layers[target[0]]
        assert source[1] in (target[1], target[1] - 1)


def test_the_answer_reads_what_it_counts(known: Planted, model: ReplacementModel):
    words, answer = next(known.prompts())
    row = model.host.unembedding[planted.WORDS + 1 + answer]
    graph = tracer.trace(model, [BOS, *words], targets=[tracer.Direction(row, OUTPUT)])
    found = merged(graph, NEURONS)
    assert set(found) >= known.circuit(words, answer).edges
    pairs = [edge for edge in known.circuit(words, answer).edges if edge[1][0] == OUTPUT]
    assert sum(found[edge] for edge in pairs) > 0.5


def test_neurons_are_right_and_chance_is_not(
    known: Planted, model: ReplacementModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(planted, "PROMPTS", 3)
    monkeypatch.setattr(planted, "DRAWS", 3)
    figures = Found(known, model, NEURONS).figures(at_random=True)
    assert figures["node_precision"] == 1
    assert figures["node_recall"] > 0.8
    assert figures["edge_weight"] > 0.8 > 0.2 > figures["random"]["edge_weight"]
    assert figures["law"] < 1e-12


def test_features_are_named_by_what_they_write(known: Planted, model: ReplacementModel):
    names, again = planted.by_writing(known, model)
    assert names == NEURONS
    assert again == 1


def test_weight_is_counted_beside_edges():
    nodes = {(TOKENS, 1), ("c1", 1), ("p1", 1)}
    true = Circuit(frozenset(nodes), frozenset({((TOKENS, 1), ("c1", 1)), (("c1", 1), ("p1", 1))}))
    tally = Tally()
    tally.add({((TOKENS, 1), ("c1", 1)): 0.75, ((TOKENS, 1), ("p1", 1)): 0.25}, true)
    figures = tally.figures()
    assert figures["edge_weight"] == 0.75
    assert figures["edge_precision"] == figures["edge_recall"] == figures["skips"] == 0.5


def test_edges_at_random_go_up_and_not_back():
    drawn = edges_at_random({"c1": 0, "p1": 1}, 2, 12, np.random.default_rng(0))
    assert len(drawn) == 12
    layer = {TOKENS: -1, OUTPUT: 2, "c1": 0, "p1": 1}
    for source, target in drawn:
        assert layer[source[0]] < layer[target[0]]
        assert source[1] <= target[1]
