"""Influence, pruning and scores: hand-computed cases and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

from graphs import AttributionGraph, GraphError
from graphs.influence import cumulative, influence, shares
from graphs.prune import threshold
from tests.graph_samples import columns, random_graph, two_paths

SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=25, deadline=None)


def of_kind(graph: AttributionGraph, *kinds: str) -> np.ndarray:
    return np.isin(graph.nodes["kind"].to_pylist(), kinds)


def column(graph: AttributionGraph, name: str) -> np.ndarray:
    return graph.nodes[name].fill_null(0).to_numpy()


def test_two_paths_share_the_output():
    graph = two_paths()
    np.testing.assert_allclose(column(graph, "influence"), [1, 0.75, 0])
    np.testing.assert_allclose(column(graph, "cumulative_influence"), [1 / 1.75, 1, 1])
    np.testing.assert_allclose(column(graph, "input_absolute"), [0, 2, 4])
    assert (graph.scores.replacement, graph.scores.completeness, graph.scores.leak) == (1, 1, 0)


def test_an_error_takes_its_share_of_both_scores():
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0},
        {"kind": "error", "layer": 0, "position": 0},
        {"kind": "logit", "layer": 1, "position": 0, "probability": 0.5},
    ]
    effect = sparse.csr_array([[0.0, 0, 0], [0, 0, 0], [3, -1, 0]])
    graph = AttributionGraph.build(columns(rows), effect, {})
    assert graph.scores.replacement == pytest.approx(0.75)
    assert graph.scores.completeness == pytest.approx((0.5 + 0.75 * 0.5) / 1.0)


def test_influence_that_ends_at_a_feature_without_inputs_is_reported():
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0},
        {"kind": "feature", "layer": 0, "position": 0},
        {"kind": "logit", "layer": 1, "position": 0, "probability": 0.5},
    ]
    effect = sparse.csr_array([[0.0, 0, 0], [0, 0, 0], [3, -1, 0]])
    graph = AttributionGraph.build(columns(rows), effect, {})
    assert graph.scores.leak == pytest.approx(0.25)
    assert graph.scores.replacement == 1


@FEW
@given(seed=SEEDS)
def test_roots_add_up_to_the_weight_of_the_targets(seed: int):
    graph = random_graph(seed, features=30)
    filled = column(graph, "input_absolute") > 0
    if filled[of_kind(graph, "feature", "logit")].all():
        roots = column(graph, "influence")[of_kind(graph, "embedding", "error")]
        weight = column(graph, "probability").sum()
        assert roots.sum() == pytest.approx(weight, rel=1e-12)
        assert graph.scores.leak == pytest.approx(0, abs=1e-12)


@FEW
@given(seed=SEEDS)
def test_back_substitution_equals_the_triangular_solve_and_the_power_series(seed: int):
    graph = random_graph(seed, features=30)
    weight = column(graph, "probability")
    share = shares(graph.effect, column(graph, "input_absolute"))
    system = (sparse.eye_array(len(weight), format="csr") - share).T.tocsr()
    solved = spsolve_triangular(system, weight, lower=False) - weight
    series, term = np.zeros(len(weight)), weight
    while term.any():
        term = share.T @ term
        series += term
    ours = influence(share, weight)
    np.testing.assert_allclose(ours, solved, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours, series, rtol=1e-12, atol=1e-15)


@FEW
@given(seed=SEEDS)
def test_scaling_a_row_changes_no_influence(seed: int):
    graph = random_graph(seed, features=20, dtype=np.float64)
    scale = np.random.default_rng(seed).uniform(0.1, 10, graph.nodes.num_rows)
    scaled = sparse.csr_array(sparse.diags_array(scale) @ graph.effect)
    given = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
    other = AttributionGraph.build(given, scaled, {})
    np.testing.assert_allclose(column(other, "influence"), column(graph, "influence"), atol=1e-14)


def test_the_cumulative_share_falls_to_the_largest_first_and_ties_to_the_lower_row():
    np.testing.assert_allclose(cumulative(np.array([1.0, 4, 1, 2])), [7 / 8, 0.5, 1, 0.75])
    np.testing.assert_array_equal(cumulative(np.zeros(2)), [1, 1])


def test_the_threshold_is_the_value_that_reaches_the_share():
    values = np.array([1.0, 4, 1, 2])
    assert threshold(values, 0.5) == 4
    assert threshold(values, 0.51) == 2
    assert threshold(values, 0.8) == 1
    assert threshold(values, 1) == -np.inf
    assert threshold(np.zeros(3), 0.5) == np.inf


def diamond(features: int) -> AttributionGraph:
    """`features` equal routes from a token to a logit."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0},
        *({"kind": "feature", "layer": 0, "position": 0} for _ in range(features)),
        {"kind": "logit", "layer": 1, "position": 0, "probability": 1.0},
    ]
    effect = np.zeros((features + 2,) * 2)
    effect[1:-1, 0] = effect[-1, 1:-1] = 1
    return AttributionGraph.build(columns(rows), sparse.csr_array(effect), {})


