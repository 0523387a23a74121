"""Attention in the JSON of the web tools: out by the schema, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graphs import AttributionGraph, GraphError
from graphs.attention_tables import COLUMNS, edge_name
from graphs.exchange.attention_json import described, descriptors, tables_from_json
from graphs.exchange.attribution_json import PROFILES, About
from graphs.exchange.head_files import head_files
from tests.graph_samples import dallas

SCHEMA = Path(__file__).parent / "data" / "attribution_graph" / "graph-schema.json"
ABOUT = About("dallas", source_set="transcoder-16k")
GONE = ("1_4321_7", "0_-1_3", "E_35_5x")
"""Nodes that only an explanation names; the last is made one of the graph's own."""


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    kinds = COLUMNS[name].items()
    return pa.table({column: pa.array([row.get(column) for row in rows], kind)
                     for column, kind in kinds})  # fmt: skip


def explained() -> tuple[AttributionGraph, str, list[str]]:
    """A graph with a head explained, the node it carried most to, and edges that are split."""
    graph = dallas().prune()
    ids, position = (graph.nodes[name].to_pylist() for name in ("id", "position"))
    moved = [
        (ids[edge["source"]], ids[edge["target"]], edge["weight"])
        for edge in graph.edges.to_pylist()
        if position[edge["source"]] != position[edge["target"]]
    ]
    (one, target, weight), (two, other, less) = sorted(moved, key=lambda edge: -abs(edge[2]))[:2]
    edges = [edge_name(one, target), edge_name(two, other)]
    heads = [
        {"edge": edges[0], "layer": 2, "head": 3, "loading": 0.7 * weight},
        {"edge": edges[0], "layer": 2, "head": 1, "loading": -0.1 * weight},
        {"edge": edges[0], "layer": 2, "head": -1, "loading": 0.4 * weight},
        {"edge": edges[0], "layer": 2, "head": 3, "query": 8, "key": 7, "loading": 0.7 * weight},
        {"edge": edges[1], "layer": 2, "head": 3, "query": 8, "key": 7, "loading": 0.01 * less},
        {"edge": "1_1_1__2_2_2", "layer": 2, "head": 3, "loading": 1.0},
    ]
    attention = [
        {"explanation": 4, "layer": 2, "head": 3, "query": 8, "key": 7, "contrast": "odds",
         "score": 1.5, "capped": 1.5, "pattern": 0.9, "explained": 2.0, "log_odds": float("nan"),
         "sink": 0.0, "cancellation": float("inf"), "residual": 0.0}
    ]  # fmt: skip
    sides = [("q", ids[0], 0.5), ("q", GONE[0], -1.5), ("k", GONE[1], 2.5), ("k", "rest", 0.1)]
    sides += [("q", "constant.biases", 0.2)]
    marginals = [{"explanation": 4, "side": side, "node": node, "weight": weight}
                 for side, node, weight in sides]  # fmt: skip
    pairs = [
        {"explanation": 4, "node_q": ids[0], "node_k": GONE[1], "weight": -0.25},
        {"explanation": 4, "node_q": "rest", "node_k": GONE[1], "weight": 0.75},
    ]
    tables = {
        "heads": table("heads", heads),
        "attention": table("attention", attention),
        "attention_marginals": table("attention_marginals", marginals),
        "attention_pairs": table("attention_pairs", pairs),
    }
    return graph.with_tables(tables).prune(0.79, 0.97), target, edges


def exported(graph: AttributionGraph, profile: str = "circuit-tracer") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(graph.to_attribution_json(profile, ABOUT))
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_explanations_are_of_the_schema_and_every_id_resolves(profile: str):
    jsonschema = pytest.importorskip("jsonschema")
    graph, target, edges = explained()
    value = exported(graph, profile)
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text("utf-8"))).validate(value)
    nodes = {node["node_id"]: node for node in value["nodes"]}
    results = nodes[target]["qk_tracing_results"]
    assert results["top_q_marginal_contributors"] == [[GONE[0], -1.5], [next(iter(nodes)), 0.5]]
    assert results["top_k_marginal_contributors"] == [[GONE[1], 2.5]]
    assert results["pair_wise_contributors"] == [[next(iter(nodes)), GONE[1], -0.25]]
    beside = value["qk_only_nodes"]
    assert set(beside) == set(GONE[:2])
    assert beside[GONE[0]]["feature_type"] == "cross layer transcoder"
    assert (beside[GONE[0]]["layer"], beside[GONE[0]]["ctx_idx"]) == ("1", 7)
    assert beside[GONE[1]]["feature_type"] == "mlp reconstruction error"
    assert sum("qk_tracing_results" in node for node in nodes.values()) == 1
    links = {edge_name(link["source"], link["target"]): link for link in value["links"]}
    assert [row[:2] for row in links[edges[0]]["x_heads"]] == [[2, 3], [2, 1]]
    assert sum("x_heads" in link for link in links.values()) == 1


