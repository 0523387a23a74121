"""`--keep-attention` on the command line."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from graphs import AttributionGraph, steering
from tests.test_cli import IDS, SMALL, run


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two graphs of one prompt: `plain` and `kept`."""
    folder = tmp_path_factory.mktemp("graphs")
    assert run("trace", *IDS, "-o", str(folder / "plain")).exit_code == 0
    assert run("trace", *IDS, "--keep-attention", "-o", str(folder / "kept")).exit_code == 0
    return folder


def test_a_graph_traced_so_is_pruned_drawn_and_exported_so(traced: Path, tmp_path: Path):
    graph = AttributionGraph.load(traced / "kept")
    assert graph.keeps_attention
    expected = graph.prune(keep_attention=True)
    said = run("prune", str(traced / "kept"), "-o", str(tmp_path / "small"))
    assert "what steers attention kept: " in said.stderr
    assert AttributionGraph.load(tmp_path / "small").nodes.equals(expected.nodes)
    run("render", str(traced / "kept"), "-o", str(tmp_path / "a.dot"))
    assert (tmp_path / "a.dot").read_text(encoding="utf-8") == expected.to_dot()
    run("export", str(traced / "kept"), "--edges-alone", "-o", str(tmp_path / "a.graphml"))
    plain = AttributionGraph.load(traced / "plain").prune()
    plain.export(tmp_path / "b.graphml")
    ours, theirs = ((tmp_path / f"{name}.graphml").read_text(encoding="utf-8") for name in "ab")
    assert ours.count("<node") == theirs.count("<node")
    shown = run("show", str(tmp_path / "small")).stdout
    assert "keep_attention=True" in shown
    assert "what steers attention kept: " in shown


def test_prune_finds_what_steers_a_graph_that_was_traced_without(traced: Path, tmp_path: Path):
    before = (traced / "plain" / "nodes.arrow").read_bytes()
    to = str(tmp_path / "small")
    assert run("prune", str(traced / "plain"), "-o", to, "--keep-attention", *SMALL).exit_code == 0
    kept = AttributionGraph.load(traced / "kept").prune()
    found = AttributionGraph.load(tmp_path / "small")
    assert found.nodes.equals(kept.nodes)
    assert found.metadata["pruned"] == kept.metadata["pruned"]
    assert (traced / "plain" / "nodes.arrow").read_bytes() == before


@pytest.mark.parametrize("command", [["render", "a.dot"], ["export", "a.graphml"]])
def test_what_needs_a_model_first_says_so_in_one_line(
    traced: Path, tmp_path: Path, command: list[str]
):
    name, file = command
    result = run(name, str(traced / "plain"), "--keep-attention", "-o", str(tmp_path / file))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "no table of what steers attention; trace it with keep_attention" in result.stderr
    assert not (tmp_path / file).exists()


def test_a_page_opens_with_what_steers_or_without(traced: Path, tmp_path: Path):
    def opens(folder: str, *options: str) -> tuple[bool, bool]:
        page = tmp_path / "a.html"
        result = run("export", str(traced / folder), *options, "-o", str(page))
        assert result.exit_code == 0, result.stderr
        found = re.search(r'class="tracer-graph">([^<]*)<', page.read_text("utf-8"))
        assert found is not None
        packed = gzip.decompress(base64.b64decode(found[1]))
        header = json.loads(packed[4 : 4 + int.from_bytes(packed[:4], "little")])
        known = any(one["name"] == "steerSize" for one in header["columns"])
        return header["view"].get("steered", header["opening"]["steered"]), known

    assert opens("kept") == (True, True)
    assert opens("kept", "--edges-alone") == (False, True)
    assert opens("plain") == (False, False)
    result = run(
        "export", str(traced / "plain"), "--keep-attention", "-o", str(tmp_path / "b.html")
    )
    assert result.exit_code == 2
    assert "no table of what steers attention" in result.stderr
    assert not (tmp_path / "b.html").exists()


def test_a_torn_table_is_refused_by_name(traced: Path, tmp_path: Path):
    shutil.copytree(traced / "kept", tmp_path / "torn")
    (tmp_path / "torn" / f"{steering.NAME}.arrow").write_bytes(b"nothing")
    result = run("show", str(tmp_path / "torn"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "steering.arrow is of another graph" in result.stderr
