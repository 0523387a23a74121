"""Two graphs beside each other: what is shared, what one lacks, what changed."""

import base64
import inspect
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import tracer
from graphs import AttributionGraph, GraphError
from graphs.collections.alignment import aligned
from graphs.collections.compare import Comparison, compare
from graphs.pictures import render
from tests.graph_samples import columns, dallas, random_graph, two_paths
from tests.test_cli import defaults, refused, run, succeed

ROOT = Path(__file__).parents[1]
IN_NODE = """
import { readFileSync } from "node:fs";
import { compare } from "./graphs/viewer/modules/compare.mjs";
import { fromBase64, readGraph } from "./graphs/viewer/modules/data.mjs";
const packed = JSON.parse(readFileSync(0, "utf8"));
const [a, b] = await Promise.all(packed.map((one) => readGraph(fromBase64(one))));
const found = compare(a, b);
const rows = (all) => all.map(({ left, right, of }) => ({
  a: left.map((row) => a.id[row]), b: right.map((row) => b.id[row]), of }));
console.log(JSON.stringify({ overlap: found.overlap, shared: rows(found.shared),
  left: rows(found.left), right: rows(found.right) }));
"""


def by_ids(found: Comparison) -> dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, Any]]:
    """Rows of the nodes by the ids on both sides."""
    return {(tuple(row["nodes_a"]), tuple(row["nodes_b"])): row for row in found.nodes.to_pylist()}


def longer() -> AttributionGraph:
    """The graph of two paths with a word in front, a weaker feature and a turned edge."""
    old = two_paths()
    rows = [{**row, "position": 1, "id": f"{row['id']}x"} for row in old.nodes.to_pylist()]
    first = {"kind": "embedding", "layer": -1, "position": 0, "token": 3, "text": "In", "id": "in"}
    given = columns([first, *rows])
    effect = old.effect.toarray()
    whole = np.zeros((4, 4))
    whole[1:, 1:] = effect
    whole[3, 2], whole[3, 1], whole[2, 0] = 1, 1, 2
    return AttributionGraph.build(given, sparse.csr_array(whole), {"tokens": ["In", " Dallas"]})


def test_a_graph_shares_everything_with_itself():
    found = compare(dallas(), dallas())
    assert set(found.nodes["status"].to_pylist()) == {"shared"}
    assert set(found.edges["status"].to_pylist()) == {"shared"}
    assert found.overlap == found.overlap_anywhere == 1
    assert found.columns == [(at, at) for at in range(9)]
    assert found.nodes["change"].to_pylist() == [0] * found.nodes.num_rows


@pytest.mark.parametrize("align", ["text", "end"])
def test_positions_go_together_and_what_changed_is_worked_out_by_hand(align: str):
    a, b = two_paths(), longer()
    found = compare(a, b, align=align, nodes=1, edges=1)
    assert found.columns == [(None, 0), (0, 1)]
    rows = by_ids(found)
    assert {ends: row["status"] for ends, row in rows.items()} == {
        (("embedding0",), ("embedding0x",)): "changed",
        (("feature1",), ("feature1x",)): "changed",
        (("logit2",), ("logit2x",)): "shared",
        ((), ("in",)): "only_b",
    }
    feature = rows[("feature1",), ("feature1x",)]
    assert feature["influence_a"] == 0.75  # of the inputs -3 and 1 of the answer
    assert feature["influence_b"] == 0.5  # of 1 and 1
    assert feature["change"] == -0.25
    assert rows[("embedding0",), ("embedding0x",)]["change"] == 0.5 + 0.5 * 0.5 - 1
    edges = {row["edges_b"][0]: row for row in found.edges.to_pylist()}
    turned = edges["feature1x__logit2x"]
    assert (turned["weight_a"], turned["weight_b"], turned["status"]) == (-3, 1, "changed")
    assert edges["in__feature1x"]["status"] == "only_b"
    assert edges["in__feature1x"]["weight_a"] is None
    assert found.overlap == pytest.approx(0.5 / 0.75)


def test_what_is_compared_in_words_says_how_and_names_what_turned():
    lines = compare(two_paths(), longer(), nodes=1, edges=1).sentences()
    text = "\n".join(lines)
    assert "by the text of their tokens; they differ at nothing / “In”." in text
    assert "1 features in both, 1 of them changed, 0 in A alone, 0 in B alone" in text
    assert "In B alone: “In” 25%." in text
    assert "Texas, TX (L0, at “Dallas”) 75% → 50%" in text
    assert "turned sign (1): Texas, TX (L0, at “Dallas”) ⊣ “Austin” in A, → in B." in text


