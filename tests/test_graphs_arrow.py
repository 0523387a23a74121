"""Graphs on disk: what is saved comes back, and nothing else is taken for a graph."""

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import AttributionGraph, GraphError
from graphs.exchange import arrow
from tests.graph_samples import random_graph

NAMES = ["dallas.graph", "dallas.zip"]


@pytest.fixture
def graph() -> AttributionGraph:
    return random_graph(0, features=20).prune()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: AttributionGraph, other: AttributionGraph) -> bool:
    return (
        one.nodes.equals(other.nodes)
        and one.edges.equals(other.edges)
        and one.metadata == other.metadata
        and one.effect.dtype == other.effect.dtype
        and one.scores == other.scores
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_graph_comes_back(tmp_path: Path, name: str, dtype: type):
    for graph in (whole := random_graph(0, dtype=dtype), whole.prune()):
        graph.save(tmp_path / name)
        assert same(AttributionGraph.load(tmp_path / name), graph)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_saving_what_was_loaded_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int
):
    folder = tmp_path_factory.mktemp("graph")
    for name in NAMES:
        random_graph(seed, features=10).save(folder / name)
        AttributionGraph.load(folder / name).save(folder / f"second_{name}")
    for name in (arrow.NODES, arrow.EDGES):
        files = [(folder / f"{copy}dallas.graph" / name).read_bytes() for copy in ("", "second_")]
        assert files[0] == files[1]
    zips = [(folder / f"{copy}dallas.zip").read_bytes() for copy in ("", "second_")]
    assert zips[0] == zips[1]


def test_any_arrow_tool_reads_the_tables(tmp_path: Path, graph: AttributionGraph):
    graph.save(tmp_path / "g")
    with pa.OSFile(str(tmp_path / "g" / "edges.arrow")) as file:
        edges = pa.ipc.open_file(file).read_all()
    assert edges.column_names == ["source", "target", "weight", "influence", "share"]
    held = json.loads(edges.schema.metadata[b"tracer.graph"])
    assert held["prompt"] == graph.metadata["prompt"]
    assert held["scores"]["replacement"] == graph.scores.replacement


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replaces_a_graph(tmp_path: Path, name: str, graph: AttributionGraph):
    random_graph(1).save(tmp_path / name)
    graph.save(tmp_path / name)
    assert same(AttributionGraph.load(tmp_path / name), graph)
    assert names(tmp_path) == [name]


def test_saving_never_replaces_what_is_no_graph(tmp_path: Path, graph: AttributionGraph):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    (tmp_path / "file").write_text("words")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file.zip").write_text("words")
    write_zip(tmp_path / "other.zip", {"a.txt": b"words"})
    for name, why in [
        ("thesis", "the folder holds no graph"),
        ("file", "a file stands there"),
        ("folder.zip", "a folder stands there"),
        ("file.zip", "the file holds no graph"),
        ("other.zip", "the file holds no graph"),
    ]:
        with pytest.raises(GraphError, match=why):
            graph.save(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "words"
    assert (tmp_path / "file.zip").read_text() == "words"
    assert names(tmp_path) == ["file", "file.zip", "folder.zip", "other.zip", "thesis"]


@pytest.mark.parametrize("name", NAMES)
def test_an_unwritable_place_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, graph: AttributionGraph
):
    with pytest.raises(GraphError, match=r"cannot write .*: there is no folder .*; make it first"):
        graph.save(tmp_path / "missing" / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_graph(
    tmp_path: Path, graph: AttributionGraph, monkeypatch: pytest.MonkeyPatch
):
    random_graph(1).save(tmp_path / "g.zip")
    before = (tmp_path / "g.zip").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GraphError, match="No space left on device"):
        graph.save(tmp_path / "g.zip")
    assert (tmp_path / "g.zip").read_bytes() == before
    assert names(tmp_path) == ["g.zip"]


def torn(folder: Path) -> None:
    file = folder / "edges.arrow"
    file.write_bytes(file.read_bytes()[:-100])


def foreign(folder: Path) -> None:
    (folder / "nodes.arrow").write_text("<html>not found</html>")


def other_arrow(folder: Path) -> None:
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(folder / "nodes.arrow"), table.schema) as writer:
        writer.write_table(table)


def of_another_graph(folder: Path) -> None:
    random_graph(5, tokens=["a", "b"]).save(folder / "other")
    (folder / "other" / "edges.arrow").replace(folder / "edges.arrow")


def edited(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = pa.ipc.open_file((folder / name).read_bytes()).read_all()
        table = change(table).replace_schema_metadata(table.schema.metadata)
        with pa.ipc.new_file(str(folder / name), table.schema) as writer:
            writer.write_table(table)

    return edit


def column(name: str, at: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[at] = value
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values, table[name].type))

    return change


