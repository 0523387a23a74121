"""Graphs of a dataset taken together, beside plain loops over the graphs."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

import tracer
from graphs import AttributionGraph, GraphError, words
from graphs.collections import shards
from graphs.collections.aggregate import Aggregate, aggregate
from graphs.collections.bootstrap import bootstrap
from graphs.collections.columns import ABOUT, NAME, VERSION
from graphs.collections.dataset import GraphDataset, schemas
from graphs.collections.incidence import ANSWER, OTHERS
from graphs.collections.rows import Asked, Rows, failed_rows, joined, traced_rows
from tests.graph_samples import dallas, random_graph, two_paths
from tests.test_cli import defaults, python_defaults, refused, succeed

GROUPS = ["en", "en", "de", "en", "de", "de", "en"]
FAILED = 3


def said(prompts: int, shard: int) -> dict[str, Any]:
    return {"format": NAME, "version": VERSION, "prompts": prompts, "shard": shard,
            "weight": "float", "columns": {"language": "string"}}  # fmt: skip


def some_graphs() -> dict[int, AttributionGraph]:
    found = {number: random_graph(number % 4) for number in range(6) if number != FAILED}
    return {number: graph.prune(0.9, 0.95) for number, graph in found.items()} | {6: dallas()}


def written(folder: Path, shard: int = 3) -> GraphDataset:
    """Seven prompts of two languages, of which one failed."""
    folder.mkdir(exist_ok=True)
    about, known = said(len(GROUPS), shard), some_graphs()
    (folder / ABOUT).write_text(json.dumps(about))
    for number in range(-(-len(GROUPS) // shard)):
        rows = []
        for one in range(number * shard, min((number + 1) * shard, len(GROUPS))):
            asked = Asked(one, f"prompt {one}", own={"language": GROUPS[one]})
            if one in known:
                rows.append(traced_rows(asked, known[one], known[one]))
            else:
                rows.append(failed_rows(asked, "too long", pa.float32()))
        shards.write(folder, number, joined(rows), schemas(about))
    return GraphDataset.load(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> GraphDataset:
    return written(tmp_path_factory.mktemp("many") / "graphs")


Name = tuple[Any, ...]


def plain(graph: AttributionGraph, end: bool) -> tuple[dict[Name, float], dict[Any, list[float]]]:
    """What nodes and edges of one graph carry, by name; the plain version."""
    rows = graph.nodes.to_pylist()
    whole = sum(row["probability"] or 0 for row in rows)
    last = max(row["position"] for row in rows)
    logits = [row for row in rows if row["kind"] == "logit"]
    best = max(logits, key=lambda row: row["probability"])

    def name(row: dict[str, Any]) -> Name:
        column = last - row["position"] if end else None
        if row["kind"] == "logit":
            return ("logit", "logits", ANSWER if row is best else OTHERS, None)
        own = {"embedding": "" if end else row["text"], "error": ""}
        return row["kind"], row["site"], own.get(row["kind"], str(row["feature"])), column

    nodes, edges = (
        defaultdict[Name, float](float),
        defaultdict[Any, list[float]](lambda: [0.0, 0.0]),
    )
    for row in rows:
        nodes[name(row)] += (row["influence"] + (row["probability"] or 0)) / whole
    for row in graph.edges.to_pylist():
        found = edges[name(rows[row["source"]]), name(rows[row["target"]])]
        found[0] += row["influence"] / whole
        found[1] += np.sign(row["weight"]) * row["influence"] / whole
    return nodes, edges


def names(found: Aggregate) -> list[Name]:
    rows = found.incidence.nodes.to_pylist()
    return [(row["kind"], row["site"], row["name"], row["column"]) for row in rows]


@pytest.mark.parametrize("align", ["anywhere", "end"])
@pytest.mark.parametrize("group", ["en", "de"])
def test_frequency_and_influence_are_those_of_a_plain_loop(
    dataset: GraphDataset, align: str, group: str
):
    found = aggregate(dataset, "language", align, draws=20, least=1e-9)
    own = [plain(graph, align == "end") for n, graph in some_graphs().items() if GROUPS[n] == group]
    known = names(found)
    nodes = {known[row["node"]]: row for row in found.nodes.to_pylist() if row["group"] == group}
    assert nodes.keys() == {name for one, _ in own for name in one}
    for name, row in nodes.items():
        held = [one[name] for one, _ in own if name in one]
        assert row["count"] == len(held)
        assert row["frequency"] == pytest.approx(len(held) / len(own))
        assert row["influence"] == pytest.approx(sum(held) / len(own))
        assert row["when_present"] == pytest.approx(np.mean(held))
    edges = {
        (known[row["source_node"]], known[row["target_node"]]): row
        for row in found.edges.to_pylist()
        if row["group"] == group
    }
    assert edges.keys() == {ends for _, one in own for ends in one}
    for ends, row in edges.items():
        parts = [one[ends] for _, one in own if ends in one]
        assert row["count"] == len(parts)
        assert row["influence"] == pytest.approx(sum(part[0] for part in parts) / len(own))
        if row["influence"]:
            signed = sum(part[1] for part in parts) / sum(part[0] for part in parts)
            assert row["sign"] == pytest.approx(signed)


def test_failed_prompts_take_no_part_and_shards_make_no_difference(
    dataset: GraphDataset, tmp_path: Path
):
    one, other = aggregate(dataset, "language"), aggregate(written(tmp_path / "g", 2), "language")
    assert one.groups.to_pylist() == [
        {"group": "de", "prompts": 3},
        {"group": "en", "prompts": 3},
    ]
    assert one.nodes.equals(other.nodes)
    assert one.edges.equals(other.edges)
    assert FAILED not in one.incidence.prompts["prompt"].to_pylist()


def test_the_most_frequent_stands_first_then_the_most_influential(dataset: GraphDataset):
    rows = aggregate(dataset).nodes.to_pylist()
    order = [(-row["count"], -row["influence"]) for row in rows]
    assert order == sorted(order)
    assert len({row["count"] for row in rows}) > 2


def test_what_is_rarer_than_least_is_left_out(dataset: GraphDataset):
    whole, some = aggregate(dataset, least=0.01), aggregate(dataset, least=0.5)
    for name in ("nodes", "edges"):
        rows = [r for r in getattr(whole, name).to_pylist() if r["frequency"] >= 0.5]
        assert getattr(some, name).to_pylist() == rows
        assert len(rows) < getattr(whole, name).num_rows


def test_the_consensus_circuit_is_what_enough_graphs_hold_and_edges_between(dataset: GraphDataset):
    found = aggregate(dataset, "language", least=0.1)
    nodes, edges = found.consensus("de", 2 / 3)
    inside = set(nodes["node"].to_pylist())
    expected = {
        row["node"] for row in found.nodes.to_pylist() if row["group"] == "de" and row["count"] >= 2
    }
    assert inside == expected
    ends = {(row["source_node"], row["target_node"]) for row in edges.to_pylist()}
    assert ends == {
        (row["source_node"], row["target_node"])
        for row in found.edges.to_pylist()
        if row["group"] == "de"
        and row["count"] >= 2
        and {row["source_node"], row["target_node"]} <= inside
    }
    assert ends
    rows = [row for row in nodes.to_pylist() if row["kind"] == "feature"]
    assert found.features("de", 2 / 3) == sorted({(r["layer"], int(r["name"])) for r in rows})


def test_features_that_groups_share_name_them(dataset: GraphDataset):
    found = aggregate(dataset, "language")
    circuits = {name: found.features(name, 0.6) for name in ("de", "en")}
    rows = found.shared(0.6).to_pylist()
    assert {(r["layer"], r["feature"]) for r in rows} == {*circuits["de"], *circuits["en"]}
    for row in rows:
        place = (row["layer"], row["feature"])
        assert row["groups"] == [name for name in ("de", "en") if place in circuits[name]]
    assert [len(row["groups"]) for row in rows] == sorted(
        (len(r["groups"]) for r in rows), reverse=True
    )


def test_intervals_are_percentiles_of_means_over_prompts_drawn_anew():
    values = np.random.default_rng(1).random((9, 3)) * [1, 0, 5]
    low, high = bootstrap(sparse.csr_array(values), 500, seed=3)
    rng = np.random.default_rng(3)
    means = [
        np.repeat(values, rng.multinomial(9, np.full(9, 1 / 9)), axis=0).mean(0) for _ in range(500)
    ]
    assert low == pytest.approx(np.percentile(means, 2.5, axis=0))
    assert high == pytest.approx(np.percentile(means, 97.5, axis=0))
    assert (low <= values.mean(0) + 1e-12).all()
    assert (values.mean(0) <= high + 1e-12).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    drawn = (rng.random((60, 400)) < 0.4).astype(float)
    low, high = bootstrap(sparse.csr_array(drawn), 400, seed=0)
    assert 0.9 < ((low <= 0.4) & (high >= 0.4)).mean() < 0.98


def test_the_same_seed_gives_the_same_intervals_and_another_others(dataset: GraphDataset):
    one, same, other = (aggregate(dataset, draws=200, seed=seed) for seed in (1, 1, 2))
    assert one.nodes.equals(same.nodes)
    assert one.nodes["influence"].equals(other.nodes["influence"])
    assert not one.nodes["low"].equals(other.nodes["low"])


def test_stability_is_the_overlap_with_circuits_of_prompts_drawn_anew(dataset: GraphDataset):
    found = aggregate(dataset, "language", least=0.01)
    own = [n for n in some_graphs() if GROUPS[n] == "en"]
    held = [
        {name for name in plain(some_graphs()[n], False)[0] if name[0] == "feature"} for n in own
    ]

    def circuit(drawn: list[int]) -> set[Name]:
        return {
            name
            for name in set.union(*held)
            if sum(name in held[at] for at in drawn) >= 0.6 * len(drawn) - 1e-9
        }

    rng, whole, shares = np.random.default_rng(5), circuit([*range(len(own))]), []
    for _ in range(40):
        times = rng.multinomial(len(own), np.full(len(own), 1 / len(own)))
        again = circuit(np.repeat(np.arange(len(own)), times).tolist())
        shares.append(len(again & whole) / len(again | whole))
    low, middle, high = np.quantile(shares, (0.025, 0.5, 0.975))
    assert low < 1
    assert found.stability("en", 0.6, draws=40, seed=5) == pytest.approx((middle, low, high))


def tiled(folder: Path, count: int, shard: int) -> GraphDataset:
    """A dataset of one graph, many times."""
    folder.mkdir()
    about = said(count, shard)
    (folder / ABOUT).write_text(json.dumps(about))
    graph = dallas().prune()
    one = traced_rows(Asked(0, "again", own={"language": "en"}), graph, graph)

    def again(table: pa.Table, numbers: range) -> pa.Table:
        whole = pa.concat_tables([table] * len(numbers))
        prompt = pa.array(np.repeat(np.array(numbers), table.num_rows), pa.int64())
        return whole.set_column(0, "prompt", prompt)

    for number in range(-(-count // shard)):
        numbers = range(number * shard, min(count, (number + 1) * shard))
        parts = (again(table, numbers) for table in vars(one).values())
        shards.write(folder, number, Rows(*parts), schemas(about))
    return GraphDataset.load(folder)


def test_a_thousand_graphs_take_seconds(tmp_path: Path):
    many = tiled(tmp_path / "graphs", 1000, 64)
    begin = time.process_time()
    found = aggregate(many)
    assert time.process_time() - begin < 10
    assert found.nodes["frequency"].to_pylist() == [1.0] * found.nodes.num_rows
    assert found.nodes["low"].to_pylist() == pytest.approx(found.nodes["high"].to_pylist())


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"group_by": "nope"}, r"has no column 'nope': expected one of prompt, "),
        ({"align": "text"}, "align is 'text', expected one of anywhere, end"),
        ({"least": 0}, "least is 0, expected a share above 0"),
        ({"draws": 0}, "draws is 0, expected 1 to 100000"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    dataset: GraphDataset, options: dict[str, Any], wrong: str
):
    with pytest.raises(GraphError, match=wrong):
        aggregate(dataset, **options)


def test_groups_and_frequencies_that_are_not_there_are_refused(
    dataset: GraphDataset, tmp_path: Path
):
    found = aggregate(dataset, "language")
    with pytest.raises(GraphError, match=r"no group is called 'fr': expected one of de, en"):
        found.consensus("fr")
    with pytest.raises(GraphError, match=r"frequency is 0\.05, expected a share from 0\.1"):
        found.consensus("de", 0.05)
    with pytest.raises(GraphError, match="1 to 4 groups beside each other, got 25"):
        aggregate(dataset, "completeness").render(tmp_path / "x.dot", groups=["a"] * 25)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ABOUT).write_text(json.dumps(said(2, 2)))
    with pytest.raises(GraphError, match="holds no graph yet"):
        aggregate(empty)


def test_an_edge_without_its_node_is_refused(tmp_path: Path):
    graph, about = two_paths(), said(1, 1)
    rows = traced_rows(Asked(0, "x", own={"language": "en"}), graph, graph)
    (tmp_path / ABOUT).write_text(json.dumps(about))
    torn = Rows(rows.prompts, rows.nodes.slice(1), rows.edges, rows.steering)
    shards.write(tmp_path, 0, torn, schemas(about))
    with pytest.raises(GraphError, match="ends in no node of its prompt"):
        aggregate(tmp_path)


def test_tokens_of_any_bytes_and_features_in_any_digits_are_names(tmp_path: Path):
    graph, about = two_paths(), said(1, 1)
    rows = traced_rows(Asked(0, "x", own={"language": "en"}), graph, graph)
    texts = pa.array(["\x1f²\n", None, " Austin"], pa.string())
    nodes = rows.nodes.set_column(rows.nodes.schema.get_field_index("text"), "text", texts)
    (tmp_path / ABOUT).write_text(json.dumps(about))
    shards.write(tmp_path, 0, Rows(rows.prompts, nodes, rows.edges, rows.steering), schemas(about))
    found = aggregate(tmp_path)
    assert "\x1f²\n" in found.incidence.nodes["name"].to_pylist()


def test_the_picture_shows_a_node_at_the_same_place_for_every_group(
    dataset: GraphDataset, tmp_path: Path
):
    found = aggregate(dataset, "language")
    source = found.render(tmp_path / "both.dot", 0.6).read_text()
    nodes = {name: found.consensus(name, 0.6)[0]["node"].to_pylist() for name in ("de", "en")}
    for at, name in enumerate(("de", "en")):
        drawn = source.count(f"id=node_{at}_") + source.count(f'id="node_{at}_')
        assert drawn == len(nodes[name])
    assert "3 graphs; at least 60% of them hold" in source
    assert "to 100%) of the graphs" in source


def test_the_command_prints_and_gives_what_python_gives(dataset: GraphDataset, tmp_path: Path):
    found = tracer.aggregate(dataset, "language")
    picture = str(tmp_path / "a.dot")
    text = succeed("aggregate", str(dataset.path), "--group-by", "language", "-o", picture)
    assert "de: 3 graphs; at least 50% of them hold" in text
    assert "features are common to several groups" in text
    middle = 100 * found.stability("de")[0]
    assert f"circuits of prompts drawn anew share {middle:.0f}% (" in text
    assert Path(picture).exists()
    asked = succeed("aggregate", str(dataset.path), "--group-by", "language", "--json")
    assert json.loads(asked) == json.loads(json.dumps(found.to_json()))
    marked = [row for row in found.to_json()["nodes"] if row["consensus"]]
    assert len(marked) == sum(found.consensus(g)[0].num_rows for g in ("de", "en"))
    only = succeed("aggregate", str(dataset.path), "--group-by", "language", "--group", "de")
    assert "\nen: " not in only
    assert "no group is called 'fr'" in refused(
        "aggregate", str(dataset.path), "--group-by", "language", "--group", "fr"
    )


def test_the_command_draws_as_it_is_told(dataset: GraphDataset):
    found = aggregate(dataset, "language", least=0.01)
    place = (str(dataset.path), "--group-by", "language", "--frequency", "0.6", "--least", "0.01")
    shown = set()
    for draws, seed in ((1000, 0), (3, 2), (3, 4)):
        given = ("--draws", str(draws), "--seed", str(seed))
        shares = [words.percent(one) for one in found.stability("en", 0.6, draws, seed)]
        said = f"circuits of prompts drawn anew share {shares[0]} ({shares[1]} to {shares[2]})"
        assert said in succeed("aggregate", *place, "--group", "en", *given)
        shown.add(said)
    assert len(shown) == 3


def test_the_command_has_the_defaults_of_the_python_function():
    shown = defaults("aggregate")
    for name, value in python_defaults(tracer.aggregate).items():
        assert shown[name] == value
    assert shown["frequency"] == python_defaults(Aggregate.consensus)["frequency"]
