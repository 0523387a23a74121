"""Clusters of prompts by their graphs, beside plain counts."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import tracer
from graphs import GraphError
from graphs.collections.clusters import clusters, likeness
from graphs.collections.dataset import GraphDataset
from graphs.collections.incidence import incidence
from tests.test_cli import defaults, python_defaults, refused, succeed
from tests.test_graphs_aggregate import GROUPS, tiled, written

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> GraphDataset:
    return written(tmp_path_factory.mktemp("many") / "graphs")


def some(seed: int, count: int = 9, features: int = 40) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    values = rng.random((count, features)) * (rng.random((count, features)) < 0.3)
    return sparse.csr_array(values)


def test_likeness_is_that_of_plain_sums():
    carried = some(0)
    rows = carried.toarray()
    often = (rows > 0).sum(0)
    for by in ("features", "influence"):
        found = likeness(carried, by)
        for a in range(len(rows)):
            for b in range(len(rows)):
                if by == "features":
                    sets = [set(np.flatnonzero(rows[at])) for at in (a, b)]
                    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
                else:
                    small = large = 0.0
                    for x, y, n in zip(rows[a], rows[b], often, strict=True):
                        if n:
                            small += min(x, y) * math.log(len(rows) / n)
                            large += max(x, y) * math.log(len(rows) / n)
                    expected = small / large
                assert found[a, b] == pytest.approx(expected)


def test_graphs_without_features_are_alike_and_have_nothing_in_common_with_others():
    carried = sparse.csr_array([[0.0, 0, 0], [0, 0, 0], [0.5, 0, 0.5], [0, 0, 0.5]])
    assert likeness(carried, "features")[0].tolist() == [1, 1, 0, 0]
    assert likeness(carried, "influence")[0].tolist() == [1, 1, 0, 0]


def test_graphs_of_two_kinds_are_told_apart(tmp_path: Path):
    """Seven prompts: the even ones are one graph, the odd ones another."""
    from graphs.collections import shards
    from graphs.collections.columns import ABOUT
    from graphs.collections.dataset import schemas
    from graphs.collections.rows import Asked, joined, traced_rows
    from tests.graph_samples import dallas, random_graph
    from tests.test_graphs_aggregate import said

    about, kinds = said(7, 7), [dallas().prune(), random_graph(3, features=90).prune(0.5)]
    rows = [
        traced_rows(Asked(at, f"{at}", own={"language": "ab"[at % 2]}), *2 * [kinds[at % 2]])
        for at in range(7)
    ]
    (tmp_path / ABOUT).write_text(json.dumps(about))
    shards.write(tmp_path, 0, joined(rows), schemas(about))
    for by in ("influence", "features"):
        found = clusters(tmp_path, 2, by, "language")
        assert found.prompts["cluster"].to_pylist() == [0, 1, 0, 1, 0, 1, 0]
        assert found.sizes == (4, 3)
        assert found.agreement == 1.0
        assert found.silhouette == pytest.approx(1.0)
        told = found.features.to_pylist()
        assert {row["cluster"] for row in told} == {0, 1}
        assert all(row["inside"] == 1 and row["outside"] == 0 for row in told)


def test_what_tells_a_cluster_is_counted_in_and_outside_it(dataset: GraphDataset):
    found = clusters(dataset, 3, "features", "language")
    known = incidence(dataset)
    names = [(r["kind"], r["layer"], r["name"]) for r in known.nodes.to_pylist()]
    own = found.prompts["cluster"].to_numpy()
    held = known.carried.toarray() != 0
    for row in found.features.to_pylist():
        at = names.index(("feature", row["layer"], str(row["feature"])))
        assert row["inside"] == pytest.approx(held[own == row["cluster"], at].mean())
        assert row["outside"] == pytest.approx(held[own != row["cluster"], at].mean())
        assert row["inside"] > row["outside"]
    assert sum(found.sizes) == len(own) == 6
    assert list(found.sizes) == sorted(found.sizes, reverse=True)
    assert found.prompts["language"].to_pylist() == [g for at, g in enumerate(GROUPS) if at != 3]


def test_agreement_and_silhouette_are_those_of_their_definitions(dataset: GraphDataset):
    found = clusters(dataset, 3, group_by="language")
    own, groups = found.prompts["cluster"].to_pylist(), found.prompts["language"].to_pylist()
    count = len(own)
    together = [[a[x] == a[y] for x in range(count) for y in range(x)] for a in (own, groups)]
    both = sum(x and y for x, y in zip(*together, strict=True))
    sizes = [sum(one) for one in together]
    chance = sizes[0] * sizes[1] / len(together[0])
    expected = (both - chance) / ((sizes[0] + sizes[1]) / 2 - chance)
    assert found.agreement == pytest.approx(expected)
    for at in range(count):
        others = [b for b in range(count) if b != at and own[b] == own[at]]
        apart = 1 - found.likeness[at]
        if not others:
            assert found.prompts["silhouette"][at].as_py() == 0
            continue
        a = np.mean(apart[others])
        b = min(
            np.mean([apart[x] for x in range(count) if own[x] == other])
            for other in set(own) - {own[at]}
        )
        assert found.prompts["silhouette"][at].as_py() == pytest.approx((b - a) / max(a, b))


def test_the_same_graphs_give_the_same_clusters(dataset: GraphDataset):
    one, other = (clusters(dataset, 4) for _ in range(2))
    assert one.to_json() == other.to_json()
    assert one.agreement is None


def test_graphs_that_are_all_the_same_are_no_error(tmp_path: Path):
    found = clusters(tiled(tmp_path / "same", 5, 5), 2)
    assert sum(found.sizes) == 5


def test_what_cannot_be_clustered_is_refused(
    dataset: GraphDataset, monkeypatch: pytest.MonkeyPatch
):
    for count in (1, 6, 9):
        with pytest.raises(GraphError, match=rf"is {count}, expected 2 up, and fewer than the 6"):
            clusters(dataset, count)
    with pytest.raises(GraphError, match="by is 'colour', expected one of influence, features"):
        clusters(dataset, 2, "colour")
    with pytest.raises(GraphError, match="has no column 'x'"):
        clusters(dataset, 2, group_by="x")
    monkeypatch.setattr("graphs.collections.clusters.MOST", 5)
    with pytest.raises(GraphError, match="has 6 graphs, clusters take at most 5"):
        clusters(dataset, 2)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(GraphError, match=r"pip install 'tracer\[features\]'"):
        clusters(dataset, 2)


def test_the_command_prints_and_gives_what_python_gives(dataset: GraphDataset):
    found = tracer.clusters(dataset, 3, "features", "language")
    given = ("cluster", str(dataset.path), "--clusters", "3", "--by", "features")
    text = succeed(*given, "--group-by", "language")
    assert f"adjusted Rand index with language\t{found.agreement:.3f}\n" in text
    assert f"silhouette\t{found.silhouette:.3f} in the mean" in text
    assert text.startswith(f"cluster 0, {found.sizes[0]} graphs: ")
    assert text.count("\ncluster ") == 2
    row = found.features.to_pylist()[0]
    assert f"L{row['layer']}/{row['feature']}\t" in text
    asked = succeed(*given, "--group-by", "language", "--json")
    assert json.loads(asked) == json.loads(json.dumps(found.to_json()))
    assert "Rand" not in succeed(*given)
    assert "is 1, expected 2 up" in refused("cluster", str(dataset.path), "--clusters", "1")


def test_the_command_has_the_defaults_of_the_python_function():
    shown = defaults("cluster")
    for name, value in python_defaults(tracer.clusters).items():
        assert shown[name] == value
