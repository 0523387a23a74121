"""Pruning that keeps what steers attention: graphs of random and hand-made numbers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from graphs import AttributionGraph, GraphError, steering
from graphs.influence import influence, input_absolute, shares
from graphs.pictures import captions
from graphs.pictures.scene import Style, compose
from tests.graph_samples import columns, random_graph


def random_steering(graph: AttributionGraph, seed: int, dense: float = 0.3) -> pa.Table:
    """Random entries from earlier nodes to later features and logits."""
    random, count = np.random.default_rng(seed), graph.nodes.num_rows
    kinds = np.array(graph.nodes["kind"].to_pylist())
    free = np.tri(count, k=-1) * np.isin(kinds, ["feature", "logit"])[:, None]
    free *= kinds != "logit"
    parts = [
        sparse.csr_array(
            random.standard_t(1.5, free.shape) * free * (random.random(free.shape) < d)
        )
        for d in (dense, dense / 2)
    ]
    return steering.table(*parts)


def known(graph: AttributionGraph, table: pa.Table) -> AttributionGraph:
    return graph.with_tables({steering.NAME: table})


def steered_by_one() -> AttributionGraph:
    """A token drives the answer; a second token's feature only says where to look."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5, "text": " of", "id": "of"},
        {"kind": "embedding", "layer": -1, "position": 1, "token": 6, "text": " X", "id": "X"},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 7, "id": "looks"},
        {"kind": "feature", "layer": 0, "position": 1, "feature": 8, "id": "idle"},
        {"kind": "logit", "layer": 1, "position": 1, "token": 9, "text": " Y", "id": "Y",
         "probability": 1},
    ]  # fmt: skip
    effect = np.zeros((5, 5))
    effect[2, 0], effect[3, 1], effect[4, 1] = 2.0, 1.0, 3.0
    return AttributionGraph.build(columns(rows), sparse.csr_array(effect), {"tokens": ["of", "X"]})


def one_entry(value: float = -1.0) -> pa.Table:
    attention = np.zeros((5, 5))
    attention[4, 2] = value
    return steering.table(sparse.csr_array(attention), sparse.csr_array((5, 5)))


def test_a_node_that_only_steers_is_kept_where_asked_and_what_drives_it_too():
    graph = known(steered_by_one(), one_entry())
    plain, kept = graph.prune(0.9, 0.9), graph.prune(0.9, 0.9, keep_attention=True)
    assert plain.nodes["id"].to_pylist() == ["of", "X", "Y"]
    assert kept.nodes["id"].to_pylist() == ["of", "X", "looks", "Y"]
    assert kept.edges.select(["source", "target"]).to_pylist() == [
        {"source": 0, "target": 2},
        {"source": 1, "target": 3},
    ]
    assert kept.metadata["pruned"]["only_steering"] == 1
    assert kept.tables[steering.NAME].to_pylist() == [
        {"source": 2, "target": 3, "attention": -1.0, "norms": 0.0}
    ]


def test_a_picture_and_its_rows_say_that_attention_was_kept():
    graph = known(steered_by_one(), one_entry())
    shown = "".join(captions.captions(compose(graph.prune(0.9, 0.9, True)._content, Style())))
    assert "what steers attention kept: 1 nodes only for that" in shown
    plain = "".join(captions.captions(compose(graph.prune(0.9, 0.9)._content, Style())))
    assert "steers" not in plain