def test_a_node_that_was_pruned_away_says_what_it_carried_there():
    found = compare(dallas(), dallas(1))
    graph = dallas(1)
    influence = dict(zip(graph.nodes["id"].to_pylist(), graph.nodes["influence"].to_pylist(),
                         strict=True))  # fmt: skip
    rows = [row for row in found.nodes.to_pylist() if row["status"] == "only_a"]
    pruned = [row for row in rows if row["pruned_away"] is not None and row["kind"] == "feature"]
    assert pruned
    whole = sum(graph.nodes["probability"].drop_null().to_pylist())
    for row in pruned:
        assert row["pruned_away"] == pytest.approx(influence[row["nodes_a"][0]] / whole)
        assert row["influence_b"] == 0
    absent = [row for row in rows if row["pruned_away"] is None]
    assert all(row["nodes_a"][0] not in influence for row in absent)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_with_anywhere_it_means_what_the_viewer_means():
    graphs = [dallas().prune(), random_graph(5).prune()]
    packed = json.dumps([base64.b64encode(one.packed()).decode() for one in graphs])
    done = subprocess.run(
        ["node", "--input-type=module", "-e", IN_NODE],
        cwd=ROOT, input=packed, capture_output=True, text=True, env=os.environ, check=True,
    )  # fmt: skip
    theirs = json.loads(done.stdout)
    ours = compare(*graphs, align="anywhere")
    assert ours.overlap == ours.overlap_anywhere == pytest.approx(theirs["overlap"], rel=1e-9)
    for name, statuses in (
        ("shared", {"shared", "changed"}),
        ("left", {"only_a"}),
        ("right", {"only_b"}),
    ):
        rows = {
            (*row["nodes_a"], "/", *row["nodes_b"]): (row["influence_a"], row["influence_b"])
            for row in ours.nodes.to_pylist()
            if row["status"] in statuses
        }
        expected = {(*one["a"], "/", *one["b"]): tuple(one["of"]) for one in theirs[name]}
        assert rows.keys() == expected.keys()
        for key, shares in rows.items():
            assert shares == pytest.approx(expected[key], rel=1e-9)


def test_features_of_two_dictionaries_are_never_matched_by_number():
    graphs = [dallas() for _ in range(2)]
    for name, graph in zip(("one", "two"), graphs, strict=True):
        graph.metadata["transcoders_hash"] = name
    found = compare(*graphs)
    kinds = {row["kind"] for row in found.nodes.to_pylist() if row["nodes_a"] and row["nodes_b"]}
    assert "feature" not in kinds
    assert {"embedding", "logit"} <= kinds
    assert found.overlap == found.overlap_anywhere == 0
    assert "two dictionaries" in found.notes[0]


def in_steps(skipping: float, name: str, model: str = "one") -> AttributionGraph:
    """A token, two features one after the other, and the part that skips the second."""
    token = {"kind": "embedding", "layer": -1, "position": 0, "token": 1, "text": "a", "id": "e"}
    features = [
        {"kind": "feature", "layer": layer, "position": 0, "feature": 0, "id": f"f{layer}"}
        for layer in range(2)
    ]
    answer = {"kind": "logit", "layer": 2, "position": 0, "token": 2, "text": "b", "id": "l"}
    effect = np.zeros((4, 4))
    effect[1, 0] = effect[2, 1] = 1
    effect[3, 1], effect[3, 2] = skipping, 1 - skipping
    rows = columns([token, *features, {**answer, "probability": 1.0}])
    metadata = {"tokens": ["a"], "transcoders_hash": name, "model": model}
    return AttributionGraph.build(rows, sparse.csr_array(effect), metadata)


def test_two_dictionaries_that_disagree_on_the_steps_are_a_sign_of_skipping(tmp_path: Path):
    layered, crossing = in_steps(0.0, "per-layer"), in_steps(0.75, "cross-layer")
    assert layered.steps == 2
    assert crossing.steps == pytest.approx(1.25)
    [_, said] = compare(layered, crossing).notes
    assert said.startswith("from a token to the answer influence passes 1.2 features in B and 2.0")
    assert "sign that one dictionary leaves out or skips steps" in said
    assert "1.2 features in A and 2.0 in B" in compare(crossing, layered).notes[1]
    paths = [tmp_path / "a.graph", tmp_path / "b.graph"]
    for graph, path in zip((layered, crossing), paths, strict=True):
        graph.save(path)
    assert "skips steps" in " ".join(run("compare", *map(str, paths)).stderr.split())


