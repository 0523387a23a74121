"""What the viewer shows of features is what the store knows, in plain values."""

import json
from pathlib import Path

import pytest
from scipy import sparse

from graphs import AttributionGraph
from tests.graph_samples import columns
from tests.random_models import replacement_model
from tests.test_tracer_features_build import SETTINGS, texts
from tracer import FeatureStore
from tracer.features.panel import panels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("store") / "s"
    return FeatureStore.build(replacement_model(activation="jump_relu"), texts(), path, **SETTINGS)


def graph_of(places: list[tuple[int, int]]) -> AttributionGraph:
    """A token, features in the order of their influence, and a logit."""
    rows = [{"kind": "embedding", "layer": -1, "position": 0, "token": 1, "text": "a"}]
    rows += [
        {"kind": "feature", "layer": layer, "position": 0, "feature": feature}
        for layer, feature in places
    ]
    rows.append({"kind": "logit", "layer": 99, "position": 0, "token": 2, "probability": 1})
    effect = sparse.lil_array((len(rows), len(rows)))
    for at in range(len(places)):
        effect[at + 1, 0] = 1
        effect[len(rows) - 1, at + 1] = len(places) - at
    return AttributionGraph.build(columns(rows), sparse.csr_array(effect), {"tokens": ["a"]})


def test_panels_hold_what_the_store_says_of_the_most_influential_features(store: FeatureStore):
    active = [
        (layer, row["feature"])
        for layer in store.layers
        for row in store.features(layer).to_pylist()
        if row["active"]
    ][:6]
    found = panels(store, graph_of([*active, (active[-1][0], 10**6), (98, 0)]), most=4)
    assert list(found) == [f"{layer}/{feature}" for layer, feature in active[:4]]
    for place, shown in zip(active, found.values(), strict=False):
        known = store[place]
        assert shown["active"] == known.active
        assert sum(shown["histogram"]["counts"]) == known.active
        assert len(shown["histogram"]["bounds"]) == len(shown["histogram"]["counts"]) + 1
        assert [token for token, _ in shown["fires_on"]] == list(known.fires_on)
        top = [one for one in shown["examples"] if one["kind"] == "top"]
        assert top[0]["activation"] == pytest.approx(known.examples[0].activation, rel=1e-3)
        for one in shown["examples"]:
            assert len(one["texts"]) == len(one["activations"])
            at = one["activations"][one["position"]]
            assert at == pytest.approx(one["activation"], rel=0.02)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_page_takes_the_store_along(store: FeatureStore, tmp_path: Path):
    place = next((layer, row["feature"]) for layer in store.layers
                 for row in store.features(layer).to_pylist() if row["active"])  # fmt: skip
    graph = graph_of([place])
    plain = graph.to_html(tmp_path / "a.html").stat().st_size
    assert graph.to_html(tmp_path / "b.html", panels(store, graph)).stat().st_size > plain
