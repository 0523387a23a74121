"""Automatic groups, the measures behind them, and the scores of the grouped graph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import AttributionGraph, GraphError
from graphs.grouped import group_name
from graphs.similarity import clusters
from tests.graph_samples import columns, dallas, random_graph


def features(graph: AttributionGraph) -> list[str]:
    rows = graph.nodes.select(["id", "kind"]).to_pylist()
    return [row["id"] for row in rows if row["kind"] == "feature"]


def rivals(sign: float) -> AttributionGraph:
    """A token, two features that read it alike and write to one logit with `sign` apart."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 1, "label": "Texas, TX"},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 2, "label": "Texas"},
        {"kind": "logit", "layer": 1, "position": 0, "token": 9, "probability": 1},
    ]
    effect = np.zeros((4, 4))
    effect[1:3, 0] = 2
    effect[3, 1:3] = 3, 1 * sign
    return AttributionGraph.build(columns(rows), sparse.csr_array(effect), {"tokens": ["a"]})


def test_a_group_whose_members_agree_keeps_the_scores_and_one_that_disagrees_pays():
    same = rivals(1).group("Texas", ["feature1", "feature2"]).grouped_scores()
    assert same.replacement == pytest.approx(1)
    assert same.completeness == pytest.approx(1)
    apart = rivals(-1).group("Texas", ["feature1", "feature2"]).grouped_scores()
    assert apart.replacement == pytest.approx(0.5)  # 3/4 - 1/4 of the logit's input
    # logit: 1 of 1 weight, half lost; group: half a weight, all explained; token: half a weight
    assert apart.completeness == pytest.approx((0.5 + 0.5 + 0.5) / 2)


def test_features_outside_the_groups_count_as_error_where_groups_stand_alone():
    alone = rivals(1).group("Texas", ["feature1"]).grouped_scores(alone=True)
    assert alone.replacement == pytest.approx(0.75)
    nothing = rivals(1).grouped_scores(alone=True)
    assert nothing.replacement == pytest.approx(0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), some=st.integers(1, 12))
def test_scores_with_groups_are_never_above_those_without(seed: int, some: int):
    graph = random_graph(seed, features=30).prune()
    plain = graph.grouped_scores()
    assert plain.replacement == pytest.approx(graph.scores.replacement, abs=1e-9)
    assert plain.completeness == pytest.approx(graph.scores.completeness, abs=1e-9)
    ids = features(graph)
    grouped = graph.group("some", ids[:some] or ids)
    found = grouped.grouped_scores()
    assert found.replacement <= plain.replacement + 1e-9
    assert grouped.grouped_scores(alone=True).replacement <= found.replacement + 1e-9
    single = graph
    for name in ids:
        single = single.group(name, [name])
    assert single.grouped_scores(alone=True).completeness == pytest.approx(plain.completeness)


def test_tokens_and_errors_in_a_group_hide_nothing():
    graph = random_graph(3, features=30).prune()
    rows = graph.nodes.to_pylist()
    everything = [row["id"] for row in rows if row["kind"] in ("error", "embedding")]
    grouped = graph.group("all", everything).grouped_scores()
    assert grouped.replacement == pytest.approx(graph.scores.replacement)
    assert grouped.completeness == pytest.approx(graph.scores.completeness)


def test_features_of_one_label_and_like_neighbours_are_grouped_and_named_by_it():
    graph = rivals(1).group_features()
    assert [(one.name, one.members) for one in graph.groups] == [
        ("Texas", ("feature1", "feature2"))
    ]
    assert rivals(1).group_features(least=0.9).groups == ()
    for by in ("likeness", "profiles"):
        found = dallas().prune().group_features(by=by)
        assert found.groups == dallas().prune().group_features(by=by).groups
        where = {row["id"]: row["position"] for row in found.nodes.to_pylist()}
        for one in found.groups:
            assert len(one.members) > 1
            assert len({where[name] for name in one.members}) == 1


