"""Groups: kept with the graph, changed as values, refused where they do not belong to it."""

import json
from pathlib import Path

import pytest

from graphs import AttributionGraph, GraphError, Group
from graphs.groups import from_bytes, to_bytes
from tests.graph_samples import random_graph, two_paths

PLACES = ["dallas.graph", "dallas.zip"]


def features(graph: AttributionGraph) -> list[str]:
    rows = graph.nodes.select(["id", "kind"]).to_pylist()
    return [row["id"] for row in rows if row["kind"] == "feature"]


@pytest.fixture
def graph() -> AttributionGraph:
    plain = random_graph(0, features=20)
    ids = features(plain)
    return plain.group("say a capital", ids[:3], (1.5, -2)).group("Texas \N{CHECK MARK}", ids[3:5])


@pytest.mark.parametrize("name", PLACES)
def test_groups_are_saved_and_come_back(tmp_path: Path, name: str, graph: AttributionGraph):
    graph.save(tmp_path / name)
    loaded = AttributionGraph.load(tmp_path / name)
    assert loaded.groups == graph.groups
    assert loaded.groups[0].place == (1.5, -2)
    loaded.save(tmp_path / f"second_{name}")
    if name.endswith(".zip"):
        assert (tmp_path / f"second_{name}").read_bytes() == (tmp_path / name).read_bytes()
    else:
        held = json.loads((tmp_path / name / "groups.json").read_text("utf-8"))
        assert held["format"] == 1
        assert held["groups"][1]["members"] == list(graph.groups[1].members)
        assert held["groups"][1]["place"] is None


@pytest.mark.parametrize("name", PLACES)
def test_groups_of_the_graph_before_do_not_stay(tmp_path: Path, name: str, graph: AttributionGraph):
    graph.save(tmp_path / name)
    random_graph(1).save(tmp_path / name)
    assert AttributionGraph.load(tmp_path / name).groups == ()


def test_a_graph_without_groups_has_no_file_for_them(tmp_path: Path):
    two_paths().save(tmp_path / "g")
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "edges.arrow",
        "nodes.arrow",
    ]


def test_pruning_drops_members_and_groups_that_are_gone(graph: AttributionGraph):
    small = graph.prune(nodes=0.5, edges=0.9)
    left = set(small.nodes["id"].to_pylist())
    expected = {
        group.name: tuple(one for one in group.members if one in left) for group in graph.groups
    }
    assert {group.name: group.members for group in small.groups} == {
        name: members for name, members in expected.items() if members
    }
    nothing_left = two_paths().group("one", ["feature1"]).prune(nodes=0.5, edges=0.2)
    assert "feature1" in nothing_left.nodes["id"].to_pylist() or nothing_left.groups == ()


def test_relabelled_and_networkx_graphs_keep_their_groups(graph: AttributionGraph):
    ids = features(graph)
    assert graph.relabel({ids[0]: "capital"}).groups == graph.groups
    held = graph.to_networkx()
    assert AttributionGraph.from_networkx(held).groups == graph.groups
    held.remove_node(ids[0])
    assert AttributionGraph.from_networkx(held).groups[0].members == tuple(ids[1:3])


def test_a_node_is_in_one_group_and_a_name_names_one(graph: AttributionGraph):
    ids = features(graph)
    moved = graph.group("new", [ids[0], ids[3], ids[4]])
    assert [(one.name, one.members) for one in moved.groups] == [
        ("say a capital", tuple(ids[1:3])),
        ("new", (ids[0], ids[3], ids[4])),
    ]
    again = graph.group("say a capital", ids[7:8])
    assert [one.members for one in again.groups] == [(ids[7],), tuple(ids[3:5])]
    assert graph.rename("say a capital", "capital").groups[0].name == "capital"
    assert [one.name for one in graph.ungroup("say a capital").groups] == ["Texas ✓"]
    assert graph.groups[0].members == tuple(ids[:3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.group("x", ["nil"]), "'nil', which is no node"),
        (lambda g: g.group("x", []), "expected at least one node id"),
        (lambda g: g.group(" ", features(g)), "expected some text"),
        (lambda g: g.group("x" * 201, features(g)), "at most 200"),
        (lambda g: g.group("x", features(g)[:1] * 2), "twice"),
        (lambda g: g.group("x", features(g), (1, float("nan"))), "two finite numbers"),
        (lambda g: g.ungroup("x"), "expected 'say a capital', 'Texas"),
        (lambda g: g.rename("x", "y"), "no group has the name 'x'"),
        (lambda g: g.rename("say a capital", "Texas ✓"), "two groups"),
        (lambda g: two_paths().ungroup("x"), "there are none"),
    ],
)
def test_what_is_no_group_is_refused_in_one_line(change, said: str, graph: AttributionGraph):
    with pytest.raises(GraphError, match=said) as caught:
        change(graph)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "has format 'list', expected 1"),
        (b'{"format": 2, "groups": []}', "has format 2, expected 1"),
        (b'{"format": 1}', "expected a list"),
        (b'{"format": 1, "groups": [3]}', "group 0 is 3"),
        (b'{"format": 1, "groups": [{"name": "a", "members": [1]}]}', "at least one node id"),
        (b'{"format": 1, "groups": [{"members": ["E_32_2"]}]}', "expected some text"),
        (b'{"format": 1, "groups": [{"name": "a", "members": ["nil"]}]}', "which is no node"),
        (
            b'{"format": 1, "groups": [{"name": "a", "members": ["E_32_2"], "place": [1]}]}',
            "expected two finite numbers",
        ),
        (
            b'{"format": 1, "groups": [{"name": "a", "members": ["E_32_2"]}, '
            b'{"name": "b", "members": ["E_32_2"]}]}',
            "in the groups 'a' and 'b'",
        ),
    ],
)
def test_a_file_of_groups_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
):
    random_graph(0).save(tmp_path / "g")
    (tmp_path / "g" / "groups.json").write_bytes(content)
    with pytest.raises(GraphError, match=said) as caught:
        AttributionGraph.load(tmp_path / "g")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "g") in str(caught.value)


def test_the_same_groups_give_the_same_bytes():
    groups = (Group("a", ("x",), (1, 2)), Group("b", ("y", "z")))
    assert to_bytes(from_bytes(to_bytes(groups))) == to_bytes(groups)
