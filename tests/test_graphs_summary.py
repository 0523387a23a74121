"""The summary: few boxes and edges, whose shares add up and which hide nothing."""

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import AttributionGraph, GraphError
from graphs.pictures.placement import text_width
from graphs.pictures.routing import behind, clear_route, crossing, hits, sampled, through_gaps
from graphs.pictures.summary import BOXES, EDGES, Box, Link, Summary, summarise
from graphs.pictures.summary_places import APART, LANE, TIGHT, WIDTH, _pull, _spread, placed
from graphs.pictures.summary_source import _edges, _wrapped
from tests.graph_samples import columns, dallas, random_graph, two_paths
from tests.test_graphs_picture import HOSTILE, SVG, elements
from tracer.commands import main

needs_graphviz = pytest.mark.skipif(not shutil.which("neato"), reason="Graphviz is not installed")
EIGHT_CM = 8 / 2.54 * 72


def summary(graph: AttributionGraph, measured: dict[str, float] | None = None) -> Summary:
    return summarise(graph._content, graph._summary_groups, measured)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([5, 40, 150]))
def test_few_boxes_and_edges_whose_ends_add_up_to_the_answer(seed: int, size: int):
    graph = random_graph(seed, features=size).prune()
    found = summary(graph)
    assert len(found.boxes) <= BOXES == 12
    assert len(found.links) <= EDGES == 20
    ends = [box.share or 0 for box in found.boxes if box.kind in ("token", "other", "error")]
    assert sum(ends) + found.lost == pytest.approx(1, abs=1e-9)
    members = [row for box in found.boxes for row in box.members]
    assert len(members) == len(set(members))
    kinds = graph.nodes["kind"].to_pylist()
    assert {row for row, kind in enumerate(kinds) if kind == "error"} <= set(members)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([5, 40, 150]))
def test_no_edge_passes_behind_a_box_and_no_boxes_overlap(seed: int, size: int):
    found = summary(random_graph(seed, features=size).prune())
    places = placed(found)
    own = [{link.source, link.target} for link in found.links]
    assert not behind(places.routes, places.box, own).any()
    left, low, right, high = places.box.T
    overlap = (left[:, None] < right) & (left < right[:, None])
    overlap &= (low[:, None] < high) & (low < high[:, None])
    assert overlap.sum() == len(found.boxes)


def test_the_shares_of_a_graph_worked_out_by_hand():
    """Three quarters by way of Texas; of Dallas everything."""
    found = summary(two_paths())
    names = [(box.kind, box.name, box.share) for box in found.boxes]
    assert names == [
        ("answer", "“Austin” 100%", 1.0),
        ("token", "Dallas", pytest.approx(1.0)),
        ("group", "Texas, TX", None),
    ]
    edges = {(link.source, link.target): link.influence for link in found.links}
    assert edges == {
        (1, 2): pytest.approx(0.75),
        (2, 0): pytest.approx(-0.75),
        (1, 0): pytest.approx(0.25),
    }
    assert found.lost == pytest.approx(0)


def test_a_group_carries_the_sum_of_its_members_and_their_measured_effects():
    graph = dallas().prune()
    rows = graph.nodes.to_pylist()
    texas = [row["id"] for row in rows if "Texas, TX" in (row["label"] or "") and row["layer"] == 0]
    capital = [row["id"] for row in rows if "apital" in (row["label"] or "")]
    grouped = graph.group("Lone Star State", texas).group("capitals", capital)
    found = summary(grouped, dict.fromkeys(capital, 0.75))
    names = [box.name for box in found.boxes]
    assert {"Lone Star State", "capitals"} <= set(names)
    box = found.boxes[names.index("capitals")]
    assert box.measured == pytest.approx(-0.75 * len(capital))
    dot = grouped.to_summary_dot(dict.fromkeys(capital, 0.75))
    assert f'label="−{0.75 * len(capital):.1f}"' in dot
    assert "zeroed one by one" in dot
    assert "badge" not in grouped.to_summary_dot()


def test_features_without_a_label_are_merged_by_position():
    graph = dallas().prune()
    bare = graph.relabel({row["id"]: "" for row in graph.nodes.to_pylist()
                          if row["kind"] == "feature"})  # fmt: skip
    groups = [box for box in summarise(bare._content, ()).boxes if box.kind == "group"]
    assert groups
    assert {box.name for box in groups} == {"no label"}
    assert len({box.at for box in groups}) == len(groups)


