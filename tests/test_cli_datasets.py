"""One graph of a dataset, asked for on the command line."""

import gzip
import json
from pathlib import Path

import pytest

from graphs import AttributionGraph
from graphs.collections.dataset import GraphDataset
from tests.test_cli import refused, succeed
from tests.test_graphs_aggregate import FAILED, written
from tests.test_graphs_viewer import packed_in


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> GraphDataset:
    return written(tmp_path_factory.mktemp("many") / "graphs")


@pytest.fixture
def one(dataset: GraphDataset, tmp_path: Path) -> Path:
    """The graph of prompt 4 as a folder of its own."""
    place = tmp_path / "one.graph"
    dataset.graph(4).save(place)
    return place


def test_show_lists_prompts_and_why_some_failed(dataset: GraphDataset):
    text = succeed("show", str(dataset.path))
    assert text.startswith("7 of 7 prompts are done, 7 listed\n")
    assert f"\n{FAILED}\tprompt {FAILED}\tfailed: too long\t\t\t\n" in text
    assert f'\n4\tprompt 4\t"" 87%\t{dataset.graph(4).scores.replacement:.3f}\t' in text
    assert succeed("show", str(dataset.path), "--prompts", "2").count("\tprompt ") == 2


def test_show_says_of_one_what_it_says_of_the_graph_alone(dataset: GraphDataset, one: Path):
    assert succeed("show", str(dataset.path), "--prompt", "4") == succeed("show", str(one))


@pytest.mark.parametrize("name", ["a.dot", "a.json", "a.graphml"])
def test_pictures_and_exports_of_one_are_those_of_the_graph_alone(
    dataset: GraphDataset, one: Path, tmp_path: Path, name: str
):
    command = "render" if name.endswith("dot") else "export"
    found = []
    for number, given in enumerate(([str(dataset.path), "--prompt", "4"], [str(one)])):
        place = tmp_path / str(number) / name
        place.parent.mkdir()
        succeed(command, *given, "-o", str(place))
        found.append(place.read_bytes())
    assert found[0] == found[1]


def test_one_is_taken_out_as_a_graph(dataset: GraphDataset, tmp_path: Path):
    place = tmp_path / "out.graph"
    shares = ("--nodes", "1", "--edges", "1")
    succeed("prune", str(dataset.path), "--prompt", "4", *shares, "-o", str(place))
    taken = AttributionGraph.load(place)
    assert taken.nodes.equals(dataset.graph(4).nodes)
    assert taken.edges.equals(dataset.graph(4).edges)


def test_a_page_is_called_as_the_folder_and_of_a_dataset_as_the_prompt_too(
    dataset: GraphDataset, one: Path, tmp_path: Path
):
    for given, name in (
        ([str(dataset.path), "--prompt", "4"], f"{dataset.path.name}, prompt 4"),
        ([str(one)], one.name),
    ):
        succeed("export", *given, "-o", str(tmp_path / "a.html"))
        packed = gzip.decompress(packed_in(tmp_path / "a.html")[0])
        header = json.loads(packed[4 : 4 + int.from_bytes(packed[:4], "little")])
        assert header["name"] == name


def test_a_dataset_is_no_graph_and_a_graph_no_dataset(dataset: GraphDataset, one: Path):
    for command in (("validate",), ("render", "-o", "x.dot"), ("compare", str(one))):
        line = refused(*command, str(dataset.path))
        assert f"{dataset.path} is a dataset of graphs: take one out, as in tracer prune" in line
    assert "is no dataset of graphs" in refused("show", str(one), "--prompt", "1")
    assert f"prompt {FAILED} failed: too long" in refused(
        "show", str(dataset.path), "--prompt", str(FAILED)
    )
    assert "prompt 9 is not in 0..6" in refused("show", str(dataset.path), "--prompt", "9")


def test_heads_of_one_are_asked_of_the_graph_taken_out(dataset: GraphDataset, tmp_path: Path):
    line = refused(
        "render", str(dataset.path), "--prompt", "4", "--heads", "-o", str(tmp_path / "x.dot")
    )
    assert "take the graph out" in line
    assert "--prompt 4" in line