def version_three(folder: Path) -> None:
    for name in (arrow.NODES, arrow.EDGES):
        table = pa.ipc.open_file((folder / name).read_bytes()).read_all()
        held = json.loads(table.schema.metadata[arrow.KEY]) | {"format_version": 3}
        table = table.replace_schema_metadata({arrow.KEY: json.dumps(held)})
        with pa.ipc.new_file(str(folder / name), table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (torn, "edges.arrow is torn or no Arrow file"),
        (foreign, "nodes.arrow is torn or no Arrow file"),
        (other_arrow, "is an Arrow file, but not of a graph"),
        (of_another_graph, "are of two graphs"),
        (version_three, "format version 3, expected 2"),
        (lambda folder: (folder / "nodes.arrow").unlink(), "nodes.arrow is missing"),
        (edited("edges.arrow", column("source", 0, 999)), "leads outside the graph"),
        (edited("edges.arrow", column("target", 0, 0)), "runs backward"),
        (edited("edges.arrow", column("weight", 0, float("nan"))), "is not finite"),
        (edited("edges.arrow", column("weight", 0, None)), "'weight' has nulls"),
        (edited("edges.arrow", column("weight", 0, 1e9)), "are of two graphs"),
        (edited("edges.arrow", lambda t: pa.concat_tables([t, t[:1]])), "1 edges stand twice"),
        (edited("edges.arrow", lambda t: t.drop_columns("weight")), "one column 'weight'"),
        (edited("nodes.arrow", lambda t: t.drop_columns("label")), "one column 'label'"),
        (edited("nodes.arrow", lambda t: t[:-3]), "leads outside the graph"),
        (edited("nodes.arrow", column("influence", 3, float("nan"))), "has influence nan"),
        (edited("nodes.arrow", column("kind", 3, "lorsa")), "unknown node kind 'lorsa'"),
        (edited("nodes.arrow", column("id", 3, "x\ny")), r"has id 'x\\ny'"),
    ],
)
def test_a_damaged_graph_is_refused_in_one_line(
    tmp_path: Path, graph: AttributionGraph, damage: Callable[[Path], None], message: str
):
    graph.save(tmp_path / "g")
    damage(tmp_path / "g")
    with pytest.raises(GraphError, match=message) as caught:
        AttributionGraph.load(tmp_path / "g")
    assert str(caught.value).startswith(f"{tmp_path / 'g'}")
    assert "\n" not in str(caught.value)


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_what_is_no_graph_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.zip").write_text("no zip")
    (tmp_path / "nothing.zip").write_bytes(b"")
    write_zip(tmp_path / "other.zip", {"a.txt": b"x"})
    write_zip(tmp_path / "outside.zip", {"../nodes.arrow": b"x", "edges.arrow": b"x"})
    write_zip(tmp_path / "giant.zip", {"nodes.arrow": bytes(80_000_000), "edges.arrow": b"x"})
    for name, message in [
        ("missing", "does not exist"),
        ("empty", "is no graph: .* nodes.arrow is missing"),
        ("words.zip", "is no graph"),
        ("nothing.zip", "is no graph"),
        ("other.zip", "expected exactly nodes.arrow and edges.arrow"),
        ("outside.zip", "expected exactly nodes.arrow and edges.arrow"),
        ("giant.zip", "nodes.arrow unpacks to 80000000 bytes"),
    ]:
        with pytest.raises(GraphError, match=message):
            AttributionGraph.load(tmp_path / name)


def damaged(content: bytes, count: int) -> Iterator[bytes]:
    """`content` with one bit turned over, in `count` places."""
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), count):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


def test_a_damaged_zip_is_refused_or_the_damage_did_not_matter(
    tmp_path: Path, graph: AttributionGraph
):
    graph.save(tmp_path / "g.zip")
    for content in damaged((tmp_path / "g.zip").read_bytes(), 150):
        (tmp_path / "g.zip").write_bytes(content)
        with contextlib.suppress(GraphError):
            assert same(AttributionGraph.load(tmp_path / "g.zip"), graph)


@pytest.mark.parametrize("name", [arrow.NODES, arrow.EDGES])
def test_a_damaged_table_raises_nothing_but_our_error(
    tmp_path: Path, graph: AttributionGraph, name: str
):
    graph.save(tmp_path / "g")
    for content in damaged((tmp_path / "g" / name).read_bytes(), 200):
        (tmp_path / "g" / name).write_bytes(content)
        with contextlib.suppress(GraphError):
            AttributionGraph.load(tmp_path / "g")
