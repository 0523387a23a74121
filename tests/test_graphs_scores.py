"""Scores count what a graph leaves out: a hand-computed case, sums over all paths, laws."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import AttributionGraph
from graphs.exchange import arrow
from graphs.pictures.captions import summary_html
from tests.graph_samples import columns, random_graph

SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=30, deadline=None)
WEIGHTS = (0.5, 0.3)


def capped() -> AttributionGraph:
    """A quarter of the feature's and of the logit's input comes from features beyond the cap."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "text": "a"},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 3, "left_out": -1.0,
         "left_out_absolute": 1.0},
        {"kind": "logit", "layer": 1, "position": 0, "token": 1, "text": "b", "probability": 0.5,
         "left_out": 1.0, "left_out_absolute": 1.0},
    ]  # fmt: skip
    effect = sparse.csr_array([[0.0, 0, 0], [-3, 0, 0], [1, 2, 0]])
    return AttributionGraph.build(columns(rows), effect, {"tokens": ["a"]})


def test_what_a_cap_left_out_counts_as_error():
    """Token to logit .25; by way of the feature .5 times .75; what ends beyond .25 + .5 * .25."""
    scores = capped().scores
    assert scores.replacement == pytest.approx(0.25 + 0.5 * 0.75)
    assert scores.uncovered == pytest.approx(0.25 + 0.5 * 0.25)
    assert scores.leak == pytest.approx(scores.uncovered)
    token, feature, logit = 0.3125, 0.25, 0.5
    explained = token + 0.75 * feature + 0.75 * logit
    assert scores.completeness == pytest.approx(explained / (token + feature + logit))
    assert asdict(scores.among_nodes) == {"replacement": 1.0, "completeness": 1.0}


def test_shares_are_of_all_input_and_influence_is_among_the_nodes():
    graph = capped()
    assert graph.edges["share"].to_pylist() == [-0.75, 0.25, 0.5]
    np.testing.assert_allclose(graph.nodes["influence"].to_pylist(), [0.5, 1 / 3, 0])
    np.testing.assert_allclose(graph.edges["influence"].to_pylist(), [1 / 3, 1 / 6, 1 / 3])
    assert graph.nodes["input_absolute"].to_pylist() == [0, 3, 3]
    assert [path.strength for path in graph.paths()] == pytest.approx([0.5 * 0.375, 0.5 * 0.25])
    assert [graph.describe(path)[-3:] for path in graph.paths()] == ["38%", "25%"]


@dataclass(frozen=True)
class Whole:
    """Everything a model computed, and which of its features are nodes."""

    kind: np.ndarray
    effect: np.ndarray
    node: np.ndarray
    kept: np.ndarray
    """Which effects lie above the edge floor."""

    def graph(self) -> AttributionGraph:
        """Its graph, with all that it leaves out in the columns for it."""
        held = self.effect * self.kept
        inside = np.flatnonzero(self.node)
        weights = iter(WEIGHTS)
        rows = []
        for at in inside:
            layer = -1 if self.kind[at] == "embedding" else at
            row = {"kind": self.kind[at], "layer": layer, "position": 0, "feature": at}
            if self.kind[at] == "logit":
                row["probability"] = next(weights)
            if self.kind[at] in ("feature", "logit"):
                gone = self.effect[at] - np.where(self.node, held[at], 0)
                row |= {"left_out": gone.sum(), "left_out_absolute": np.abs(gone).sum()}
            rows.append(row)
        floored = np.abs(self.effect - held).sum(1)[inside]
        effect = sparse.csr_array(held[np.ix_(inside, inside)])
        return AttributionGraph.build(columns(rows), effect, {}, lost=floored)

    def walks(self) -> Iterator[tuple[int, float]]:
        """Every path down from a logit, whole or not: its end and the influence it takes there.

        Ends are rows, or -1 where the path goes on below the floor.
        """
        total = np.abs(self.effect).sum(1)

        def below(at: int, amount: float) -> Iterator[tuple[int, float]]:
            yield at, amount
            for source in np.flatnonzero(self.effect[at] * self.node[at]):
                part = amount * abs(self.effect[at, source]) / total[at]
                yield from below(source, part) if self.kept[at, source] else [(-1, part)]

        for at, weight in zip(np.flatnonzero(self.kind == "logit"), WEIGHTS, strict=True):
            yield from below(at, weight)

    def ends(self) -> dict[str, float]:
        """Where the influence ends; what of it passes nodes, and what of their input is explained.

        Effects below the floor are the floor's, whatever they come from.
        """
        names = ("embedding", "error", "beyond", "floor", "through", "explained")
        found, size = dict.fromkeys(names, 0.0), np.abs(self.effect)
        good = (size * (self.kept & self.node & (self.kind != "error"))).sum(1)
        total = size.sum(1)
        for at, amount in self.walks():
            if at < 0 or not self.node[at]:
                found["floor" if at < 0 else "beyond"] += amount
                continue
            found["through"] += amount
            found["explained"] += amount * (good[at] / total[at] if total[at] else 1)
            if self.kind[at] in found:
                found[self.kind[at]] += amount
        return found


