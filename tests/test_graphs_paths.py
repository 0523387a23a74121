"""The strongest paths, against every path there is."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import AttributionGraph, GraphError
from tests.graph_samples import columns, random_graph, two_paths


def every_path(graph: AttributionGraph) -> list[float]:
    """Strengths of all root -> logit paths, strongest first, by walking them all."""
    view = graph.to_networkx()
    kind = nx.get_node_attributes(view, "kind")
    roots = [node for node in view if kind[node] in ("embedding", "error")]
    logits = {
        node: view.nodes[node].get("probability", 0) for node in view if kind[node] == "logit"
    }
    strengths = [
        logits[path[-1]]
        * np.prod([abs(view.edges[edge]["share"]) for edge in nx.utils.pairwise(path)])
        for root in roots
        for path in nx.all_simple_paths(view, root, list(logits))
    ]
    return sorted(strengths, reverse=True)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_no_path_is_stronger_than_those_given(seed: int, count: int):
    graph = random_graph(seed, tokens=["<bos>", "a", "b"], features=12).prune(0.7, 0.9)
    best = graph.paths(count)
    strengths = [path.strength for path in best]
    np.testing.assert_allclose(strengths, every_path(graph)[:count], rtol=1e-9)
    assert len({path.nodes for path in best}) == len(best)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_path_follows_edges_and_its_strength_is_the_product_of_their_shares(seed: int):
    graph = random_graph(seed)
    share = {(e["source"], e["target"]): abs(e["share"]) for e in graph.edges.to_pylist()}
    for path in graph.paths(5):
        product = np.prod([share[edge] for edge in nx.utils.pairwise(path.nodes)])
        weight = graph.nodes["probability"][path.nodes[-1]].as_py()
        assert path.strength == pytest.approx(product * weight, rel=1e-9)


def test_all_paths_add_up_to_the_weight_of_the_targets():
    graph = two_paths()
    assert [path.nodes for path in graph.paths(100)] == [(0, 1, 2), (0, 2)]
    assert sum(path.strength for path in graph.paths(100)) == pytest.approx(1)


def test_equal_paths_come_in_the_order_of_their_rows():
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0},
        {"kind": "feature", "layer": 0, "position": 0},
        {"kind": "feature", "layer": 0, "position": 0},
        {"kind": "logit", "layer": 1, "position": 0, "probability": 1.0},
    ]
    effect = sparse.csr_array([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, -1, 0]])
    graph = AttributionGraph.build(columns(rows), effect, {})
    assert [path.nodes for path in graph.paths(2)] == [(0, 1, 3), (0, 2, 3)]
    assert [path.nodes for path in graph.paths(1)] == [(0, 1, 3)]


def test_a_path_in_words():
    graph = two_paths()
    assert [graph.describe(path) for path in graph.paths()] == [
        "“Dallas” → Texas, TX (L0, at “Dallas”) ⊣ “Austin” 100%   75%",
        "“Dallas” → “Austin” 100%   25%",
    ]


def test_fewer_than_one_path_is_refused():
    with pytest.raises(GraphError, match=r"count is 0, expected 1 to \d+ paths in this graph"):
        two_paths().paths(0)
