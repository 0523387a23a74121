"""Files that appear whole or not at all, whoever else writes them and whoever was killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graphs import AttributionGraph, GraphError
from graphs.exchange import files
from graphs.exchange.files import NEXT, write_together, writing
from replacement_models.formats.storage.appearing import appearing
from tests.graph_samples import random_graph

Writer = Callable[[Path], Any]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_a_dead_process(name: str, partial: str) -> str:
    """A temporary name as a process would have left it that no longer runs."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return partial.replace(f"-{os.getpid()}-", f"-{ended.pid}-")


@pytest.mark.parametrize("write", [writing, appearing])
def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path, write: Any):
    with write(tmp_path / "one") as partial:
        if write is writing:
            partial.mkdir()
        (partial / "inside").touch()
    mine = partial.name
    dead, other = of_a_dead_process("one", mine), mine.replace(".one.", ".other.")
    alive = mine.replace(f"-{os.getpid()}-", "-1-")
    elsewhere = of_a_dead_process("one", mine).replace(mine.split(".")[2][:6], "000000")
    kept = [alive, elsewhere, ".one.partial", of_a_dead_process("one", other)]
    for name in (dead, mine, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").touch()
    with write(tmp_path / "one") as beside:
        if write is writing:
            beside.mkdir()
        assert sorted([*kept, beside.name, "one"]) == names(tmp_path)
        with pytest.raises((GraphError, OSError)), write(tmp_path / "one" / "inside" / "deep"):
            pass
        with write(tmp_path / "two") as second:
            if write is writing:
                second.mkdir()
        assert beside.is_dir()
        (tmp_path / "two").rmdir()
        (tmp_path / "one" / "inside").unlink()
    assert sorted([*kept, "one"]) == names(tmp_path)


def test_names_that_a_file_system_just_allows_can_be_written(tmp_path: Path):
    for name in ("x" * 255, "東" * 85):
        with writing(tmp_path / name) as partial:
            partial.write_bytes(b"1")
        assert (tmp_path / name).read_bytes() == b"1"
        (tmp_path / name).unlink()
        with appearing(tmp_path / name):
            pass
    assert len(names(tmp_path)) == 2


def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").resolve().name[-8:])
        flush(handle)

    def replace(source: Path, target: Path) -> None:
        steps.append(f"to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "place").mkdir()
    write_together(tmp_path / "place", {"a": pa.py_buffer(b"1")})
    if Path("/proc/self/fd").exists():
        assert steps == ["a", ".partial", "to .next", "place", "to a", "place"]


def test_several_files_are_the_new_ones_as_soon_as_they_are_there(tmp_path: Path):
    old, new = random_graph(0, features=10), random_graph(1, features=10)
    for at_rest in ({"nodes.arrow", "edges.arrow"}, {"edges.arrow"}, {"nodes.arrow"}, set()):
        folder, other = tmp_path / f"{len(at_rest)}{max(at_rest, default='')}", tmp_path / "new"
        old.save(folder)
        new.save(other)
        other.rename(folder / NEXT)
        for name in {"nodes.arrow", "edges.arrow"} - at_rest:  # as a writer that is killed
            (folder / NEXT / name).replace(folder / name)
        assert AttributionGraph.load(folder).nodes.equals(new.nodes)
        assert (folder / NEXT).exists()  # loading changes nothing
        old.save(folder)
        assert AttributionGraph.load(folder).nodes.equals(old.nodes)
        assert names(folder) == ["edges.arrow", "nodes.arrow"]


def test_a_first_save_into_an_empty_folder_may_be_cut_short(tmp_path: Path):
    graph, folder = random_graph(0, features=10), tmp_path / "g"
    folder.mkdir()
    (folder / files._temporary(NEXT)).mkdir()
    graph.save(folder)
    assert names(folder) == ["edges.arrow", "nodes.arrow"]


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path):
    (tmp_path / "nodes.arrow").mkdir()
    with pytest.raises(GraphError, match=r"cannot write .*: Is a directory"):
        write_together(tmp_path, {"nodes.arrow": pa.py_buffer(b"new")})


def test_a_link_in_a_strangers_folder_leads_nowhere(tmp_path: Path):
    graph, outside = random_graph(0, features=10), tmp_path / "outside"
    graph.save(tmp_path / "g")
    random_graph(1, features=10).save(outside)
    (tmp_path / "g" / NEXT).symlink_to(outside)
    assert AttributionGraph.load(tmp_path / "g").nodes.equals(graph.nodes)
    with pytest.raises(GraphError, match=r"^cannot write .*/g: "):
        random_graph(2, features=10).save(tmp_path / "g")
    assert names(outside) == ["edges.arrow", "nodes.arrow"]
    assert AttributionGraph.load(tmp_path / "g").nodes.equals(graph.nodes)


@pytest.mark.parametrize("name", ["g", "g.zip"])
def test_writers_and_readers_of_one_place_meet_whole_graphs(tmp_path: Path, name: str):
    place, graphs = tmp_path / name, [random_graph(seed, features=10) for seed in range(3)]
    known = [graph.nodes for graph in graphs]

    def write(graph: AttributionGraph) -> None:
        for _ in range(8):
            graph.save(place)

    def read() -> int:
        return sum(AttributionGraph.load(place).nodes in known for _ in range(20))

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(write, graph) for graph in graphs]
        while not place.exists():
            pass
        readers = [pool.submit(read) for _ in range(2)]
        for done in writers:
            done.result()
        assert [done.result() for done in readers] == [20, 20]
    assert AttributionGraph.load(place).nodes in known
    assert names(tmp_path) == [name]