@pytest.mark.parametrize(
    "other",
    [in_steps(0.4, "cross-layer"), in_steps(0.75, "per-layer"), in_steps(0.75, "other", "two")],
    ids=["they hardly differ", "one dictionary", "two models"],
)
def test_nothing_else_is_taken_for_skipping(other: AttributionGraph):
    assert not any("skip" in note for note in compare(in_steps(0.0, "per-layer"), other).notes)


def test_ways_from_errors_take_no_part_in_steps():
    graph = in_steps(0.0, "per-layer")
    rows = graph.nodes.to_pylist()
    error = {"kind": "error", "layer": 1, "position": 0, "id": "x"}
    effect = np.zeros((5, 5))
    effect[1, 0] = effect[2, 1] = effect[4, 2] = effect[4, 3] = 1
    mixed = AttributionGraph.build(
        columns([*rows[:3], error, {**rows[3], "probability": 1.0}]), sparse.csr_array(effect), {}
    )
    assert mixed.steps == graph.steps == 2


def test_prompts_are_aligned_by_what_they_share():
    dallas_is = ["The", " capital", " containing", " Dallas", " is"]
    fort_worth = ["So", " the", " capital", " containing", " Fort", " Worth", " is"]
    assert aligned(dallas_is, fort_worth, "text") == [
        *((None, 0), (0, 1), (1, 2), (2, 3), (None, 4), (3, 5), (4, 6)),
    ]
    assert aligned([], ["a"], "end") == [(None, 0)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"align": "left"}, "align is 'left', expected one of text, end, anywhere"),
        ({"change": 2.0}, "change is 2.0"),
        ({"nodes": 0.0}, "nodes is 0.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(GraphError, match=said):
        compare(dallas(), dallas(1), **settings)


def test_the_picture_has_two_panels_with_shared_nodes_at_one_place(tmp_path: Path):
    found = compare(dallas(), dallas(1))
    text = found.render(tmp_path / "both.dot").read_text()
    panels = [
        {line.split('"')[1].split(" ")[2]: line for line in text.splitlines()
         if line.startswith(f'"panel {at} ') and "->" not in line}
        for at in (0, 1)
    ]  # fmt: skip
    assert len(panels[0]) == found.a.nodes.num_rows
    assert len(panels[1]) == found.b.nodes.num_rows
    shifts = set()
    for name in panels[0].keys() & panels[1].keys():
        (x0, y0), (x1, y1) = (
            panel[name].split('pos="')[1].split("!")[0].split(",") for panel in panels
        )
        assert y0 == y1
        shifts.add(round(float(x1) - float(x0), 0))
    assert len(shifts) <= 2  # rounded to a tenth
    if render.available():
        assert found.render(tmp_path / "both.svg").stat().st_size > 5000
    with pytest.raises(GraphError, match="expected a suffix"):
        found.render(tmp_path / "both.gif")


def test_hostile_text_is_inert_in_words_and_picture(tmp_path: Path):
    graph = dallas().relabel({"2_80_8": '<b>"x\x1b[2J'})
    found = compare(graph, dallas(1))
    assert "\x1b" not in "".join(found.sentences(30))
    assert "\x1b" not in found.render(tmp_path / "a.dot").read_text()


def test_the_command_prints_words_and_tables_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    dallas().save("a.graph")
    dallas(1).save("b.zip")
    found = compare(dallas(), dallas(1))
    text = succeed("compare", "a.graph", "b.zip", "-o", "both.dot")
    for line in found.sentences():
        assert line in text
    first = found.nodes.to_pylist()[0]
    assert f"{first['name']}\t{first['status']}\t" in text
    assert text.endswith("Drew both.dot\n")
    said = json.loads(succeed("compare", "a.graph", "b.zip", "--json"))
    assert said == json.loads(json.dumps(found.to_json()))
    assert "nowhere does not exist" in refused("compare", "a.graph", "nowhere")


def test_the_command_has_the_defaults_of_the_call():
    shown = defaults("compare")
    for name, parameter in inspect.signature(tracer.compare).parameters.items():
        if parameter.default is not parameter.empty:
            assert shown[name] == parameter.default
