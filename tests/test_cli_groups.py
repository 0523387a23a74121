"""`tracer group`, and groups as targets of `tracer intervene` and `generate`."""

import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import tracer
from graphs import AttributionGraph
from graphs.graph import LEAST
from tests.graph_samples import random_graph
from tests.test_cli import defaults, refused, succeed

PROMPT = "The opposite of hot is"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder and must reach no network."""

    def no_network(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A graph of the embedded default."""
    path = tmp_path_factory.mktemp("hot") / "hot.graph"
    tracer.trace(tracer.ReplacementModel.load(), PROMPT).save(path)
    return str(path)


def test_groups_are_saved_with_the_whole_graph_and_scored(hot: str):
    text = succeed("group", hot, "-o", "grouped.graph")
    graph, plain = AttributionGraph.load("grouped.graph"), AttributionGraph.load(hot)
    assert graph.nodes.equals(plain.nodes)
    assert graph.groups == plain.prune().group_features().groups != ()
    small = graph.prune()
    for name, pair in (
        ("features", small.scores),
        ("groups and the features outside them", small.grouped_scores()),
        ("groups alone, what is outside as error", small.grouped_scores(alone=True)),
    ):
        assert f"{name}\t{pair.replacement:.4g}\t{pair.completeness:.4g}\n" in text
    assert text.endswith("Saved grouped.graph\n")


def test_decoders_join_where_asked(hot: str):
    model = tracer.ReplacementModel.load()
    small = AttributionGraph.load(hot).prune()
    cosines = tracer.decoder_cosines(model, small)
    rows = [row for row in small.nodes.to_pylist() if row["kind"] == "feature"]
    assert cosines.shape == (len(rows), len(rows))
    assert cosines.diagonal() == pytest.approx(1)
    one, other = (
        model.transcoder.decoder_rows(row["layer"], torch.tensor([row["feature"]]))[0].sum(0)
        for row in rows[:2]
    )
    assert float(one @ other / one.norm() / other.norm()) == pytest.approx(cosines[0, 1], abs=1e-5)
    succeed("group", hot, "-o", "grouped.graph", "--decoders", "--least", "0.4")
    expected = small.group_features(0.4, decoders=cosines).groups
    assert AttributionGraph.load("grouped.graph").groups == expected


def test_groups_are_changed_by_hand(hot: str):
    ids = [row["id"] for row in AttributionGraph.load(hot).nodes.to_pylist()
           if row["kind"] == "feature"][:3]  # fmt: skip
    succeed("group", hot, "-o", "a.zip", "--members", f"a=b={ids[0]},{ids[1]}")
    succeed("group", "a.zip", "-o", "a.zip", "--rename", "a=b=c", "--members", f"d={ids[2]}")
    found = AttributionGraph.load("a.zip").groups
    assert [(one.name, one.members) for one in found] == [("c", tuple(ids[:2])), ("d", (ids[2],))]
    succeed("group", "a.zip", "-o", "a.zip", "--ungroup", "c")
    assert [one.name for one in AttributionGraph.load("a.zip").groups] == ["d"]


def test_a_group_can_be_scaled_set_and_added_to(hot: str):
    graph = AttributionGraph.load(hot)
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == "feature"][:2]
    graph.group("hot = warm", [row["id"] for row in rows]).save("g.graph")
    for flag, number in (("--scale", "0"), ("--set", "2.5"), ("--add", "-1")):
        singles = [
            word
            for r in rows
            for word in (flag, f"{r['layer']}/{r['position']}/{r['feature']}={number}")
        ]
        expected = succeed("intervene", PROMPT, "--mode", "free", *singles)
        group = (flag, f"hot = warm={number}", "--groups", "g.graph")
        assert succeed("intervene", PROMPT, "--mode", "free", *group) == expected
    changed = succeed("generate", PROMPT, "--scale", "hot = warm=0", "--groups", "g.graph")
    assert changed.startswith("as it is")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ungroup", "nil"], "no group has the name 'nil'"),
        (["--members", "x"], "'x' is not NAME=ID,ID"),
        (["--members", "x=nil"], "'nil', which is no node"),
        (["--rename", "x"], "'x' is not OLD=NEW"),
        (["--least", "0"], "Invalid value for '--least'"),
        (["--decoders", "--model", "M"], "needs --transcoders"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments: list[str], said: str):
    random_graph(0).save("g.graph")
    assert said in refused("group", "g.graph", "-o", "new.graph", *arguments)
    assert not Path("new.graph").exists()


def test_a_groups_name_without_groups_is_refused():
    assert "is not L/P/F=X" in refused("intervene", PROMPT, "--set", "texas=0")
    random_graph(0).save("g.graph")
    line = refused("intervene", PROMPT, "--set", "texas=0", "--groups", "g.graph")
    assert "no group has the name 'texas'" in line
    line = refused("intervene", PROMPT, "--set", "texas", "--groups", "g.graph")
    assert "neither L/P/F=X nor NAME=X" in line
    line = refused("intervene", PROMPT, "--set", "x=0", "--groups", "none")
    assert "none does not exist" in line


def test_python_and_the_command_group_alike():
    parameters = inspect.signature(AttributionGraph.group_features).parameters
    shown = defaults("group")
    for name in ("least", "by", "across"):
        assert shown[name] == parameters[name].default
    assert shown["least"] == LEAST
