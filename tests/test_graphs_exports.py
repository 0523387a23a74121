"""networkx both ways, and the files other programs read."""

import csv
import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import AttributionGraph, GraphError
from graphs.schema import DERIVED
from tests.graph_samples import random_graph, two_paths

HOSTILE = '</svg><script>"a\\b\n\x00\x08&amp; \u05d0 🤠 \ufffe'


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), pruned=st.booleans(), double=st.booleans())
def test_a_graph_survives_networkx(seed: int, pruned: bool, double: bool):
    graph = random_graph(seed, dtype=np.float64 if double else np.float32)
    graph = graph.prune() if pruned else graph
    back = AttributionGraph.from_networkx(graph.to_networkx())
    assert back.nodes.equals(graph.nodes)
    assert back.edges.equals(graph.edges)
    assert back.metadata == graph.metadata


def test_networkx_nodes_are_ids_with_every_attribute_that_is_not_null():
    nodes = two_paths().to_networkx()
    assert list(nodes) == ["embedding0", "feature1", "logit2"]
    assert nodes.nodes["feature1"] == {
        "kind": "feature",
        "layer": 0,
        "site": "mlp_out.0",
        "position": 0,
        "feature": 7,
        "label": "Texas, TX · Dallas",
        "influence": 0.75,
        "cumulative_influence": 1.0,
        "input_absolute": 2.0,
    }
    assert nodes.edges["feature1", "logit2"] == {"weight": -3.0, "influence": 0.75, "share": -0.75}
    assert nodes.graph["tokens"] == [" Dallas"]


def test_a_part_cut_out_with_networkx_is_a_graph_again():
    graph = random_graph(4).prune()
    whole = graph.to_networkx()
    part = nx.subgraph_view(whole, filter_edge=lambda s, t: whole.edges[s, t]["weight"] > 0)
    shuffled = nx.DiGraph(**whole.graph)
    shuffled.add_nodes_from(reversed(list(part.nodes.items())))
    shuffled.add_edges_from(part.edges(data=True))
    back = AttributionGraph.from_networkx(shuffled)
    assert set(back.nodes["id"].to_pylist()) == set(whole)
    assert back.effect.nnz == part.number_of_edges()


def test_without_derived_attributes_they_are_computed():
    graph = random_graph(4)
    plain = graph.to_networkx()
    for _, data in plain.nodes(data=True):
        for name in DERIVED:
            del data[name]
    back = AttributionGraph.from_networkx(plain)
    assert back.nodes["influence"].equals(graph.nodes["influence"])


def test_what_is_no_attribution_graph_is_refused():
    cycle = two_paths().to_networkx()
    cycle.add_edge("logit2", "embedding0", weight=1.0)
    bare = two_paths().to_networkx()
    del bare.edges["feature1", "logit2"]["weight"]
    untyped = two_paths().to_networkx()
    untyped.nodes["feature1"]["layer"] = "first"
    for graph, message in [
        (cycle, "the graph has a cycle"),
        (nx.Graph(), "expected a networkx.DiGraph, got a Graph"),
        (nx.MultiDiGraph(), "got a MultiDiGraph"),
        (bare, "every edge needs a number as its 'weight'"),
        (untyped, "column 'layer': expected int32"),
        (nx.DiGraph([("a", "b", {"weight": 1.0})]), "'kind'|'layer'"),
    ]:
        with pytest.raises(GraphError, match=message):
            AttributionGraph.from_networkx(graph)


@pytest.fixture
def hostile() -> AttributionGraph:
    graph = random_graph(0).prune()
    return graph.relabel({graph.nodes["id"][12].as_py(): HOSTILE})


def test_graphml_is_read_back_by_networkx(tmp_path: Path, hostile: AttributionGraph):
    hostile.export(tmp_path / "g.graphml")
    read = nx.read_graphml(tmp_path / "g.graphml")
    want = hostile.to_networkx()
    assert list(read) == list(want)
    assert read.edges["E_30_0", next(iter(want["E_30_0"]))]["weight"] == pytest.approx(
        want.edges["E_30_0", next(iter(want["E_30_0"]))]["weight"]
    )
    assert json.loads(read.graph["tokens"]) == hostile.metadata["tokens"]
    label = read.nodes[hostile.nodes["id"][12].as_py()]["label"]
    assert label == HOSTILE.replace("\x00", "�").replace("\x08", "�").replace("\ufffe", "�")


def test_the_json_edge_list_holds_everything(tmp_path: Path, hostile: AttributionGraph):
    hostile.export(tmp_path / "g.json")
    value = json.loads((tmp_path / "g.json").read_text())
    assert value["metadata"].pop("scores")["completeness"] == hostile.scores.completeness
    assert value["metadata"] == hostile.metadata
    assert value["nodes"] == hostile.nodes.to_pylist()
    ids = hostile.nodes["id"].to_pylist()
    first = hostile.edges.slice(0, 1).to_pylist()[0]
    assert value["edges"][0] == first | {
        "source": ids[first["source"]],
        "target": ids[first["target"]],
    }
    assert len(value["edges"]) == hostile.effect.nnz


def test_the_csv_has_one_line_an_edge(tmp_path: Path, hostile: AttributionGraph):
    hostile.export(tmp_path / "g.csv")
    with (tmp_path / "g.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == hostile.effect.nnz
    assert list(rows[0]) == [
        *("source", "target", "weight", "influence", "share"),
        *("source_text", "source_label", "target_text", "target_label"),
    ]


def test_exports_are_the_same_bytes_every_time(tmp_path: Path, hostile: AttributionGraph):
    for suffix in ("json", "graphml", "csv"):
        for name in ("a", "b"):
            hostile.export(tmp_path / f"{name}.{suffix}")
        assert len({(tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab"}) == 1


def test_an_unknown_suffix_or_place_is_refused(tmp_path: Path):
    with pytest.raises(GraphError, match=r"expected a suffix of \.json, \.graphml, \.csv"):
        two_paths().export(tmp_path / "g.xls")
    with pytest.raises(GraphError, match="cannot write"):
        two_paths().export(tmp_path / "missing" / "g.json")
    assert list(tmp_path.iterdir()) == []