@pytest.mark.parametrize("quantiles", [(0.8, 0.98), (0.5, 0.9), (0.95, 1.0), (1.0, 0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_it_pruning_is_the_same_to_the_bit(seed: int, quantiles: tuple[float, float]):
    graph = random_graph(seed)
    plain = graph.prune(*quantiles)
    for other in (
        known(graph, random_steering(graph, seed)).prune(*quantiles),
        known(graph, random_steering(graph, seed)).prune(*quantiles, keep_attention=False),
        known(graph, random_steering(graph, seed, 0.0)).prune(*quantiles, keep_attention=True),
    ):
        assert other.nodes.equals(plain.nodes)
        assert (other.effect != plain.effect).nnz == 0
    assert "keep_attention" not in plain.metadata["pruned"]


@pytest.mark.parametrize("seed", range(4))
def test_nodes_are_ranked_by_influence_along_edges_and_steering(seed: int):
    """The node rule, worked out densely: with all edges kept only paths can drop a node."""
    graph = random_graph(seed)
    table = random_steering(graph, seed)
    count = graph.nodes.num_rows
    whole = np.abs(graph.effect.toarray().astype(float))
    for row in table.to_pylist():
        whole[row["target"], row["source"]] += abs(row["attention"]) + abs(row["norms"])
    total = whole.sum(1, keepdims=True)
    share = np.divide(whole, total, out=np.zeros_like(whole), where=total > 0)
    weight = np.array([value or 0.0 for value in graph.nodes["probability"].to_pylist()])
    reached = np.linalg.inv(np.eye(count) - share).T @ weight - weight
    falling = np.sort(reached)[::-1]
    limit = falling[np.searchsorted(falling.cumsum() / falling.sum(), 0.7)]
    kinds = np.array(graph.nodes["kind"].to_pylist())
    wanted = (reached >= limit) | np.isin(kinds, ["embedding", "logit"])
    kept = known(graph, table).prune(0.7, 1.0, keep_attention=True)
    names = np.array(graph.nodes["id"].to_pylist())
    assert set(kept.nodes["id"].to_pylist()) <= set(names[wanted])
    joint = steering.joined(graph.effect, steering.matrix(table, count))
    again = influence(shares(joint, input_absolute(joint)), weight)
    assert again == pytest.approx(reached, abs=1e-12)
    assert set(kept.nodes["id"].to_pylist()) != set(graph.prune(0.7, 1.0).nodes["id"].to_pylist())


def test_shares_of_one_drop_nothing_and_a_pruned_graph_goes_on_as_it_was_pruned():
    graph = known(random_graph(3), random_steering(random_graph(3), 3))
    assert graph.prune(1.0, 1.0, keep_attention=True) is graph
    small = graph.prune(0.9, 0.98, keep_attention=True)
    assert small.keeps_attention
    smaller = small.prune(0.6, 0.9)
    assert smaller.metadata["pruned"]["keep_attention"] is True
    alone = small.prune(0.6, 0.9, keep_attention=False)
    assert not alone.keeps_attention
    assert alone.nodes.num_rows != smaller.nodes.num_rows
    assert not graph.prune(0.9).keeps_attention


def test_the_table_and_the_setting_come_back_from_disk(tmp_path: Path):
    graph = known(random_graph(5), random_steering(random_graph(5), 5))
    small = graph.prune(keep_attention=True)
    for place in ("a.graph", "a.zip"):
        small.save(tmp_path / place)
        back = AttributionGraph.load(tmp_path / place)
        assert back.tables[steering.NAME].equals(small.tables[steering.NAME])
        assert back.metadata["pruned"] == small.metadata["pruned"]
        assert back.prune(0.5).nodes.equals(small.prune(0.5).nodes)


def test_the_table_of_a_part_is_the_tables_entries_between_its_nodes():
    graph = known(random_graph(2), random_steering(random_graph(2), 2))
    names, small = graph.nodes["id"].to_pylist(), graph.prune(keep_attention=True)
    left, before = small.nodes["id"].to_pylist(), {
        (names[row["source"]], names[row["target"]]): (row["attention"], row["norms"])
        for row in graph.tables[steering.NAME].to_pylist()
    }  # fmt: skip
    rows = small.tables[steering.NAME].to_pylist()
    assert rows
    for row in rows:
        place = left[row["source"]], left[row["target"]]
        assert before[place] == (row["attention"], row["norms"])


def test_keeping_attention_of_which_nothing_is_known_is_refused():
    with pytest.raises(GraphError, match="no table of what steers attention; trace it with"):
        random_graph(0).prune(keep_attention=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": [4], "target": [2]}, "does not run from a node to a later one"),
        ({"source": [2], "target": [5]}, "later one of the graph's 5"),
        ({"source": [-1]}, "does not run from a node"),
        ({"attention": [float("nan")]}, "no finite number"),
        ({"norms": [None]}, "no finite number"),
        ({"source": [2, 1], "target": [4, 4], "attention": [1.0] * 2, "norms": [0.0] * 2},
         "is not ordered"),
        ({"source": [2, 2], "target": [4, 4], "attention": [1.0] * 2, "norms": [0.0] * 2},
         "is not ordered"),
    ],
)  # fmt: skip
def test_a_table_of_another_graph_is_refused(change: dict[str, list[float]], said: str):
    columns = {name: one_entry()[name].to_pylist() for name in steering.COLUMNS} | change
    table = pa.table(
        {name: pa.array(columns[name], kind) for name, kind in steering.COLUMNS.items()}
    )
    with pytest.raises(GraphError, match=said):
        known(steered_by_one(), table)
