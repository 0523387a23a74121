"""What commands print of tables: in which order, how much of it, and what is none."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from graphs.attention_tables import ABOVE, STAY
from tests.graph_samples import dallas
from tests.test_graphs_picture_heads import carried
from tracer.commands.feature_words import print_example_list, print_labelled, truth, untrue
from tracer.commands.heads import print_loadings
from tracer.commands.match import print_matching
from tracer.commands.stability import print_edges
from tracer.features.feature import Example

Printed = pytest.CaptureFixture[str]


def cells(printed: Printed) -> list[list[str]]:
    """Lines, empty ones left out, cut at tabs."""
    return [line.split("\t") for line in printed.readouterr().out.splitlines() if line]


def test_matches_are_listed_mutual_ones_first_and_the_closest_of_each(capsys: Printed):
    rows = [(0, 0.9, False), (1, 0.2, True), (2, None, False), (3, 0.8, True), (4, 0.95, False)]
    features = [
        {"layer": 0, "feature": feature, "other_layer": 1, "other_feature": 10 + feature,
         "correlation": correlation, "mutual": mutual}
        for feature, correlation, mutual in rows
    ]  # fmt: skip
    streams = pa.Table.from_pylist([{"layer": 0, "other_layer": 1, "cka": 0.5, "aligned": 0.25}])
    found: Any = SimpleNamespace(
        features=pa.Table.from_pylist(features), streams=streams, positions=12,
        shared=lambda least: {0.7: 0.2}[least],
    )  # fmt: skip
    print_matching(found, 0.7, 3)
    assert cells(capsys) == [
        ["shared", "20% of 5 features that fired on 12 positions have a mutual match that "
         "correlates by 0.7 or more"],
        ["feature", "other's", "correlation", "mutual"],
        ["L0/3", "L1/13", "0.8", "yes"],
        ["L0/1", "L1/11", "0.2", "yes"],
        ["L0/4", "L1/14", "0.95", "no"],
        ["stream entering layer", "other's", "CKA", "aligned"],
        ["0", "1", "0.5", "0.25"],
    ]  # fmt: skip


def test_examples_are_listed_by_their_kind_and_so_many_of_each(capsys: Printed):
    examples = [
        Example(kind, rank, (" a", f" {kind}{rank}"), (0.0, 1.0), 1, value, range(2))
        for kind, value in (("decile", 0.5), ("top", 2.5), ("bottom", -1.5))
        for rank in range(3)
    ]
    print_example_list(SimpleNamespace(examples=examples), 2)  # type: ignore[arg-type]
    assert cells(capsys) == [
        ["activation", "strongest examples"],
        ["2.5", "a [top0]"],
        ["2.5", "a [top1]"],
        ["activation", "most negative examples"],
        ["-1.5", "a [bottom0]"],
        ["-1.5", "a [bottom1]"],
    ]
    print_example_list(SimpleNamespace(examples=examples[:3]), 2)  # type: ignore[arg-type]
    assert cells(capsys) == []


def test_labels_are_counted_by_what_is_shown_and_what_fires(capsys: Printed):
    rows = [
        {"fires": 5, "shown": True, "f1": 0.7, "polysemantic": True},
        {"fires": 1, "shown": True, "f1": 0.69, "polysemantic": False},
        {"fires": 9, "shown": False, "f1": 0.9, "polysemantic": True},
        {"fires": 0, "shown": False, "f1": None, "polysemantic": None},
    ]
    labels = SimpleNamespace(rows=dict(enumerate(rows)))
    print_labelled(SimpleNamespace(labels=labels, path="s"))  # type: ignore[arg-type]
    assert cells(capsys)[:3] == [
        ["features", "4, of which 3 fire on the text held out"],
        ["true labels", "2 (F1 of 0.5 or more), 1 of 0.7 or more"],
        ["polysemantic", "2"],
    ]


def test_the_heads_that_carried_most_come_first_whatever_their_sign(capsys: Printed):
    """Largest by the influence through a head; of edges that were asked for every row."""
    graph = dallas().prune()
    through = graph.edges["influence"].to_pylist()
    best, last = through.index(max(through)), through.index(min(through))
    rows = [(last, 0, 1, 0.5), (best, 0, STAY, 0.9), (best, 1, 2, 0.1), (best, 2, 3, -0.8)]
    told = carried(graph, [*rows, (last, 1, ABOVE, 0.2)])
    print_loadings(told, 2, chosen=False)
    head, *most = cells(capsys)
    assert head == ["edge", "layer", "head", "carries", "of the edge"]
    assert [(row[1], row[2], row[4]) for row in most] == [("2", "2.3", "-80%"), ("1", "1.2", "10%")]
    print_loadings(told, 2, chosen=True)
    every = [(row[1], row[2], row[4]) for row in cells(capsys)[1:]]
    assert every == [("0", "0.1", "50%"), ("0", "stays", "90%"), ("1", "1.2", "10%"),
                     ("2", "2.3", "-80%"), ("1", "written above", "20%")]  # fmt: skip


def test_edges_are_listed_with_their_stability_the_strongest_first(capsys: Printed):
    small = dallas().prune()
    print_edges(small, small.nodes.to_pylist(), 4)
    head, *rows = cells(capsys)
    assert head == ["edge", "influence", "stability"]
    strongest = sorted(small.edges["influence"].to_pylist(), reverse=True)[:4]
    assert [row[1] for row in rows] == [f"{value:.4g}" for value in strongest]


def test_how_true_a_label_is_stands_beside_it():
    measured = {"f1": 0.834, "precision": 0.9, "recall": 0.777, "outside_f1": None,
                "fuzzing": None, "list_f1": 0.5, "above": 0.0}  # fmt: skip
    found: Any = SimpleNamespace(source="predicate", f1=0.834)
    said = "F1 0.83 on text held out, precision 0.90, recall 0.78; "
    assert truth(found, measured) == f"{said}its most frequent tokens 0.50"
    more = measured | {"outside_f1": 0.25, "fuzzing": 0.75, "above": 1.2345}
    assert truth(found, more) == (
        f"{said}elsewhere 0.25; judged by the endpoint, fuzzing 0.75; of activations above 1.23"
    )
    unmeasured = "came with the dictionary, not measured"
    assert truth(found, None) == unmeasured
    assert truth(SimpleNamespace(source="example", f1=None), measured) == unmeasured  # type: ignore[arg-type]
    assert truth(SimpleNamespace(source="user", f1=None), None) == "a user's own"  # type: ignore[arg-type]
    row: dict[str, Any] = {"fires": 0, "label": "on “a”", "f1": 0.333, "contradicted": ["x", "y"]}
    assert untrue(row) == "it does not fire on the text held out"
    assert untrue(row | {"fires": 3}) == (
        "the best, on “a”, has F1 0.33, and text held out contradicts 2 of its alternatives"
    )
    assert untrue(row | {"fires": 1, "contradicted": []}) == "the best, on “a”, has F1 0.33"
    assert untrue(row | {"fires": 1, "label": None}).startswith("nothing tells where it fires")