def whole(seed: int, nodes: float, floor: float) -> Whole:
    """A random acyclic graph, a share of whose features are nodes."""
    rng = np.random.default_rng(seed)
    inner = rng.choice(["error", "feature", "feature", "feature"], 8)
    kind = np.array(["embedding", "embedding", *inner, "logit", "logit"])
    effect = np.tril(rng.standard_normal((len(kind),) * 2), -1)
    effect *= rng.random(effect.shape) < 0.6
    effect[np.isin(kind, ["embedding", "error"])] = effect[:, kind == "logit"] = 0
    size = np.abs(effect)
    return Whole(
        kind=kind,
        effect=effect,
        node=(kind != "feature") | (rng.random(len(kind)) < nodes),
        kept=size >= floor * size.sum(1, keepdims=True),
    )


@FEW
@given(seed=SEEDS, nodes=st.floats(0, 1), floor=st.sampled_from([0.0, 0.1]))
def test_scores_are_sums_over_all_paths(seed: int, nodes: float, floor: float):
    model = whole(seed, nodes, floor)
    ends, scores = model.ends(), model.graph().scores
    weight = sum(WEIGHTS)
    if ends["beyond"] + ends["floor"] > 1e-9:
        assert scores.replacement == pytest.approx(ends["embedding"] / weight, abs=1e-12)
    elif ends["embedding"] + ends["error"] > 0:
        among = ends["embedding"] / (ends["embedding"] + ends["error"])
        assert scores.replacement == pytest.approx(among, abs=1e-12)
    assert scores.uncovered == pytest.approx(ends["beyond"] / weight, abs=1e-12)
    ended = ends["embedding"] + ends["error"]
    assert scores.leak == pytest.approx(1 - ended / weight, abs=1e-12)
    assert scores.completeness == pytest.approx(ends["explained"] / ends["through"], abs=1e-12)


@FEW
@given(seed=SEEDS, nodes=st.floats(0, 1), more=st.floats(0, 1))
def test_features_left_out_never_raise_the_score(seed: int, nodes: float, more: float):
    few, many = (whole(seed, share, 0.0) for share in sorted((nodes, more)))
    assert not (few.node & ~many.node).any()
    assert few.ends()["embedding"] <= many.ends()["embedding"] + 1e-12
    fewer, rest = few.graph().scores, many.graph().scores
    assert fewer.uncovered >= rest.uncovered - 1e-12
    if fewer.uncovered > 0:
        assert fewer.replacement <= rest.replacement + 1e-12


