"""The attribution-graph JSON of Neuronpedia and circuit-tracer: out, in, and what goes wrong."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import AttributionGraph, GraphError
from graphs.exchange.attribution_json import PROFILES, About, cantor, uncantor
from tests.graph_samples import dallas, random_graph, two_paths

SCHEMA = Path(__file__).parent / "data" / "attribution_graph" / "graph-schema.json"
ABOUT = About("dallas", source_set="transcoder-16k")
Value = dict[str, Any]


def grouped() -> AttributionGraph:
    graph = dallas().prune()
    ids = [row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    return graph.group("say a capital", ids[:2], (1, 2)).group('a "quoted" name', ids[2:3])


def exported(graph: AttributionGraph, profile: str = "circuit-tracer") -> Value:
    found: Value = json.loads(graph.to_attribution_json(profile, ABOUT))
    return found


def back(value: Value) -> tuple[AttributionGraph, Any]:
    return AttributionGraph.from_attribution_json(json.dumps(value).encode())


def foreign(graph: AttributionGraph, profile: str = "circuit-tracer") -> Value:
    """As another tool would have written it."""
    value = exported(graph, profile)
    del value["x_tracer"]
    return value


@pytest.mark.parametrize("profile", PROFILES)
def test_exports_are_of_the_schema(profile: str):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text("utf-8"))
    for graph in (grouped(), random_graph(0), random_graph(1, features=60).prune()):
        jsonschema.Draft7Validator(schema).validate(exported(graph, profile))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_exported_comes_back_equal(profile: str, dtype: type):
    for graph in (grouped(), random_graph(0, dtype=dtype), random_graph(3, dtype=dtype).prune()):
        pins = graph.nodes["id"].to_pylist()[2:4]
        content = graph.to_attribution_json(profile, ABOUT, pins)
        found, read = AttributionGraph.from_attribution_json(content)
        assert found.nodes.equals(graph.nodes)
        assert found.edges.equals(graph.edges)
        assert found.effect.dtype == graph.effect.dtype
        assert found.metadata == graph.metadata
        assert found.groups == graph.groups
        assert found.scores == graph.scores
        assert (read.pins, read.notes) == (pins, [])


@pytest.mark.parametrize("profile", PROFILES)
def test_another_tools_file_gives_nodes_weights_labels_and_groups(profile: str):
    graph = grouped()
    found, read = back(foreign(graph, profile))
    assert read.notes == []
    for name in ("id", "kind", "layer", "site", "position", "feature", "token"):
        assert found.nodes[name].to_pylist() == graph.nodes[name].to_pylist(), name
    assert (found.effect != graph.effect).nnz == 0
    kinds = graph.nodes["kind"].to_pylist()
    for kind, one, other in zip(
        kinds, found.nodes["label"].to_pylist(), graph.nodes["label"].to_pylist(), strict=True
    ):
        assert kind != "feature" or one == other
    assert [(g.name, g.members) for g in found.groups] == [
        (g.name, g.members) for g in graph.groups
    ]
    assert found.nodes["probability"].to_pylist()[-1] == graph.nodes["probability"].to_pylist()[-1]
    assert "reported_influence" in found.nodes.column_names


@pytest.mark.parametrize("profile", PROFILES)
def test_features_without_a_label_are_named_there_and_have_none_here(profile: str):
    graph = dallas().prune()
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == "feature"][:3]
    graph = graph.relabel({rows[0]["id"]: "", rows[1]["id"]: "· is", rows[2]["id"]: "a · is"})
    nodes = graph.nodes.set_column(
        graph.nodes.column_names.index("label"),
        "label",
        pa.array([one or None for one in graph.nodes["label"].to_pylist()], pa.string()),
    )
    graph = replace(graph, nodes=nodes)
    value = exported(graph, profile)
    clerps = {node["node_id"]: node["clerp"] for node in value["nodes"]}
    token = graph.metadata["tokens"][rows[0]["position"]].strip()
    assert clerps[rows[0]["id"]] == f"L{rows[0]['layer']}/{rows[0]['feature']} · {token}"
    assert clerps[rows[1]["id"]].startswith(f"L{rows[1]['layer']}/{rows[1]['feature']} · ")
    assert clerps[rows[2]["id"]] == "a · is"
    assert back(value)[0].nodes.equals(graph.nodes)
    labels = {row["id"]: row["label"] for row in back(foreign(graph, profile))[0].nodes.to_pylist()}
    assert [labels[row["id"]] for row in rows] == [None, None, "a · is"]
    for node in value["nodes"]:
        if node["node_id"] == rows[0]["id"]:
            node["clerp"] = "named there"
    named = back(value)[0].nodes.to_pylist()
    assert next(row for row in named if row["id"] == rows[0]["id"])["label"] == "named there"


def test_labels_and_groups_changed_by_another_tool_win():
    value = exported(grouped())
    feature = next(n for n in value["nodes"] if n["feature_type"].startswith("cross"))
    feature["clerp"] = "renamed there"
    value["qParams"]["supernodes"] = [["new", feature["node_id"]]]
    found, _ = back(value)
    labels = dict(zip(found.nodes["id"].to_pylist(), found.nodes["label"].to_pylist(), strict=True))
    assert labels[feature["node_id"]] == "renamed there"
    assert [(one.name, one.members) for one in found.groups] == [("new", (feature["node_id"],))]


@given(layer=st.integers(0, 200), index=st.integers(0, 1 << 24))
def test_cantor_numbers_come_apart(layer: int, index: int):
    assert uncantor(cantor(layer, index)) == (layer, index)


def test_what_the_profiles_differ_in():
    graph = grouped()
    hosted, own, tracer = (exported(graph, profile) for profile in PROFILES)
    assert hosted["metadata"]["schema_version"] == tracer["metadata"]["schema_version"] == 1
    assert "schema_version" not in own["metadata"]
    assert hosted["metadata"]["feature_details"] == {"neuronpedia_source_set": "transcoder-16k"}
    for value in (hosted, tracer):
        for node, row in zip(value["nodes"], graph.nodes.to_pylist(), strict=True):
            if row["kind"] == "feature":
                assert uncantor(node["feature"]) == (row["layer"], row["feature"])
    for node, row in zip(own["nodes"], graph.nodes.to_pylist(), strict=True):
        if row["kind"] == "feature":
            assert node["feature"] == int(f"{row['layer']}{row['feature']:05d}")
    url = About("d", feature_url="https://x.org/f")
    found = json.loads(graph.to_attribution_json("self-hosted", url))
    assert found["metadata"]["feature_details"] == {"feature_json_base_url": "https://x.org/f"}
    small = About("d", scan="gpt2-small", source_set="s")
    shifted = json.loads(graph.to_attribution_json("neuronpedia", small))
    first = next(n for n in shifted["nodes"] if n["node_id"].startswith("0_"))
    assert first["layer"] == "1"


def test_traps_of_the_front_ends():
    for graph in (grouped(), random_graph(0)):
        value = exported(graph)
        assert all(isinstance(node["feature"], int) for node in value["nodes"])
        assert "clerps" not in value["qParams"]
        assert value["metadata"].get("node_threshold", 0) is not None
        ids = [node["node_id"] for node in value["nodes"]]
        assert len(ids) == len(set(ids))
        for node in value["nodes"]:
            if node["feature_type"] == "logit":
                assert "(p=0." in node["clerp"] or "(p=1." in node["clerp"]
                assert node["clerp"].count('"') == 2
            if "error" in node["feature_type"]:
                assert "_-1_" in node["node_id"]
        assert {link["source"] for link in value["links"]} <= set(ids)


@pytest.mark.parametrize(
    ("profile", "about", "said"),
    [
        ("neuronpedia", About("d"), "--source-set"),
        ("neuronpedia", About("a b", source_set="s"), "letters, digits"),
        ("self-hosted", About("d", feature_url="http://x.org"), "expected https"),
        ("nobody", About("d"), "expected one of neuronpedia"),
    ],
)
def test_what_the_tools_would_refuse_is_refused_here(profile: str, about: About, said: str):
    with pytest.raises(GraphError, match=said):
        grouped().to_attribution_json(profile, about)


def test_neuronpedia_shows_no_graph_of_one_layer():
    with pytest.raises(GraphError, match="all in layer 0"):
        two_paths().to_attribution_json("self-hosted", ABOUT)
    two_paths().to_attribution_json("circuit-tracer", ABOUT)


def old_circuit_tracer() -> Value:
    """Ids as before 2026: the error of layer 5 at 3 is named like feature 5 of layer 0 there."""

    def node(name: str, kind: str, layer: str, at: int, **more: Any) -> Value:
        return {"node_id": name, "jsNodeId": name, "feature": None, "layer": layer, "ctx_idx": at,
                "feature_type": kind, "clerp": ""} | more  # fmt: skip

    nodes = [
        node("0_5_3", "cross layer transcoder", "0", 3, feature=20, clerp="first"),
        node("6_9_3", "cross layer transcoder", "6", 3, feature=600009),
        node("0_5_3", "mlp reconstruction error", "5", 3, feature=-1),
        *(node(f"E_{at}_{at}", "embedding", "E", at, feature=at) for at in range(4)),
        node("8_77_3", "logit", "8", 3, clerp='Output " Austin" (p=0.731)', feature=77),
    ]
    links = [
        {"source": "E_3_3", "target": "0_5_3", "weight": 1.0},
        {"source": "0_5_3", "target": "6_9_3", "weight": 2.0},
        {"source": "0_5_3", "target": "6_9_3", "weight": 3.0},
        {"source": "6_9_3", "target": "8_77_3", "weight": 4.0},
        {"source": "gone", "target": "8_77_3", "weight": 5.0},
        {"source": "8_77_3", "target": "6_9_3", "weight": 6.0},
    ]
    metadata = {"slug": "x", "scan": "gemma", "prompt": "a b c d", "prompt_tokens": list("abcd")}
    return {"metadata": metadata, "qParams": {}, "nodes": nodes, "links": links}


def test_a_weight_beyond_float32_is_kept_in_float64():
    value = old_circuit_tracer()
    value["links"][0]["weight"] = 3.4028235677973366e38
    graph, _ = back(value)
    assert graph.effect.dtype == np.float64
    assert graph.effect.data.max() == 3.4028235677973366e38


def test_a_weight_that_cannot_be_added_up_is_refused():
    value = old_circuit_tracer()
    value["links"][0]["weight"] = -1.7e308
    with pytest.raises(GraphError, match=r"link 0 .* a finite weight"):
        back(value)


def test_old_ids_that_collide_are_told_apart_and_bad_links_are_said():
    graph, read = back(old_circuit_tracer())
    rows = {row["id"]: row for row in graph.nodes.to_pylist()}
    assert rows["0_5_3"]["kind"] == "feature"
    assert rows["5_-1_3"]["kind"] == "error"
    assert rows["6_9_3"]["feature"] == 9
    assert (rows["8_77_3"]["text"], rows["8_77_3"]["probability"]) == (" Austin", 0.731)
    at = {name: row for row, name in enumerate(graph.nodes["id"].to_pylist())}
    assert graph.effect[at["0_5_3"], at["E_3_3"]] == 1
    assert graph.effect[at["6_9_3"], at["0_5_3"]] == 2
    assert graph.effect[at["6_9_3"], at["5_-1_3"]] == 3
    said = " ".join(read.notes)
    for part in ("lead to no node", "run where no effect can", "one of several nodes"):
        assert part in said
    assert graph.effect.nnz == 4


@pytest.mark.parametrize(
    "params",
    [
        {"pinnedIds": ["6_9_3", "nil"], "supernodes": [["g", "0_5_3", "6_9_3"]]},
        {"pinnedIds": "6_9_3,nil", "supernodes": '[["g","0_5_3","6_9_3"]]'},
        {"pinnedIds": '["6_9_3"]', "supernodes": '[["g","0_5_3","6_9_3"]]', "clerps": None},
    ],
)
def test_a_saved_view_is_read_in_every_form(params: Value):
    graph, read = back(old_circuit_tracer() | {"qParams": params})
    assert read.pins == ["6_9_3"]
    assert [(one.name, one.members) for one in graph.groups] == [("g", ("0_5_3", "6_9_3"))]


def test_labels_of_a_saved_view_are_taken():
    for clerps in ([["6_9_3", "mine"]], '[["6_9_3","mine"]]'):
        graph, _ = back(old_circuit_tracer() | {"qParams": {"clerps": clerps}})
        assert "mine" in graph.nodes["label"].to_pylist()
    for params in (None, {"pinnedIds": None, "supernodes": None}, {"supernodes": "[["}):
        graph, read = back(old_circuit_tracer() | {"qParams": params})
        assert (graph.groups, read.pins) == ((), [])


def test_attention_features_and_ids_without_a_scheme_are_read():
    value = old_circuit_tracer()
    value["metadata"]["schema_version"] = 1
    value["nodes"][1] |= {"node_id": "6_lor_9_3", "feature_type": "lorsa"}
    more = {"layer": 6, "ctx_idx": 3, "feature_type": "unexplored node"}
    value["nodes"].append({"node_id": "any", "feature": cantor(6, 41)} | more)
    value["links"] = [{"source": "6_lor_9_3", "target": "any", "weight": 1}]
    graph, _ = back(value)
    rows = {row["id"]: row for row in graph.nodes.to_pylist()}
    assert rows["6a_9_3"]["site"] == "attn_out.6"
    assert rows["6_41_3"]["feature"] == 41
    assert graph.effect.nnz == 1


def broken(change: Callable[[Value], object]) -> bytes:
    value = old_circuit_tracer()
    change(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "metadata is missing"),
        (b'{"metadata": {}, "nodes": {}, "links": []}', "nodes is missing or no list"),
        (broken(lambda v: v["metadata"].pop("prompt_tokens")), "prompt_tokens"),
        (broken(lambda v: v["nodes"].append(3)), "node 8 is 3"),
        (broken(lambda v: v["nodes"][0].pop("ctx_idx")), "has ctx_idx None"),
        (broken(lambda v: v["nodes"][0].update(ctx_idx=9)), "position 9, but prompt_tokens has 4"),
        (broken(lambda v: v["nodes"][2].update(layer="x")), "has layer 'x'"),
        (broken(lambda v: v["links"].append({"source": "a"})), "link 6 is"),
        (broken(lambda v: v["links"][0].update(weight=float("nan"))), "link 0 is"),
        (broken(lambda v: v["nodes"][7].update(token_prob=-1)), "no negative number"),
    ],
)
def test_what_makes_no_graph_is_refused_in_one_line(content: bytes, said: str):
    with pytest.raises(GraphError, match=said) as caught:
        AttributionGraph.from_attribution_json(content)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_with_anything_in_it_is_read_or_refused(data: st.DataObject):
    value = old_circuit_tracer()
    junk = st.one_of(st.none(), st.integers(-5, 99), st.text(max_size=6), st.floats(), st.just([]))
    for _ in range(3):
        part = data.draw(st.sampled_from([value["metadata"], *value["nodes"], *value["links"]]))
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(junk)
    with suppress(GraphError):
        assert back(value)[0].nodes.num_rows
