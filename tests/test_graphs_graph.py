"""`AttributionGraph`: what it holds, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from graphs import AttributionGraph, GraphError, NodeKind
from graphs.schema import COLUMNS
from tests.graph_samples import columns, random_graph, two_paths

ROWS: list[dict[str, Any]] = [
    {"kind": "embedding", "layer": -1, "position": 0},
    {"kind": "feature", "layer": 0, "position": 0},
    {"kind": "error", "layer": 0, "position": 0},
    {"kind": "logit", "layer": 1, "position": 0, "probability": 0.5},
]
EFFECT = np.array([[0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 0], [1, 2, -1, 0]])


def build(change: Callable[[dict[str, Any], np.ndarray], Any], metadata: Any = None) -> None:
    nodes, effect = columns(ROWS), EFFECT.copy()
    change(nodes, effect)
    AttributionGraph.build(nodes, sparse.csr_array(effect), metadata or {"tokens": ["a"]})


def test_columns_stand_in_the_promised_order_and_others_follow():
    nodes = columns(ROWS) | {"note": ["a", None, "b", "c"]}
    graph = AttributionGraph.build(nodes, sparse.csr_array(EFFECT), {})
    assert graph.nodes.column_names == [*COLUMNS, "note"]
    assert graph.edges.column_names == ["source", "target", "weight", "influence", "share"]


def test_edges_carry_weight_influence_and_signed_share():
    rows = two_paths().edges.to_pylist()
    assert rows == [
        {"source": 0, "target": 1, "weight": 2.0, "influence": 0.75, "share": 1.0},
        {"source": 0, "target": 2, "weight": 1.0, "influence": 0.25, "share": 0.25},
        {"source": 1, "target": 2, "weight": -3.0, "influence": 0.75, "share": -0.75},
    ]


def test_effects_keep_their_precision_and_stored_zeros_are_no_edges():
    effect = sparse.csr_array(EFFECT.astype(np.float32))
    effect.data[0] = 0
    graph = AttributionGraph.build(columns(ROWS), effect, {})
    assert graph.effect.dtype == np.float32
    assert graph.edges.num_rows == graph.effect.nnz == 3


def test_a_graph_is_a_value():
    graph = two_paths()
    with pytest.raises(AttributeError):
        graph.effect = None  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        graph.effect.data[0] = 1


def test_building_leaves_the_callers_arrays_alone():
    effect = sparse.csr_array(EFFECT)
    AttributionGraph.build(columns(ROWS), effect, {})
    effect.data[0] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, e: e.__setitem__((1, 3), 1.0), "edge 3 -> 1 .* runs backward"),
        (lambda n, e: e.__setitem__((1, 1), 1.0), "edge 1 -> 1 .* runs backward"),
        (lambda n, e: e.__setitem__((2, 1), 1.0), "edge 1 -> 2 .* enters a token or an error"),
        (lambda n, e: e.__setitem__((3, 1), np.nan), "edge 1 -> 3 .* is not finite"),
        (lambda n, e: e.__setitem__((3, 1), np.inf), "edge 1 -> 3 .* is not finite"),
        (lambda n, e: n.pop("text"), r"nodes lack the columns \['text'\]"),
        (lambda n, e: n.update(text=["a"]), "node columns differ in length"),
        (lambda n, e: n.update(kind=["embedding", "lorsa", "error", "logit"]), "kind 'lorsa'"),
        (lambda n, e: n.update(layer=[-1, None, 0, 1]), "'layer' has nulls"),
        (lambda n, e: n.update(layer=[-1, "x", 0, 1]), "column 'layer': expected int32"),
        (lambda n, e: n.update(position=[0, 0, 1, 0]), "position 1, expected 0 to 0"),
        (lambda n, e: n.update(id=["a", "b", "a", "d"]), "'a' stands twice, at rows 0 and 2"),
        (lambda n, e: n.update(id=["a", "b:c", "x", "d"]), "node 1 has id 'b:c'"),
        (lambda n, e: n.update(activation=[1, np.nan, 1, 1]), "activation nan: expected a finite"),
        (lambda n, e: n.update(probability=[0, 0, 0, -0.5]), "probability -0.5"),
        (lambda n, e: n.update(probability=[0, 0.5, 0, 0.5]), "only on logits"),
        (lambda n, e: n.update(note=[[1], [2], [3], [4]]), "'note' has type list"),
        (lambda n, e: n.update(text=["\ud800", "", "", ""]), "column 'text'"),
    ],
)
def test_a_broken_invariant_is_refused(change: Callable[..., Any], message: str):
    with pytest.raises(GraphError, match=message) as caught:
        build(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": {1, 2}}, "metadata must be JSON"),
        ({"x": float("nan")}, "metadata must be JSON"),
        ({"format_version": 99}, "format version 99, expected 2"),
        ({"tokens": "abc"}, "must be a list of strings"),
    ],
)
def test_foreign_metadata_are_refused(metadata: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message):
        build(lambda n, e: None, metadata)


def test_effects_of_another_size_or_type_are_refused():
    with pytest.raises(GraphError, match=r"shape \(3, 3\), expected \(4, 4\)"):
        AttributionGraph.build(columns(ROWS), sparse.csr_array(np.zeros((3, 3))), {})
    with pytest.raises(GraphError, match="int64, expected float32 or float64"):
        AttributionGraph.build(columns(ROWS), sparse.csr_array(EFFECT.astype(np.int64)), {})


def test_a_graph_without_features_or_edges_is_a_graph(tmp_path: Path):
    graph = AttributionGraph.build(columns(ROWS[:1]), sparse.csr_array((1, 1)), {})
    assert graph.prune().nodes.num_rows == 1
    assert np.isnan(graph.scores.replacement)
    assert graph.paths() == []
    graph.save(tmp_path / "g")
    assert AttributionGraph.load(tmp_path / "g").nodes.equals(graph.nodes)


def test_a_graph_without_nodes_is_a_graph():
    graph = AttributionGraph.build(columns([]), sparse.csr_array((0, 0)), {})
    assert graph.prune().edges.num_rows == 0


def test_relabelling_changes_labels_and_nothing_else():
    graph = random_graph(0)
    name = graph.nodes.filter(pa.compute.equal(graph.nodes["kind"], NodeKind.FEATURE))["id"][3]
    other = graph.relabel({name.as_py(): "say a capital"})
    assert other.nodes.drop_columns("label").equals(graph.nodes.drop_columns("label"))
    changed = [a != b for a, b in zip(other.nodes["label"], graph.nodes["label"], strict=True)]
    assert sum(changed) == 1
    with pytest.raises(GraphError, match="no node has the id 'nobody'"):
        graph.relabel({"nobody": "x"})
