"""Where nodes stand: every node has a site, in the order of a forward pass; version 1 is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from graphs import AttributionGraph, GraphError
from graphs.node_sites import STAGES, misplaced, rank
from replacement_models.sites import Site, Stage
from tests.graph_samples import columns, random_graph

VERSION_1 = Path(__file__).parent / "data" / "version_1.graph"
"""Traced and pruned at commit c617c47, by a target token and a direction entering layer 2."""


def attended(**changes: Any) -> AttributionGraph:
    """A token, a feature of attention in layer 1, one of its MLP, and a logit."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5, "text": " Dallas"},
        {"kind": "feature", "layer": 1, "position": 0, "feature": 3, "site": "attn_out.1"},
        {"kind": "feature", "layer": 1, "position": 0, "feature": 7, "label": "Texas"},
        {"kind": "logit", "layer": 2, "position": 0, "token": 9, "text": " Austin",
         "probability": 1},
    ]  # fmt: skip
    rows[1] |= changes
    effect = sparse.csr_array(np.tril(np.ones((4, 4)), -1) * np.array([[0], [1], [1], [1]]))
    return AttributionGraph.build(columns(rows), effect, {"tokens": [" Dallas"], "layers": 2})


def test_both_packages_name_and_order_sites_alike():
    assert [stage.name.lower() for stage in list(Stage)[1:5]] == list(STAGES)
    sites = [Site(layer, stage) for layer in (0, 1, 11) for stage in list(Stage)[1:5]]
    every = [Site.embed(), *sites, Site.logits(12)]
    assert sorted(map(str, every[::-1]), key=rank) == [str(site) for site in every]


def test_a_site_left_out_is_the_usual_one():
    sites = attended().nodes["site"].to_pylist()
    assert sites == ["embed", "attn_out.1", "mlp_out.1", "logits"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "mlp_out.0"}, "feature of layer 1, has site 'mlp_out.0': expected attn_out.1 or"),
        ({"site": "resid_mid.1"}, "has site 'resid_mid.1': expected attn_out.1 or mlp_out.1"),
        ({"site": "hook_mlp"}, "has site 'hook_mlp'"),
        ({"layer": 2, "site": "attn_out.2"}, "stands at layer 2, expected 0 to 1"),
    ],
)
def test_a_node_at_no_site_of_its_own_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message):
        attended(**changes)


def test_tokens_stand_at_the_embedding():
    assert misplaced(["embedding"], [-1], ["mlp_out.0"]) == (
        "node 0, embedding of layer -1, has site 'mlp_out.0': expected embed"
    )


def test_nodes_out_of_order_are_refused():
    rows = [
        {"kind": "feature", "layer": 1, "position": 0, "feature": 3},
        {"kind": "error", "layer": 0, "position": 0},
    ]
    with pytest.raises(
        GraphError, match=r"node 1 at mlp_out\.0 comes too late: list nodes in comp"
    ):
        AttributionGraph.build(columns(rows), sparse.csr_array((2, 2), dtype=float), {})


def test_features_of_attention_have_a_row_of_their_own_in_the_picture():
    text = attended().to_dot()
    assert "L1 attention" in text
    assert "L0 attention" not in text
    assert "attention" not in random_graph(0).to_dot()


def test_a_graph_of_version_1_is_read_and_saved_as_the_present_one(tmp_path: Path):
    graph = AttributionGraph.load(VERSION_1)
    assert graph.metadata["format_version"] == 2
    nodes = graph.nodes.to_pylist()
    assert {n["site"] for n in nodes if n["kind"] == "embedding"} == {"embed"}
    inner = [n for n in nodes if n["kind"] in ("feature", "error")]
    assert [n["site"] for n in inner] == [f"mlp_out.{n['layer']}" for n in inner]
    assert [n["site"] for n in nodes if n["kind"] == "logit"] == ["logits", "resid_pre.2"]
    graph.save(tmp_path / "new.graph")
    again = AttributionGraph.load(tmp_path / "new.graph")
    assert again.nodes.equals(graph.nodes)
    assert again.scores == graph.scores