@FEW
@given(features=st.integers(1, 40), nodes=st.floats(0.1, 0.99), edges=st.floats(0.1, 0.99))
def test_pruning_keeps_ties(features: int, nodes: float, edges: float):
    small = diamond(features).prune(nodes, edges)
    assert small.nodes.num_rows in (2, features + 2)
    assert small.effect.nnz in (0, 2 * features)


@FEW
@given(seed=SEEDS, nodes=st.floats(0.2, 0.99), edges=st.floats(0.5, 0.99))
def test_what_pruning_takes_from_a_row_joins_left_out(seed: int, nodes: float, edges: float):
    graph = random_graph(seed, dtype=np.float64)
    small = graph.prune(nodes, edges)
    old = dict(zip(graph.nodes["id"].to_pylist(), range(graph.nodes.num_rows), strict=True))
    rows = [old[name] for name in small.nodes["id"].to_pylist()]
    for name, matrix in (("left_out", lambda a: a), ("left_out_absolute", abs)):
        before = matrix(graph.effect).sum(axis=1) + column(graph, name)
        after = matrix(small.effect).sum(axis=1) + column(small, name)
        np.testing.assert_allclose(after, before[rows], rtol=1e-12, atol=1e-12)


@FEW
@given(seed=SEEDS, nodes=st.floats(0.2, 0.99), edges=st.floats(0.5, 0.99))
def test_everything_kept_lies_on_a_path_from_a_root_to_a_logit(
    seed: int, nodes: float, edges: float
):
    small = random_graph(seed).prune(nodes, edges)
    inputs, outputs = small.effect.count_nonzero(axis=1), small.effect.count_nonzero(axis=0)
    feature, error = of_kind(small, "feature"), of_kind(small, "error")
    assert (inputs[feature] > 0).all()
    assert (outputs[feature | error] > 0).all()


def test_tokens_and_logits_stay_even_without_edges():
    graph = random_graph(3)
    small = graph.prune(0.05, 0.05)
    for kind in ("embedding", "logit"):
        assert of_kind(small, kind).sum() == of_kind(graph, kind).sum()


def test_a_pruned_graph_keeps_the_columns_and_counts_of_the_traced_one():
    graph = random_graph(1)
    small = graph.prune()
    smaller = small.prune(0.6, 0.9)
    rows = np.isin(graph.nodes["id"].to_pylist(), small.nodes["id"].to_pylist())
    for name in ("influence", "cumulative_influence", "input_absolute"):
        np.testing.assert_array_equal(column(small, name), column(graph, name)[rows])
    assert small.metadata["pruned"] == {
        "nodes": 0.8,
        "edges": 0.98,
        "kept_nodes": small.nodes.num_rows,
        "kept_edges": small.effect.nnz,
        "total_nodes": graph.nodes.num_rows,
        "total_edges": graph.effect.nnz,
    }
    assert smaller.metadata["pruned"]["total_nodes"] == graph.nodes.num_rows
    assert smaller.nodes.num_rows < small.nodes.num_rows < graph.nodes.num_rows
    assert smaller.scores.replacement < small.scores.replacement < graph.scores.replacement


def test_with_both_shares_at_one_nothing_is_dropped():
    graph = random_graph(2)
    assert graph.prune(1, 1) is graph
    assert graph.prune(1, 0.999).nodes.num_rows <= graph.nodes.num_rows


def test_pruning_again_at_the_same_or_higher_shares_drops_nothing():
    small = random_graph(2).prune(0.7, 0.9)
    assert small.prune(0.7, 0.9) is small
    assert small.prune() is small
    assert small.prune(0.9, 0.8).effect.nnz < small.effect.nnz


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float):
    with pytest.raises(GraphError, match="expected a share above 0 and at most 1"):
        two_paths().prune(nodes=share)
    with pytest.raises(GraphError, match="edges is"):
        two_paths().prune(edges=share)


def test_a_pruned_score_counts_what_was_lost_as_error():
    """A tenth of the logit's input is pruned away: nine tenths are explained."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0},
        {"kind": "feature", "layer": 0, "position": 0},
        {"kind": "feature", "layer": 0, "position": 0},
        {"kind": "logit", "layer": 1, "position": 0, "probability": 1.0},
    ]
    effect = sparse.csr_array([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 9, 1, 0]])
    small = AttributionGraph.build(columns(rows), effect, {}).prune(0.9, 0.9)
    assert small.nodes["id"].to_pylist() == ["embedding0", "feature1", "logit3"]
    assert small.scores.replacement == pytest.approx(0.9)
    assert small.scores.completeness == pytest.approx((1 * 0.9 + 0.9 + 0.9) / (1 + 0.9 + 0.9))
    assert small.nodes["left_out"].to_pylist() == [None, None, 1.0]