def test_a_group_stands_where_most_of_its_influence_passes():
    """Two members, early and late, of influence 3 and 1: a quarter of the way."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5, "text": " Dallas"},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 1, "label": "early"},
        {"kind": "feature", "layer": 1, "position": 4, "feature": 2, "label": "late"},
        {"kind": "logit", "layer": 2, "position": 4, "token": 9, "text": " Austin",
         "probability": 1},
    ]  # fmt: skip
    effect = sparse.csr_array([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 3, 1, 0]])
    graph = AttributionGraph.build(
        columns(rows), effect, {"tokens": [" Dallas", *" a b c d"[1::2]]}
    )
    both = [row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    [group] = [box for box in summary(graph.group("both", both)).boxes if box.kind == "group"]
    assert (group.position, group.depth, group.at) == (pytest.approx(1), pytest.approx(1.25), "")


def size(svg: bytes) -> tuple[float, float]:
    root = ET.fromstring(svg)
    return tuple(float(root.attrib[name].removesuffix("pt")) for name in ("width", "height"))  # type: ignore[return-value]


@needs_graphviz
def test_the_figure_fits_a_column_and_marks_inhibition(tmp_path: Path):
    for graph in (dallas().prune(), random_graph(2, features=100).prune(), two_paths()):
        graph.render_summary(tmp_path / "s.svg")
        content = (tmp_path / "s.svg").read_bytes()
        assert size(content)[0] <= EIGHT_CM
        found = elements(content)
        links = {name: one for name, one in found.items() if name.startswith("link_")}
        assert 0 < len(links) <= 20
        assert len([name for name in found if name.startswith("box_")]) <= 12
        for element in links.values():
            path = next(element.iter(f"{SVG}path"))
            inhibits = "inhibits" in element.attrib["class"].split()
            assert ("stroke-dasharray" in path.attrib) == inhibits


@needs_graphviz
@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_names_are_inert(tmp_path: Path, label: str):
    graph = dallas().prune()
    rows = graph.nodes.to_pylist()
    ids = [row["id"] for row in rows if row["kind"] == "feature"]
    graph = graph.relabel(dict.fromkeys(ids, label))
    if label.strip():
        graph = graph.group(label[:200], ids[:2])
    graph.render_summary(tmp_path / "s.svg")
    content = (tmp_path / "s.svg").read_bytes()
    assert b"<script" not in content
    tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(content).iter()}
    assert tags <= {"svg", "g", "title", "a", "text", "path", "polygon", "ellipse", "polyline"}


@needs_graphviz
def test_odd_graphs_have_a_summary(tmp_path: Path):
    token = {"kind": "embedding", "layer": -1, "position": 0}
    own = {"kind": "logit", "layer": 1, "position": 0, "probability": 2.0, "label": "A - B"}
    for rows in ([], [token], [token, own], [own]):
        effect = np.tril(np.ones((len(rows),) * 2), -1)
        graph = AttributionGraph.build(columns(rows), sparse.csr_array(effect), {})
        graph.render_summary(tmp_path / "s.svg")
    with pytest.raises(GraphError, match="expected a suffix"):
        two_paths().render_summary(tmp_path / "s.gif")


def test_the_same_graph_gives_the_same_text():
    assert dallas().prune().to_summary_dot() == dallas().prune().to_summary_dot()


def test_a_route_takes_the_gap_where_no_curve_is_clear():
    wall = np.array([[-100.0, 40, 60, 60], [64.5, 40, 100, 60]])
    through = through_gaps((0, 0), (0, 100), [crossing(wall, (-110, 110))])
    assert not behind([through], wall, [set()]).any()
    direct = clear_route((0, 0), (0, 100), wall[:0], (-110, 110))
    assert np.ptp(direct[:, 0]) == 0
    around = clear_route((0, 0), (0, 100), np.array([[-10.0, 40, 10, 60]]), (-110, 110))
    assert np.ptp(around[:, 0]) > 10
    assert hits(sampled(np.array([[[0.0, 0], [0, 30], [0, 70], [0, 100]]])), wall)[0] > 5


def test_a_route_may_pass_along_a_boxs_margin_but_not_within_it():
    box, margin = np.array([[10.0, 20, 30, 40]]), 5.0
    across, along = np.linspace(0, 60, 13), np.linspace(10, 50, 9)
    for low, high, sideways in ((5.0, 35.0, False), (15.0, 45.0, True)):
        for at, behind_it in ((low, False), (low + 0.1, True), (high - 0.1, True), (high, False)):
            line = np.stack([np.full(13, at), across], -1)
            if sideways:
                line = np.stack([along, np.full(9, at)], -1)
            assert (hits(line[None], box, margin)[0] > 0) == behind_it


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("room", [TIGHT, (TIGHT + APART) / 2, APART, 3 * APART])
def test_boxes_beside_one_another_fit_where_they_can_and_do_not_touch(count: int, room: float):
    width = np.linspace(1, 2, count)
    width *= (WIDTH - room * (count - 1)) / width.sum()
    for wanted in (np.zeros(count), np.full(count, WIDTH), np.linspace(WIDTH, 0, count)):
        middle = _spread(wanted, width)
        low, high = middle - width / 2, middle + width / 2
        assert low[0] >= -1e-9
        assert high[-1] <= WIDTH + 1e-9
        assert (low[1:] - high[:-1] >= min(room, APART) - 1e-9).all()
    apart = np.arange(count) * WIDTH / count + 20
    np.testing.assert_allclose(_spread(apart, np.full(count, 10.0)), apart)


@pytest.mark.parametrize("count", range(1, 6))
def test_boxes_that_do_not_fit_stick_out_alike_at_both_ends(count: int):
    width = np.linspace(1, 2, count)
    width *= 1.2 * WIDTH / width.sum()
    middle = _spread(np.full(count, WIDTH / 2), width)
    low, high = middle - width / 2, middle + width / 2
    np.testing.assert_allclose(low[1:] - high[:-1], TIGHT)
    over = 0.2 * WIDTH + TIGHT * (count - 1)
    assert (low[0], high[-1]) == pytest.approx((-over / 2, WIDTH + over / 2))


def test_places_stay_within_the_column():
    for seed in range(8):
        places = placed(summary(random_graph(seed, features=120).prune()))
        assert places.box[:, 0].min() >= -LANE
        assert places.box[:, 2].max() <= WIDTH + LANE


@needs_graphviz
def test_the_command_draws_badges_where_a_validation_ran(tmp_path: Path):
    graph = dallas()
    graph.save(tmp_path / "g.graph")
    ids = [row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    table = pa.table({"id": ids, "measured": [0.5] * len(ids)})
    with pa.ipc.new_file(
        str(tmp_path / "g.graph" / "validation_features.arrow"), table.schema
    ) as f:
        f.write_table(table)
    words = ["render", str(tmp_path / "g.graph"), "--summary", "-o"]
    result = CliRunner().invoke(main, [*words, str(tmp_path / "s.dot")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "s.dot").read_text("utf-8")
    assert len(re.findall('"badge ', text)) >= 1
    result = CliRunner().invoke(main, [*words, str(tmp_path / "s.svg"), "--max-edges", "3"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    (tmp_path / "g.graph" / "validation_features.arrow").write_bytes(b"torn")
    result = CliRunner().invoke(main, [*words, str(tmp_path / "s.svg")])
    assert result.exit_code == 2
    assert "is torn or no validation's" in result.stderr
    assert result.stderr.count("\n") == 1


def test_edges_are_drawn_the_weakest_first():
    content, groups = dallas().prune()._content, dallas().prune()._summary_groups
    summary = summarise(content, groups)
    drawn = _edges(summary, placed(summary))
    widths = [float(re.findall(r"penwidth=\"?([\d.]+)", edge)[0]) for edge in drawn]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_a_line_of_text_is_as_wide_as_the_picture_and_no_wider():
    lines = _wrapped("some words of a title " * 12, 8.0)
    assert " ".join(lines) == ("some words of a title " * 12).strip()
    assert all(0.5 * WIDTH < text_width(line, 8.0) <= WIDTH for line in lines[:-1])


def test_a_box_is_pulled_to_its_neighbours():
    boxes = [Box("group", name, ()) for name in "abc"]
    links = [Link(1, 0, 4.0), Link(0, 2, -1.0)]
    x = np.array([50.0, 100.0, 220.0])
    found = _pull(0, Summary(boxes, links, 0.0), x)
    middle = 0.02 * (0.5 * WIDTH + 50.0)
    assert found == pytest.approx((middle + 2 * 100.0 + 1 * 220.0) / (0.04 + 3))