def test_decoders_decide_where_they_are_given():
    features_apart = np.array([[1.0, -1], [-1, 1]])
    least = 0.7
    assert rivals(1).group_features(least, decoders=features_apart).groups == ()
    assert len(rivals(1).group_features(least, decoders=np.ones((2, 2))).groups) == 1


def test_groups_reach_over_positions_only_where_asked():
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 1, "label": "Texas"},
        {"kind": "feature", "layer": 0, "position": 1, "feature": 1, "label": "Texas"},
        {"kind": "logit", "layer": 1, "position": 1, "token": 9, "probability": 1},
    ]
    effect = np.zeros((4, 4))
    effect[1:3, 0], effect[3, 1:3] = 1, 1
    metadata = {"tokens": ["a", "b"]}
    graph = AttributionGraph.build(columns(rows), sparse.csr_array(effect), metadata)
    assert graph.group_features().groups == ()
    assert len(graph.group_features(across=True).groups) == 1


def test_two_groups_of_one_meaning_have_two_names():
    rows = [{"label": "Texas", "influence": 1.0, "id": f"n{at}", "position": at % 2, "feature": at}
            for at in range(6)]  # fmt: skip
    from graphs.grouped import named

    members = [[rows[0], rows[2]], [rows[1], rows[3]], [rows[4]], [rows[5]]]
    names = [one.name for one in named(members, [" Dallas", " is"])]
    assert names == ["Texas", "Texas (at is)", "Texas (at Dallas)", "Texas 2"]
    rows[0] |= {"label": "Texas 2", "position": 9}
    names = [one.name for one in named([[row] for row in rows[:5]], [" Dallas", " is"])]
    assert names == ["Texas 2", "Texas", "Texas (at Dallas)", "Texas (at is)", "Texas 3"]
    names = [one.name for one in named([rows[:1]] * 2, [" Dallas", " is"])]
    assert names == ["Texas 2", "Texas 2 (at position 9)"]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["Texas, TX", "TX, Houston"], "TX"),
        (["say a capital · is", "say a capital · in"], "say a capital"),
        ([None, None], "no label"),
        (["Texas", "Ohio"], "Texas, Ohio"),
        (["≈ on “to” +3, with “,” +1 · to", None], "≈ on “to” +3, with “,” +1"),
        (["on “a”, “,” or “b”"], "on “a”, “,” or “b”"),
        (["e.g. One cat, two [,] · ,"], "e.g. One cat, two [,]"),
    ],
)
def test_a_group_is_named_by_what_its_labels_share(labels: list[str | None], name: str):
    rows = [{"label": label, "influence": 1.0, "feature": at} for at, label in enumerate(labels)]
    assert group_name(rows) == name


def test_complete_link_asks_every_pair():
    alike = np.array([[1, 0.9, 0.2], [0.9, 1, 0.9], [0.2, 0.9, 1.0]])
    assert [len(some) for some in clusters(alike, np.zeros(3), 0.5)] == [2]
    assert [len(some) for some in clusters(alike, np.zeros(3), 0.2)] == [3]
    assert clusters(alike, np.arange(3), 0.2) == []
    assert clusters(np.ones((1, 1)), np.zeros(1), 0.2) == []


def test_what_cannot_be_asked_is_refused():
    graph = rivals(1)
    with pytest.raises(GraphError, match="least is 0"):
        graph.group_features(0)
    with pytest.raises(GraphError, match="expected one of likeness, profiles"):
        graph.group_features(by="colour")
    with pytest.raises(GraphError, match=r"shape \(3, 3\), expected \(2, 2\)"):
        graph.group_features(decoders=np.ones((3, 3)))


def test_graphs_without_features_have_no_groups():
    empty = AttributionGraph.build(columns([]), sparse.csr_array((0, 0)), {})
    assert empty.group_features().groups == ()
    assert np.isnan(empty.grouped_scores().replacement)
