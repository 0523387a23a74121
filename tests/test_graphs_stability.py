"""Stability of a graph's nodes and edges, beside plain loops, and wherever graphs go."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest

import tracer
from graphs import AttributionGraph, GraphError
from graphs.collections.alignment import aligned
from graphs.collections.stability import stability, stable_share
from graphs.edges import stability_of
from graphs.exchange.arrow import VIEW
from graphs.exchange.attribution_json import About
from graphs.exchange.views import view_of
from tests.graph_samples import DALLAS, dallas, random_graph, two_paths
from tests.test_cli import SMALL, defaults, python_defaults, refused, run, succeed
from tests.test_graphs_aggregate import written
from tracer.commands import stability as stability_command
from tracer.commands.group import Failure

OTHER = ["<bos>", "What", " is", " the", " capital", " of", " Texas", "?", " It", " is"]
Value = float | None


@pytest.fixture(scope="module")
def others() -> list[AttributionGraph]:
    return [dallas(1), random_graph(2), random_graph(3, tokens=OTHER), dallas(4).prune(0.9, 0.99)]


@pytest.fixture(scope="module")
def stable(others: list[AttributionGraph]) -> AttributionGraph:
    return stability(dallas(), others, align="text")


def edge_ids(graph: AttributionGraph) -> list[tuple[str, str]]:
    ids = graph.nodes["id"].to_pylist()
    return [(ids[row["source"]], ids[row["target"]]) for row in graph.edges.to_pylist()]


def values(graph: AttributionGraph) -> tuple[list[Value], list[Value]]:
    return graph.nodes["stability"].to_pylist(), graph.edges["stability"].to_pylist()


def by_name(graph: AttributionGraph) -> dict[Any, Value]:
    nodes, edges = values(graph)
    names = [*graph.nodes["id"].to_pylist(), *edge_ids(graph)]
    return dict(zip(names, [*nodes, *edges], strict=True))


def test_over_thresholds_it_is_the_share_that_keeps_a_node_or_an_edge():
    graph, pairs = random_graph(0), [(0.4, 0.9), (0.7, 0.98), (0.9, 0.99), (1.0, 1.0)]
    parts = [graph.prune(*pair) for pair in pairs]
    nodes = [set(part.nodes["id"].to_pylist()) for part in parts]
    edges = [set(edge_ids(part)) for part in parts]
    found = values(stability(graph, thresholds=pairs))
    assert found[0] == [
        np.mean([n in part for part in nodes]) for n in graph.nodes["id"].to_pylist()
    ]
    assert found[1] == [np.mean([e in part for part in edges]) for e in edge_ids(graph)]
    assert 0.25 in found[0]
    assert 0.25 in found[1]


def places(graph: AttributionGraph, other: AttributionGraph, align: str) -> Callable[[int], Any]:
    """Of a position of the other prompt, the position of this one."""
    if align == "anywhere":
        return lambda at: "anywhere"
    texts = [one.metadata["tokens"] for one in (graph, other)]
    pairs = {b: a for a, b in aligned(*texts, align) if a is not None and b is not None}
    return lambda at: pairs.get(at)


def names_of(graph: AttributionGraph, place: Callable[[int], Any]) -> list[Any]:
    """What each node is the same by, None where it has no place; the plain version."""
    rows = graph.nodes.to_pylist()
    best = max((row for row in rows if row["kind"] == "logit"), key=lambda row: row["probability"])
    found: list[Any] = []
    for row in rows:
        at = place(row["position"])
        name = {"feature": row["feature"], "embedding": (row["token"], row["text"])}
        if row["kind"] == "logit":
            found.append(("logit", "answer" if row is best else row["token"]))
        else:
            key = (row["kind"], row["site"], name.get(row["kind"]), at)
            found.append(None if at is None else key)
    return found


@pytest.mark.parametrize("align", ["anywhere", "text", "end"])
def test_beside_other_prompts_it_is_the_share_that_holds_a_node_or_an_edge(
    others: list[AttributionGraph], align: str
):
    graph, pairs = dallas(), [(0.6, 0.95), (0.8, 0.98)]
    told: list[list[Value]] = []
    for other in others:
        place = places(graph, other, align)
        back = {place(at) for at in range(len(other.metadata["tokens"]))}
        mine = names_of(graph, lambda at, back=back: at if at in back else None)  # type: ignore[misc]
        if align == "anywhere":
            mine = names_of(graph, lambda at: "anywhere")
        rows: list[list[Value]] = []
        for pair in pairs:
            small = other.prune(*pair)
            theirs = names_of(small, place)
            ends = {(theirs[e["source"]], theirs[e["target"]]) for e in small.edges.to_pylist()}
            row: list[Value] = [None if n is None else float(n in theirs) for n in mine]
            for edge in graph.edges.to_pylist():
                both = (mine[edge["source"]], mine[edge["target"]])
                row.append(None if None in both else float(both in ends))
            rows.append(row)
        told.append([None if a is None else (a + b) / 2 for a, b in zip(*rows, strict=True)])
    expected = [
        None if (known := [v for v in column if v is not None]) == [] else float(np.mean(known))
        for column in zip(*told, strict=True)
    ]
    found = values(stability(graph, others, pairs, align))
    assert [*found[0], *found[1]] == pytest.approx(expected)
    assert 0 < np.mean([v for v in expected if v is not None]) < 1


def test_what_stands_where_no_other_prompt_has_a_token_is_not_known():
    short = random_graph(5, tokens=DALLAS[-3:])
    found = stability(dallas(), [short], align="end")
    for row in found.nodes.to_pylist():
        known = row["kind"] == "logit" or row["position"] >= len(DALLAS) - 3
        assert (row["stability"] is not None) == known
    positions = found.nodes["position"].to_pylist()
    for edge in found.edges.to_pylist():
        assert (edge["stability"] is None) == (positions[edge["source"]] < len(DALLAS) - 3)


def test_draws_give_the_share_of_consensus_circuits_that_hold_it(others: list[AttributionGraph]):
    graph = dallas()
    held = [by_name(stability(graph, [other])) for other in others]
    rng = np.random.default_rng(7)
    times = rng.multinomial(len(others), np.full(len(others), 1 / len(others)), 60)
    found = by_name(stability(graph, iter(others), draws=60, frequency=0.6, seed=7))
    for name, value in found.items():
        row = np.array([one[name] for one in held], float)
        assert value == pytest.approx(np.mean(times @ row >= 0.6 * len(others) - 1e-9))
    assert len(set(found.values())) > 3


def test_a_graph_beside_itself_is_stable_where_it_is_kept():
    graph = dallas()
    found = stability(graph, [graph], align="text")
    kept = set(graph.prune().nodes["id"].to_pylist())
    assert values(found)[0] == [float(one in kept) for one in graph.nodes["id"].to_pylist()]
    assert stable_share(found) == 1.0
    assert found.metadata["stability"] == {
        "over": "1 other prompt", "prompts": 1, "align": "text", "thresholds": [[0.8, 0.98]],
    }  # fmt: skip


def test_the_mean_by_influence_weighs_features_that_are_known(stable: AttributionGraph):
    rows = [r for r in stable.prune().nodes.to_pylist() if r["kind"] == "feature"]
    known = [(r["influence"], r["stability"]) for r in rows if r["stability"] is not None]
    expected = sum(b * s for b, s in known) / sum(b for b, _ in known)
    assert stable_share(stable) == pytest.approx(expected)
    assert stable_share(dallas()) is None


@pytest.mark.parametrize("name", ["a.graph", "a.zip"])
def test_it_is_saved_pruned_and_relabelled_with_the_graph(
    stable: AttributionGraph, tmp_path: Path, name: str
):
    stable.save(tmp_path / name)
    again = AttributionGraph.load(tmp_path / name)
    assert by_name(again) == by_name(stable)
    assert again.nodes.equals(stable.nodes)
    assert again.edges.equals(stable.edges)
    small = again.prune(0.7, 0.9)
    whole = by_name(stable)
    assert by_name(small) == {key: whole[key] for key in by_name(small)}
    ids = small.nodes["id"].to_pylist()
    changed = small.relabel({ids[0]: "new"}).group("some", ids[3:5])
    assert by_name(changed) == by_name(small)
    assert by_name(stability(changed)).keys() == by_name(small).keys()  # in place of the old one


def test_edges_in_another_order_keep_their_own(stable: AttributionGraph):
    edges = stable.edges
    turned = edges.take(np.random.default_rng(0).permutation(edges.num_rows))
    found = stability_of(turned)
    assert found is not None
    assert np.array_equal(found, edges["stability"].to_numpy(), equal_nan=True)


def test_exports_hold_it_and_bring_it_back(tmp_path: Path):
    small = stability(dallas(), [random_graph(5, tokens=DALLAS[-3:])], align="end").prune()
    again = AttributionGraph.from_networkx(small.to_networkx())
    assert by_name(again) == by_name(small)
    content = small.to_attribution_json("circuit-tracer", About("dallas"))
    restored, _ = AttributionGraph.from_attribution_json(content)
    assert by_name(restored) == by_name(small)
    for suffix in (".json", ".graphml", ".csv", ".parquet", ".html"):
        small.export(tmp_path / f"a{suffix}")
    edges = json.loads((tmp_path / "a.json").read_text())["edges"]
    assert [edge["stability"] for edge in edges] == values(small)[1]
    read = nx.read_graphml(tmp_path / "a.graphml")
    for (source, target), value in zip(edge_ids(small), values(small)[1], strict=True):
        assert read.edges[source, target].get("stability") == value
    assert None in values(small)[1]


def test_other_tools_links_without_it_have_none():
    value = json.loads(dallas().prune().to_attribution_json("circuit-tracer", About("dallas")))
    assert all("stability" not in link for link in value["links"])
    found, _ = AttributionGraph.from_attribution_json(json.dumps(value).encode())
    assert found.edge_stability is None


def test_the_picture_says_it_of_nodes_and_edges():
    graph = two_paths()
    source = graph.with_stability(
        np.array([np.nan, 0.25, 1]), np.array([0.5, np.nan, 0.75]), {"over": "tests"}
    ).to_dot()
    for said in ("stability 25%", "stability 100%", "stability 50%", "stability 75%"):
        assert source.count(said) == 1
    assert "stability" not in graph.to_dot()


@pytest.mark.parametrize(
    ("nodes", "edges", "why"),
    [
        ([0, 0], [0, 0, 0], r"stability has shape \(2,\), expected \(3,\)"),
        ([0, 0, 0], [0], r"stability has shape \(1,\)"),
        ([0, 1.5, 0], [0, 0, 0], "stability of row 1 is 1.5"),
        ([0, 0, 0], [0, -0.1, 0], "stability of row 1 is -0.1"),
    ],
)
def test_what_is_no_share_is_refused(nodes: list[float], edges: list[float], why: str):
    with pytest.raises(GraphError, match=why):
        two_paths().with_stability(np.array(nodes), np.array(edges), {"over": "x"})


def test_a_file_that_holds_something_else_is_refused():
    edges = two_paths().edges
    with pytest.raises(GraphError, match=r"stability of row 0 is 2\.0"):
        stability_of(edges.append_column("stability", pa.array([2.0, 0, 0])))
    with pytest.raises(GraphError, match=r"edge column 'stability' is string"):
        stability_of(edges.append_column("stability", pa.array(["a", "b", "c"])))
    with pytest.raises(GraphError, match="must be an object with the text over"):
        two_paths().with_stability(np.zeros(3), np.zeros(3), {"over": 3})


def test_what_cannot_be_compared_is_refused():
    graph = dallas()
    foreign = AttributionGraph.build(
        {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names},
        graph.effect,
        graph.metadata | {"transcoders_hash": "b"},
    )
    own = AttributionGraph.build(
        {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names},
        graph.effect,
        graph.metadata | {"transcoders_hash": "a"},
    )
    for call, why in (
        (lambda: stability(own, [foreign]), "of another dictionary"),
        (lambda: stability(graph, []), "there is no other graph"),
        (lambda: stability(graph, [graph], align="left"), "align is 'left'"),
        (lambda: stability(graph, draws=5), "draws need others"),
        (lambda: stability(graph, [graph], draws=0), "draws is 0"),
        (lambda: stability(graph, [graph], frequency=0), "frequency is 0"),
        (lambda: stability(graph, [graph], seed=-1), "seed is -1"),
        (lambda: stability(graph.prune(0.6), thresholds=[(0.7, 0.9)]), "was pruned at 0.6"),
        (lambda: stability(graph, [graph.prune(0.7)], [(0.8, 0.9)]), "was pruned at 0.7 of node"),
        (lambda: stability(graph, thresholds=[]), "there is no threshold"),
        (lambda: stability(graph.prune(0.4)), "there is no threshold"),
        (lambda: stability(graph, [graph], thresholds=[]), "there is no threshold"),
        (lambda: stability(graph, thresholds=[(1.5, 1)]), "nodes is 1.5"),
    ):
        with pytest.raises(GraphError, match=why):
            call()


def test_a_pruned_graph_takes_the_thresholds_it_was_not_pruned_beyond():
    found = stability(dallas().prune(0.7, 0.9))
    assert found.metadata["stability"]["thresholds"] == [[0.5, 0.9], [0.6, 0.9], [0.7, 0.9]]
    assert set(values(found)[0]) <= {0, 1 / 3, 2 / 3, 1}


def test_the_command_writes_what_python_finds_and_show_says_it(tmp_path: Path):
    place, view = tmp_path / "a.graph", {"pins": ["E_37_7"], "thresholds": {"nodes": 0.5}}
    dallas().save(place, view=view)
    before = (place / "view.json").read_bytes()
    text = succeed("stability", str(place), "--thresholds", "0.5,0.8/0.9")
    expected = stability(dallas(), thresholds=[(0.5, 0.98), (0.8, 0.9)])
    found = AttributionGraph.load(place)
    assert by_name(found) == by_name(expected)
    assert (place / "view.json").read_bytes() == before
    assert "stability\tover 2 thresholds\n" in text
    shares = stable_share(expected)
    assert shares is not None
    assert f"{100 * shares:.0f}% in the mean by influence" in text
    shown = succeed("show", str(place))
    assert "stability\tover 2 thresholds\n" in shown
    small = expected.prune()
    strongest = max(small.edges.to_pylist(), key=lambda edge: edge["influence"])
    assert f"\t{strongest['influence']:.4g}\t{100 * strongest['stability']:.0f}%\n" in shown
    assert "stability" not in succeed("show", str(saved(tmp_path, "plain.graph")))
    succeed("stability", str(place), "-o", str(tmp_path / "b.zip"))
    again = AttributionGraph.load(tmp_path / "b.zip")
    assert by_name(again) == by_name(stability(dallas()))


def saved(folder: Path, name: str) -> Path:
    dallas().save(folder / name)
    return folder / name


def test_what_a_viewer_saved_beside_a_graph_stays_beside_it(tmp_path: Path):
    place, view = tmp_path / "one.graph", {"pins": [dallas().nodes["id"][0].as_py()]}
    dallas().save(place, view=view)
    succeed("stability", str(place), "--top", "1")
    assert "stability" in AttributionGraph.load(place).nodes.column_names
    assert view_of((place / VIEW).read_bytes(), VIEW) == view


def test_the_command_compares_with_a_group_of_a_dataset(tmp_path: Path):
    dataset = written(tmp_path / "many")
    place, path = saved(tmp_path, "a.graph"), str(dataset.path)
    succeed("stability", str(place), "--with", path, "--only", "language=en", "--align", "text")
    english = [dataset.graph(number) for number in (0, 1, 6)]  # 3 failed
    expected = stability(dallas(), english, align="text")
    assert by_name(AttributionGraph.load(place)) == by_name(expected)
    one = str(tmp_path / "one.graph")
    succeed("stability", path, "--prompt", "1", "--with", path, "--draws", "9", "-o", one)
    rest = [graph for number, graph in dataset.graphs() if number != 1]
    expected = tracer.stability(dataset.graph(1), rest, draws=9)
    assert by_name(AttributionGraph.load(one)) == by_name(expected)
    assert "--prompt needs -o" in refused("stability", path, "--prompt", "1")
    for column, why in (("x=1", "has no column 'x'"), ("language=fr", "has no other prompt with")):
        assert why in refused("stability", str(place), "--with", path, "--only", column)
    assert "is no dataset of graphs" in refused("stability", str(place), "--with", str(tmp_path))


def test_the_command_traces_rephrasings_as_the_graph_was(tmp_path: Path):
    model = tracer.ReplacementModel.load(*(SMALL[1], SMALL[3]))
    graph = tracer.trace(model, [1, 7, 12, 30, 5], max_features=30, max_logits=3)
    graph.save(tmp_path / "a.graph")
    asked = [[1, 7, 12, 30, 6], [1, 8, 12, 30, 5], [999999]]
    file = tmp_path / "others.jsonl"
    file.write_text("".join(json.dumps({"tokens": ids}) + "\n" for ids in asked))
    given = ("stability", str(tmp_path / "a.graph"), "--prompts", str(file), *SMALL)
    result = run(*given, "--align", "text", "--thresholds", "0.7,0.9")
    assert result.exit_code == 0, result.output
    assert "1 of 3 prompts failed and are left out; the first, prompt 2: " in result.stderr
    others = [tracer.trace(model, ids, max_features=30, max_logits=3) for ids in asked[:2]]
    small = [other.prune(0.9, 0.98) for other in others]
    expected = stability(graph, small, [(0.7, 0.98), (0.9, 0.98)], "text")
    assert by_name(AttributionGraph.load(tmp_path / "a.graph")) == by_name(expected)
    file.write_text(json.dumps({"tokens": [999999]}) + "\n")
    assert "no prompt could be traced" in refused(*given)


@pytest.mark.parametrize("wrong", ["", "0.5,", "2", "0.5/0", "a", "0.5/0.9/1"])
def test_thresholds_that_are_none_are_refused(tmp_path: Path, wrong: str):
    place = str(saved(tmp_path, "a.graph"))
    assert "is no list of shares" in refused("stability", place, "--thresholds", wrong)


def test_the_command_has_the_defaults_of_the_python_function():
    shown = defaults("stability")
    for name, value in python_defaults(tracer.stability).items():
        assert name == "others" or shown[name] == value
    assert math.isclose(shown["frequency"], 0.5)


def test_rephrasings_are_traced_as_the_graph_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"max_features": 7, "skip_positions": 2, "batch_size": 9, "targets": [3, 4]}
    graph = dataclasses.replace(dallas(), metadata=dallas().metadata | {"settings": settings})
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n", encoding="utf-8")
    rows = [{"prompt": 0, "status": "traced", "reason": None},
            {"prompt": 1, "status": "failed", "reason": "why"}]  # fmt: skip
    asked: list[Any] = []
    said: list[str] = []

    class Traced:
        prompts = SimpleNamespace(to_table=lambda: pa.Table.from_pylist(rows))

        def __len__(self) -> int:
            return len(rows)

    def trace_many(model: object, given: Any, place: Path, **how: Any) -> Traced:
        asked.append((model, len(given), place, how))
        how["progress"](1, 2)
        return Traced()

    monkeypatch.setattr(tracer, "trace_many", trace_many)
    monkeypatch.setattr(stability_command, "load_model", lambda options: options["model"])
    monkeypatch.setattr(stability_command, "say", lambda text, err: said.append(text))
    given = {"thresholds": [(0.6, 0.7), (0.5, 0.9)]}
    for pairs, nodes, edges in ((given, 0.6, 0.9), ({"thresholds": None}, 0.8, 0.98)):
        stability_command.rephrased(graph, prompts, tmp_path / "out", pairs, {"model": "m"})
        model, count, place, how = asked.pop()
        assert (model, count, place) == ("m", 2, tmp_path / "out")
        del how["progress"]
        assert how == {"nodes": nodes, "edges": edges, "targets": (3, 4),
                       "max_features": 7, "skip_positions": 2}  # fmt: skip
        assert said.pop() == "1 of 2 prompts failed and are left out; the first, prompt 1: why"
    rows[0] = rows[1]
    with pytest.raises(Failure, match="no prompt could be traced; the first, prompt 1: why"):
        stability_command.rephrased(graph, prompts, tmp_path / "out", given, {"model": "m"})