@FEW
@given(seed=SEEDS, prune=st.booleans())
def test_without_a_cap_nothing_is_uncovered_and_both_scores_are_one(seed: int, prune: bool):
    graph = random_graph(seed, dtype=np.float64)
    graph = graph.prune() if prune else graph
    scores = graph.scores
    assert (scores.replacement, scores.completeness) == tuple(asdict(scores.among_nodes).values())
    assert scores.uncovered == 0
    assert "uncovered" not in graph.metadata.get("pruned", {})
    total = graph.nodes["input_absolute"].to_numpy()[graph.edges["target"].to_numpy()]
    np.testing.assert_allclose(graph.edges["share"], graph.effect.data / total, rtol=1e-15)


@FEW
@given(seed=SEEDS, nodes=st.floats(0.3, 0.9), edges=st.floats(0.5, 0.95))
def test_a_pruned_graph_counts_both_losses_and_keeps_what_was_uncovered(
    seed: int, nodes: float, edges: float
):
    graph = whole(seed, 0.6, 0.0).graph()
    small = graph.prune(nodes, edges)
    if graph.scores.uncovered == 0 or small is graph:
        return
    smaller = small.prune(nodes / 2, edges / 2)
    for part in (small, smaller, AttributionGraph.from_networkx(small.to_networkx())):
        assert part.scores.uncovered == graph.scores.uncovered
        assert part.scores.replacement <= graph.scores.replacement + 1e-12
        assert part.scores.leak >= graph.scores.leak - 1e-12
    assert small.scores.among_nodes.replacement >= small.scores.replacement


def test_old_files_are_scored_by_what_they_left_out(tmp_path: Path):
    graph = capped()
    flattering = {"replacement": 1.0, "completeness": 1.0, "leak": 0.0}
    about = graph.metadata | {"scores": flattering, "format_version": 2}
    arrow.write(tmp_path / "old.graph", graph.nodes, graph.edges, about)
    nodes = graph.nodes.drop_columns(["site"])
    arrow.write(tmp_path / "older.graph", nodes, graph.edges, about | {"format_version": 1})
    for name in ("old.graph", "older.graph"):
        assert AttributionGraph.load(tmp_path / name).scores == graph.scores


def test_a_row_that_holds_less_than_its_columns_say_is_no_gain():
    """Inputs cut away with networkx stay in what rows are divided by."""
    cut = capped().to_networkx()
    cut.remove_edge("embedding0", "logit2")
    scores = AttributionGraph.from_networkx(cut).scores
    assert scores.replacement < capped().scores.replacement
    assert scores.among_nodes.replacement < 1


def test_files_hold_both_kinds_of_scores(tmp_path: Path):
    graph = capped()
    graph.export(tmp_path / "g.json")
    held = json.loads((tmp_path / "g.json").read_text())["metadata"]["scores"]
    assert held == asdict(graph.scores)
    graph.save(tmp_path / "g")
    with pa.ipc.open_file(tmp_path / "g" / "nodes.arrow") as file:
        assert json.loads(file.schema.metadata[arrow.KEY])["scores"] == held


def test_weightless_targets_have_no_scores_in_files(tmp_path: Path):
    graph = capped().to_networkx()
    graph.nodes["logit2"]["probability"] = 0.0
    AttributionGraph.from_networkx(graph).export(tmp_path / "g.json")
    held = json.loads((tmp_path / "g.json").read_text())["metadata"]["scores"]
    pair = {"replacement": None, "completeness": None}
    assert held == pair | {"leak": 0.0, "uncovered": None, "among_nodes": pair}


def test_the_line_under_a_picture_says_what_a_cap_left_out():
    for graph in (capped(), capped().prune(0.99, 0.99)):
        text = graph.to_dot()
        for part in (
            "replacement 0.62 (1.00 among the nodes kept)",
            "completeness 0.82 (1.00 among the nodes kept)",
            "uncovered 0.38 (features beyond the cap)",
        ):
            assert part in text
            assert part in summary_html(graph._content, [])
        assert 'id="title_2"' in text
    whole = random_graph(0).to_dot()
    assert 'id="title_2"' not in whole
    assert "uncovered" not in whole
    assert "among the nodes" not in whole