def test_nodes_that_only_explanations_name_have_their_label_and_activation():
    graph, *_ = explained()
    rows = dallas().nodes.to_pylist()
    whole = dallas()
    known = next(row for row in rows if row["kind"] == "feature")
    value = json.loads(graph.to_attribution_json("circuit-tracer", ABOUT, whole=whole))
    unknown = value["qk_only_nodes"][GONE[0]]
    assert unknown["clerp"] == f"feature {GONE[0].split('_')[1]} of layer 1"
    [row] = descriptors([known["id"]], whole.nodes)
    assert (row["label"] or "").startswith(known["label"] or "feature")
    assert row["activation"] == known["activation"] is not None
    assert row["kind"] == "feature"


def test_tables_come_back_equal_and_not_those_of_edges_that_are_gone():
    graph, _, edges = explained()
    value = exported(graph)
    found, read = AttributionGraph.from_attribution_json(json.dumps(value).encode())
    assert read.whole
    assert set(found.tables) == set(graph.tables)
    for name, held in graph.tables.items():
        assert str(found.tables[name].to_pylist()) == str(held.to_pylist())
        assert found.tables[name].schema == held.schema
    value["links"] = [
        link for link in value["links"]
        if edge_name(link["source"], link["target"]) != edges[0]
    ]  # fmt: skip
    less, _ = AttributionGraph.from_attribution_json(json.dumps(value).encode())
    assert less.heads is not None
    assert set(less.heads["edge"].to_pylist()) == {edges[1]}


def test_results_of_another_tool_are_left_out_and_said():
    graph, *_ = explained()
    value = exported(graph)
    del value["x_tracer"]
    found, read = AttributionGraph.from_attribution_json(json.dumps(value).encode())
    assert not found.tables
    assert any("QK tracing results of 1 nodes" in note for note in read.notes)


@pytest.mark.parametrize(
    "torn", [{"heads": {"edge": ["a"]}}, {"other": {}}, [1], {"heads": 3}, "x"]
)
def test_torn_tables_make_a_file_a_foreign_one(torn: object):
    with pytest.raises(GraphError, match="torn"):
        tables_from_json(torn)
    value = exported(explained()[0])
    value["x_tracer"]["attention"] = torn
    _, read = AttributionGraph.from_attribution_json(json.dumps(value).encode())
    assert not read.whole


def test_an_id_that_is_none_is_refused():
    assert described("E_35_5")["kind"] == "embedding"
    assert described("2a_7_3")["site"] == "attn_out.2"
    with pytest.raises(GraphError, match="no node's id"):
        described(GONE[2])


def test_a_graph_without_tables_exports_as_before():
    graph = dallas().prune()
    value = exported(graph)
    assert "qk_only_nodes" not in value
    assert "attention" not in value["x_tracer"]


def test_a_folder_has_a_file_a_head_with_its_pattern_its_edges_and_its_reasons():
    graph, _, edges = explained()
    patterns = [np.tril(np.full((4, 9, 9), 1 / 9)) for _ in range(3)]
    patterns[2][3, 8] = np.eye(9)[7]
    about = (graph.nodes, graph.edges, graph.metadata)
    made = head_files(patterns, about, graph.tables)
    files = {name: json.loads(content) for name, content in made.items()}
    assert set(files) == {"config.json", "scatter_data.json"} | {
        f"heads/L{layer}H{head}.json" for layer in range(3) for head in range(4)
    }
    assert files["config.json"]["heads"] == [4, 4, 4]
    assert files["config.json"]["tokens"] == graph.metadata["tokens"][:9]
    one = files["heads/L2H3.json"]
    assert one["pattern"][8] == [0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert [len(row) for row in one["pattern"]] == list(range(1, 10))
    [edge] = one["edges"]
    assert edge_name(edge["source"], edge["target"]) == edges[0]
    assert edge["loading"] == pytest.approx(0.7 * edge["weight"])
    [why] = one["explanations"]
    assert (why["query"], why["key"], why["log_odds"]) == (8, 7, None)
    assert [GONE[1], 2.5] in why["k"]
    assert len(why["pairs"]) == 2
    rows = {(row["layer"], row["head"]): row for row in files["scatter_data.json"]}
    assert rows[2, 3]["carried"] == pytest.approx(edge["influence"]) == one["carried"]
    assert rows[0, 0]["carried"] == 0
    uniform = -sum(at / 9 * np.log(1 / 9) for at in range(2, 10)) / 8
    assert rows[0, 0]["entropy"] == pytest.approx(uniform, abs=1e-4)
    assert rows[0, 0]["previous"] == rows[0, 0]["first"] == pytest.approx(1 / 9, abs=1e-4)


def test_a_folder_of_a_model_without_layers_shows_nothing():
    graph = dallas().prune()
    made = head_files([], (graph.nodes, graph.edges, graph.metadata), {})
    files = {name: json.loads(content) for name, content in made.items()}
    assert files.keys() == {"config.json", "scatter_data.json"}
    assert [files["config.json"][name] for name in ("tokens", "layers", "heads")] == [[], 0, []]
