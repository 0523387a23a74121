"""Nothing is worked out twice: a graph is checked where it comes in, each system solved once."""

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import AttributionGraph, influence, schema
from graphs.prune import Ends, prune
from tests.graph_samples import columns, dallas, random_graph, rows_of


class Work:
    """Counts of checks, and the systems solved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.nodes = self.effects = 0
        self.systems: list[bytes] = []
        self.watch(monkeypatch, schema, "_check_ids", self.count_nodes)
        self.watch(monkeypatch, schema, "_in_order", self.count_effects)
        self.watch(monkeypatch, influence, "_blocks", self.count_systems)

    @staticmethod
    def watch(
        monkeypatch: pytest.MonkeyPatch, module: object, name: str, count: Callable[..., None]
    ) -> None:
        """Count calls of what every check, or every solve, passes through."""
        real = getattr(module, name)

        def counted(*args: object) -> object:
            count(*args)
            return real(*args)

        monkeypatch.setattr(module, name, counted)

    def count_nodes(self, *_: object) -> None:
        self.nodes += 1

    def count_effects(self, *_: object) -> None:
        self.effects += 1

    def count_systems(self, share: sparse.csr_array) -> None:
        self.systems.append(share.toarray().tobytes())


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def test_load_prune_and_render_check_once_and_solve_three_systems(tmp_path: Path, work: Work):
    """Pruning needs b and, of the nodes left, b'; the scores of what is left need its own b."""
    dallas().save(tmp_path / "g")
    work.nodes = work.effects = 0
    work.systems.clear()
    small = AttributionGraph.load(tmp_path / "g").prune()
    small.render(tmp_path / "g.dot")
    assert (work.nodes, work.effects) == (1, 1)
    assert len(work.systems) == len(set(work.systems)) == 3
    small.prune(0.8, 0.98).save(tmp_path / "h")
    small.paths(3)
    assert len(work.systems) == 3


def test_what_building_knows_is_not_worked_out_again(tmp_path: Path, work: Work):
    graph = random_graph(0)
    graph.save(tmp_path / "g")
    small = graph.prune()
    small.to_dot()
    graph.prune(0.5, 0.9).to_dot()
    assert (work.nodes, work.effects) == (1, 1)
    assert len(work.systems) == len(set(work.systems)) == 5  # b; twice b' and the b of what is left


def test_new_labels_change_nothing_that_is_known(work: Work):
    graph = random_graph(0)
    assert graph.scores
    other = graph.relabel({graph.nodes["id"][12].as_py(): "say a capital"})
    assert other.edges is not None
    assert other.scores == graph.scores
    assert (work.nodes, work.effects, len(work.systems)) == (1, 1, 1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), nodes=st.floats(0.2, 0.99), edges=st.floats(0.5, 0.99))
def test_what_is_made_of_a_graph_would_pass_its_checks(seed: int, nodes: float, edges: float):
    graph = random_graph(seed)
    small = graph.prune(nodes, edges)
    for made in (small, small.prune(0.1, 0.4), small.relabel({small.nodes["id"][0].as_py(): "x"})):
        assert not made.effect.data.flags.writeable
        again = AttributionGraph(nodes=made.nodes, effect=made.effect, metadata=made.metadata)
        assert again.scores == made.scores


def test_pruning_reads_the_weights_as_they_are_and_no_stored_influence():
    graph = random_graph(3)
    changed = graph.to_networkx()
    logits = [name for name, kind in changed.nodes(data="kind") if kind == "logit"]
    weights = [changed.nodes[name]["probability"] for name in logits]
    for name, weight in zip(logits, reversed(weights), strict=True):
        changed.nodes[name]["probability"] = weight
    stale = AttributionGraph.from_networkx(changed)
    fresh = AttributionGraph.build(
        {name: stale.nodes[name] for name in stale.nodes.column_names}, stale.effect, stale.metadata
    )
    assert stale.nodes["influence"] != fresh.nodes["influence"]
    assert stale.prune().nodes["id"] == fresh.prune().nodes["id"]
    assert stale.prune().nodes["id"] != graph.prune().nodes["id"]


def test_pruning_divides_by_what_is_left_of_a_row_and_scores_by_what_it_was():
    rows = rows_of(["<bos>", "a"], np.array([[0, 4], [0, 4]]), 2, [("b", 0.6), ("c", 0.4)])
    order = np.random.default_rng(0).standard_normal((len(rows),) * 2)
    effect = np.tril(order, -1)
    kind = np.array([row["kind"] for row in rows])
    effect[np.isin(kind, ["embedding", "error"])] = effect[:, kind == "logit"] = 0
    lost = np.where(effect.any(1), np.arange(len(rows)), 0.0)
    whole, floored = (
        AttributionGraph.build(columns(rows), sparse.csr_array(effect), {"tokens": ["a", "b"]}, it)
        for it in (0.0, lost)
    )
    assert floored.nodes["influence"] != whole.nodes["influence"]
    assert floored.prune(0.5, 0.9).nodes["id"] == whole.prune(0.5, 0.9).nodes["id"]
    assert floored.scores.completeness < whole.scores.completeness


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_lies_between_roots_and_logits_is_what_networkx_finds(seed: int):
    rng = np.random.default_rng(seed)
    count = 12
    effect = sparse.csr_array(np.tril(rng.random((count, count)) < 0.15, -1).astype(float))
    kind = np.sort(rng.integers(0, 4, count))
    ends = Ends(token=kind == 0, error=kind == 1, logit=kind == 3)
    kept = prune(effect, np.where(kind == 3, 1.0, 0.0), np.ones(count), ends, (1.0, 1.0))
    plain = nx.from_scipy_sparse_array(effect.T, create_using=nx.DiGraph)
    up, down = set(np.flatnonzero(kind <= 1)), set(np.flatnonzero(kind == 3))
    up |= {node for root in up for node in nx.descendants(plain, root)}
    down |= {node for logit in down for node in nx.ancestors(plain, logit)}
    want = up & down | set(np.flatnonzero(np.isin(kind, [0, 3])))
    assert set(np.flatnonzero(kept.nodes)) == want
