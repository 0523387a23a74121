"""Datasets of graphs on disk: what goes in comes back, and what is torn is said in one line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from graphs import AttributionGraph, GraphError
from graphs.collections import shards
from graphs.collections.columns import ABOUT, EDGES, NAME, NODES, PROMPTS, VERSION, shard_file
from graphs.collections.dataset import GraphDataset, _only, schemas
from graphs.collections.rows import Asked, Rows, failed_rows, joined, traced_rows
from tests.graph_samples import random_graph

SAID: dict[str, Any] = {
    "format": NAME,
    "version": VERSION,
    "prompts": 5,
    "shard": 2,
    "weight": "float",
    "columns": {"language": "string"},
}


def graphs() -> dict[int, AttributionGraph]:
    return {number: random_graph(number) for number in (0, 1, 3)}


def written(folder: Path) -> GraphDataset:
    """Prompts 0, 1 and 3, of which 2 failed and 4 is not done."""
    (folder / ABOUT).write_text(json.dumps(SAID))
    known = graphs()
    for shard in range(2):
        rows = []
        for number in range(2 * shard, 2 * shard + 2):
            asked = Asked(number, f"prompt {number}", own={"language": "en"})
            if number in known:
                rows.append(traced_rows(asked, known[number], known[number].prune()))
            else:
                rows.append(failed_rows(asked, "too long", pa.float32()))
        shards.write(folder, shard, joined(rows), schemas(SAID))
    return GraphDataset.load(folder)


def same(a: AttributionGraph, b: AttributionGraph) -> bool:
    tables = a.nodes.equals(b.nodes) and a.edges.equals(b.edges)
    return tables and a.metadata == b.metadata and a.scores == b.scores


def test_graphs_come_back_equal_one_by_one_and_all_together(tmp_path: Path):
    dataset = written(tmp_path)
    assert len(dataset) == 4
    assert not dataset.is_complete
    for number, graph in graphs().items():
        assert same(dataset.graph(number), graph.prune())
    for number, graph in dataset.graphs():
        assert same(graph, dataset.graph(number))
    assert [number for number, _ in dataset.graphs()] == [0, 1, 3]
    assert [number for number, _ in dataset.graphs([3, 4])] == [3]


def test_a_dataset_is_shown_by_its_place_not_by_all_its_settings(tmp_path: Path):
    assert repr(written(tmp_path)) == f"GraphDataset(path={tmp_path!r})"


def test_tables_hold_every_prompt_node_and_edge(tmp_path: Path):
    dataset, known = written(tmp_path), {n: g.prune() for n, g in graphs().items()}
    assert dataset.nodes.count_rows() == sum(g.nodes.num_rows for g in known.values())
    assert dataset.edges.count_rows() == sum(g.effect.nnz for g in known.values())
    rows = dataset.prompts.to_table().to_pylist()
    assert [row["status"] for row in rows] == ["traced", "traced", "failed", "traced"]
    assert [row["language"] for row in rows] == ["en"] * 4
    assert rows[2]["reason"] == "too long"
    assert rows[0]["replacement"] == known[0].scores.replacement
    assert rows[0]["traced_completeness"] == graphs()[0].scores.completeness


def test_the_same_rows_are_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.parquet"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_rows_of_a_prompt_that_is_not_done_do_not_count(tmp_path: Path):
    dataset = written(tmp_path)
    place = shard_file(tmp_path, PROMPTS, 1)
    parquet.write_table(parquet.read_table(place, filters=[("prompt", "=", 2)]), place)
    with pytest.raises(GraphError, match=r"prompt 3 is not traced yet"):
        dataset.graph(3)
    assert [number for number, _ in dataset.graphs()] == [0, 1]
    rows = shards.read(tmp_path, 1, schemas(SAID))
    assert rows is not None
    assert rows.nodes.num_rows == 0


def test_a_dataset_without_shards_has_empty_tables(tmp_path: Path):
    (tmp_path / ABOUT).write_text(json.dumps(SAID))
    dataset = GraphDataset.load(tmp_path)
    assert [part.count_rows() for part in (dataset.prompts, dataset.nodes, dataset.edges)] == [
        0
    ] * 3


def test_prompts_without_a_graph_are_refused_by_reason(tmp_path: Path):
    dataset = written(tmp_path)
    for number, said in ((2, "failed: too long"), (4, "not traced yet"), (5, r"is not in 0\.\.4")):
        with pytest.raises(GraphError, match=said):
            dataset.graph(number)


@pytest.mark.parametrize("part", [NODES, EDGES, PROMPTS])
def test_a_torn_shard_is_refused_in_one_line(tmp_path: Path, part: str):
    dataset = written(tmp_path)
    place = shard_file(tmp_path, part, 0)
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(GraphError, match=r"is torn or none of ours: [^\n]*$"):
        dataset.graph(0)


def test_a_turned_bit_is_found(tmp_path: Path):
    dataset = written(tmp_path)
    place = shard_file(tmp_path, EDGES, 0)
    content = bytearray(place.read_bytes())
    content[len(content) // 3] ^= 4
    place.write_bytes(bytes(content))
    with pytest.raises(GraphError):
        dataset.graph(0)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("{", "cannot be read"),
        ("[]", "does not say"),
        (json.dumps(SAID | {"version": 9}), "version 9, expected 1"),
        (json.dumps(SAID | {"shard": 0}), "shard is 0"),
        (json.dumps(SAID | {"columns": {"a": "list"}}), "columns is"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, said: str, wrong: str):
    (tmp_path / ABOUT).write_text(said)
    with pytest.raises(GraphError, match=wrong):
        GraphDataset.load(tmp_path)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path):
    with pytest.raises(GraphError, match="is no dataset of graphs"):
        GraphDataset.load(tmp_path)


def test_rows_of_one_prompt_are_those_and_no_others():
    table = pa.table({"prompt": [0, 0, 1, 1, 1, 2], "value": [*"abcdef"]})
    for number, expected in enumerate(("ab", "cde", "f", "")):
        found = _only(Rows(table, table, table, table), number)
        for part in (found.prompts, found.nodes, found.edges, found.steering):
            assert part["value"].to_pylist() == [*expected]
