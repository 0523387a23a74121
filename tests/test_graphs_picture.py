"""The picture: every node and edge is in it, nothing in it is markup, and it reads."""

import re
import shutil
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from graphs import AttributionGraph, GraphError
from graphs.edges import share_matrix
from graphs.pictures import placement
from graphs.pictures.routing import BENDS, behind
from graphs.pictures.scene import Style, _answer, compose
from tests.graph_samples import columns, dallas, random_graph, two_paths

SVG = "{http://www.w3.org/2000/svg}"
TITLE = "{http://www.w3.org/1999/xlink}title"
needs_graphviz = pytest.mark.skipif(not shutil.which("neato"), reason="Graphviz is not installed")

HOSTILE = [
    "<bos>",
    "</svg><script>alert(1)</script>",
    "--><!-- ]]> <![CDATA[",
    'a "quoted" \\ back\\nslash',
    "line\nbreak\r\ttab\x00\x1b[31m",
    "&lt;&amp;&#60; <b>bold</b>",
    "\u202eright to left\u2066 שלום مرحبا",
    "emoji 🤠👩\u200d🚀 日本語",
    "a:b;c|d{e}[f] -> g",
    "\\N \\G \\l \\E %s ${x}",
    "x" * 500,
    "",
    " ",
]


def elements(svg: bytes) -> dict[str, ET.Element]:
    """Every element with an id; the ids are unique."""
    root = ET.fromstring(svg)
    found = [element for element in root.iter() if "id" in element.attrib]
    assert len({element.attrib["id"] for element in found}) == len(found)
    return {element.attrib["id"]: element for element in found}


def drawn(
    graph: AttributionGraph, path: Path, **options: int | bool | None
) -> dict[str, ET.Element]:
    graph.render(path / "g.svg", **options)
    return elements((path / "g.svg").read_bytes())


def words(element: ET.Element) -> str:
    return " ".join("".join(text.itertext()) for text in element.iter(f"{SVG}text"))


def tooltip(element: ET.Element) -> str:
    return next(a.attrib[TITLE] for a in element.iter(f"{SVG}a"))


@needs_graphviz
def test_every_node_and_edge_can_be_found(tmp_path: Path):
    graph = dallas().prune()
    found = drawn(graph, tmp_path)
    ids = graph.nodes["id"].to_pylist()
    kinds = graph.nodes["kind"].to_pylist()
    assert {name for name in found if name.startswith("node_")} == {f"node_{name}" for name in ids}
    for name, kind in zip(ids, kinds, strict=True):
        assert kind in found[f"node_{name}"].attrib["class"].split()
    edges = {
        f"edge_{ids[edge['source']]}__{ids[edge['target']]}": edge
        for edge in graph.edges.to_pylist()
    }
    assert {name for name in found if name.startswith("edge_")} == set(edges)
    for name, edge in edges.items():
        sign = "excites" if edge["weight"] > 0 else "inhibits"
        assert sign in found[name].attrib["class"].split()


@needs_graphviz
def test_a_newcomer_finds_dallas_texas_and_austin(tmp_path: Path):
    found = drawn(dallas().prune(), tmp_path)
    marked = [
        words(element)
        for name, element in found.items()
        if name.startswith("node_") and 'fill="#ffe3b3"' in ET.tostring(element).decode()
    ]
    assert set(marked) == {"Dallas", "Texas, TX, Lone", "Austin 87%"}
    title = words(found["title_0"]).replace("\xa0", " ")
    assert title == "The capital of the state containing Dallas is  →  “Austin” 87%"


@needs_graphviz
def test_the_title_says_what_was_kept_and_the_scores(tmp_path: Path):
    graph = dallas()
    small = graph.prune()
    facts = words(drawn(small, tmp_path, edges=20)["title_1"]).replace("\xa0", " ")
    assert f"{small.nodes.num_rows} of {graph.nodes.num_rows} nodes" in facts
    assert f"{small.effect.nnz} of {graph.effect.nnz:,} edges" in facts
    assert "thresholds 0.8 and 0.98" in facts
    assert f"20 strongest edges drawn, {small.effect.nnz - 20} hidden" in facts
    assert f"replacement {small.scores.replacement:.2f}" in facts
    assert f"completeness {small.scores.completeness:.2f}" in facts
    assert "unpruned" in words(drawn(graph, tmp_path)["title_1"])


@needs_graphviz
def test_edges_are_painted_by_their_sources_strongest_last(tmp_path: Path):
    graph = dallas().prune()
    found = drawn(graph, tmp_path, edges=30)
    widths: dict[str, list[float]] = {}
    for name, element in found.items():
        if name.startswith("edge_"):
            stroke = next(element.iter(f"{SVG}path")).attrib.get("stroke-width", 1)
            widths.setdefault(name.partition("__")[0], []).append(float(stroke))
    assert sum(map(len, widths.values())) == 30
    strongest = [max(group) for group in widths.values()]
    assert strongest == sorted(strongest)
    assert strongest[-1] == pytest.approx(4.5)


@needs_graphviz
def test_inhibiting_edges_are_dashed_and_errors_are_diamonds(tmp_path: Path):
    graph = random_graph(0)
    found = drawn(graph, tmp_path, edges=None)
    for name, element in found.items():
        path = next(element.iter(f"{SVG}path"), None)
        kinds = element.attrib.get("class", "").split()
        if path is not None and name.startswith("edge_"):
            assert ("stroke-dasharray" in path.attrib) == ("inhibits" in kinds)
        if "error" in kinds:
            corners = next(element.iter(f"{SVG}polygon")).attrib["points"].split()
            assert len(corners) == 5


@needs_graphviz
def test_only_the_most_influential_features_and_the_main_path_are_labelled(tmp_path: Path):
    graph = random_graph(0)
    found = drawn(graph, tmp_path, labels=5)
    feature = [row for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    top = sorted(feature, key=lambda row: -row["influence"])[:5]
    boxes = {
        n for n, e in found.items() if {"feature", "labelled"} <= set(e.get("class", "").split())
    }
    on_the_path = {n for n in boxes if 'fill="#ffe3b3"' in ET.tostring(found[n]).decode()}
    assert len(on_the_path) < 5
    assert boxes - on_the_path == {f"node_{row['id']}" for row in top} - on_the_path


@needs_graphviz
@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_labels_are_inert(tmp_path: Path, label: str):
    graph = dallas()
    rows = graph.nodes.to_pylist()
    given = {name: [row[name] for row in rows] for name in graph.nodes.column_names}
    given["label"] = [label if row["kind"] == "feature" else row["label"] for row in rows]
    given["text"] = [None if text is None else label for text in given["text"]]
    metadata = graph.metadata | {"prompt": label, "tokens": [label] * 9}
    graph = AttributionGraph.build(given, graph.effect, metadata).prune()
    graph.render(tmp_path / "g.svg")
    content = (tmp_path / "g.svg").read_bytes()
    found = elements(content)
    assert b"<script" not in content
    assert not {element.tag.removeprefix(SVG) for element in found.values()} - {"g", "svg"}
    tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(content).iter()}
    assert tags <= {"svg", "g", "title", "a", "text", "path", "polygon", "ellipse", "polyline"}
    attributes = {key for element in ET.fromstring(content).iter() for key in element.attrib}
    assert not [key for key in attributes if key.startswith("on") or "href" in key]
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", content.decode())


@needs_graphviz
def test_a_token_in_angle_brackets_reads_as_it_is(tmp_path: Path):
    found = drawn(dallas().prune(), tmp_path)
    assert words(found["node_E_30_0"]) == "<bos>"
    assert tooltip(found["node_E_30_0"]).startswith("<bos>\nembedding E_30_0")


@needs_graphviz
def test_a_long_label_is_cut_in_the_box_and_whole_in_the_tooltip(tmp_path: Path):
    label = "supercalifragilistic, expialidocious, dociousaliexpi, fragilistic · even though"
    name = next(row["id"] for row in dallas().nodes.to_pylist() if row["label"] == "say a capital")
    found = drawn(dallas().prune().relabel({name: label}), tmp_path)
    box = found[f"node_{name}"]
    assert all(len(text.text or "") <= 18 for text in box.iter(f"{SVG}text"))
    assert "…" in words(box)
    assert tooltip(box).startswith(label)


@pytest.mark.parametrize(
    ("label", "box"),
    [
        ("Texas, TX, Lone · Dallas", "Texas, TX, Lone"),
        ("Texas, TX, Lone · Paris", r"Texas, TX, Lone\non Paris"),
        ("·, a · · b · ·", r"·, a · · b\non ·"),
        ("· Paris", r"feature 70\non Paris"),
        ("· Dallas", "feature 70"),
        ("say a capital", "say a capital"),
        ("a city that lies in the state of Texas", r"a city that lies\nin the state of T…"),
    ],
)
def test_a_box_says_what_its_column_does_not(label: str, box: str):
    graph = dallas()
    name = next(
        r["id"] for r in graph.nodes.to_pylist() if r["label"] == "Texas, TX, Lone · Dallas"
    )
    dot = graph.relabel({name: label}).to_dot(labels=100)
    line = next(line for line in dot.splitlines() if f'id="node_{name}"' in line)
    assert f'label="{box}"' in line


def route(dot: str, name: str) -> list[tuple[float, float]]:
    """The four points of an edge's curve."""
    line = next(line for line in dot.splitlines() if f'id="{name}"' in line)
    points = re.search(r'pos="([^"]*)"', line)
    assert points
    return [tuple(map(float, point.split(","))) for point in points[1].split()]  # type: ignore[misc]


def test_an_edge_bends_around_what_it_would_run_behind():
    dot = two_paths().to_dot()
    straight = route(dot, "edge_embedding0__feature1")
    assert len({x for x, _ in straight}) == 1
    around = route(dot, "edge_embedding0__logit2")
    assert around[1][0] - straight[0][0] > 30
    assert (
        len({x for x, _ in route(two_paths().to_dot(curved=False), "edge_embedding0__logit2")}) == 1
    )


def test_tokens_after_the_last_node_are_not_drawn():
    graph = two_paths()
    nodes = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
    longer = AttributionGraph.build(nodes, graph.effect, {"tokens": [" Dallas", "x", "y"]})
    assert "column 0" in longer.to_dot()
    assert "column 1" not in longer.to_dot()


def test_positions_are_ours_and_cells_do_not_overlap():
    dot = random_graph(1, features=150).to_dot(edges=10)
    boxes = []
    for line in dot.splitlines():
        if 'id="node_' in line:
            x, y = map(float, re.search(r'pos="([-\d.]+),([-\d.]+)!"', line).groups())  # type: ignore[union-attr]
            w, h = (72 * float(re.search(rf'{k}="([\d.]+)"', line)[1]) for k in ("width", "height"))  # type: ignore[index]
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    low_x, low_y, high_x, high_y = np.array(boxes).T
    across = (low_x[:, None] < high_x) & (low_x < high_x[:, None])
    upward = (low_y[:, None] < high_y) & (low_y < high_y[:, None])
    assert (across & upward).sum() == len(boxes)  # every glyph overlaps itself only


def test_dot_needs_no_graphviz_and_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = dallas().prune()
    assert graph.render(tmp_path / "a.dot") == tmp_path / "a.dot"
    graph.render(tmp_path / "b.dot")
    assert (tmp_path / "a.dot").read_bytes() == (tmp_path / "b.dot").read_bytes()


@needs_graphviz
def test_the_picture_is_the_same_every_time(tmp_path: Path):
    for name in "ab":
        dallas().prune().render(tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_graphviz_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = two_paths()
    with pytest.raises(GraphError, match=r"apt install graphviz.*brew install graphviz"):
        graph.render(tmp_path / "g.svg")
    assert list(tmp_path.iterdir()) == []
    assert graph._repr_svg_() is None
    assert "apt install graphviz" in (graph._repr_html_() or "")
    assert "“Dallas” → “Austin” 100%" in (graph._repr_html_() or "")


@needs_graphviz
def test_a_notebook_shows_the_pruned_picture(tmp_path: Path):
    graph = dallas()
    assert graph._repr_html_() is None
    found = elements((graph._repr_svg_() or "").encode())
    assert {f"node_{name}" for name in graph.prune().nodes["id"].to_pylist()} <= set(found)
    assert "node_0_-1_1" not in found


@needs_graphviz
@pytest.mark.parametrize(("suffix", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_bitmaps_and_pdf(tmp_path: Path, suffix: str, head: bytes):
    path = dallas().prune().render(tmp_path / f"g.{suffix}")
    assert path.read_bytes().startswith(head)


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(GraphError, match=r"expected a suffix of \.svg, \.png, \.pdf, \.dot"):
        two_paths().render(tmp_path / "g.gif")
    with pytest.raises(GraphError, match="cannot write"):
        two_paths().render(tmp_path / "missing" / "g.dot")


@needs_graphviz
def test_odd_graphs_can_be_drawn(tmp_path: Path):
    """No nodes; a token alone; no logits; a target of the user's own; many tokens and layers."""
    token = {"kind": "embedding", "layer": -1, "position": 0}
    feature = {"kind": "feature", "layer": 0, "position": 0, "feature": 5}
    own = {
        "kind": "logit",
        "layer": 1,
        "position": 0,
        "probability": 2.0,
        "label": "Austin - Paris",
    }
    for rows in ([], [token], [token, feature], [token, feature, own], [own]):
        size = len(rows)
        effect = (
            np.tril(np.ones((size, size)), -1) if rows[:1] == [token] else np.zeros((size, size))
        )
        graph = AttributionGraph.build(columns(rows), sparse.csr_array(effect), {})
        assert len([n for n in drawn(graph, tmp_path) if n.startswith("node_")]) == size
    large = random_graph(0, tokens=[f" w{at}" for at in range(80)], layers=30, features=300)
    found = drawn(large, tmp_path, edges=100, curved=False)
    assert len([name for name in found if name.startswith("edge_")]) == 100


@pytest.mark.parametrize("seed", range(6))
def test_no_edge_passes_behind_a_box_it_does_not_end_at(seed: int):
    crossed = 0
    for graph in (
        random_graph(seed, features=40).prune(),
        random_graph(seed, features=150).prune(),
    ):
        scene = compose(graph._content, Style())
        streets = placement.Streets.of(scene.grid, scene.places)
        place = {int(row): at for at, row in enumerate(np.flatnonzero(streets.boxed))}
        found = placement.routes(scene.grid, scene.places, curved=True)
        ends = zip(*(scene.grid.links[side].tolist() for side in (0, 1)), strict=True)
        own = [{place[end] for end in pair if end in place} for pair in ends]
        assert found
        assert not behind(found, streets.box[streets.boxed], own).any()
        straight = placement.routes(scene.grid, scene.places, curved=False)
        crossed += int(behind(straight, streets.box[streets.boxed], own).sum())
    assert crossed > 0 or seed == 2  # whose few edges are clear as they are


def test_edges_into_the_last_column_run_together():
    scene = compose(dallas().prune()._content, Style())
    source, target, _ = scene.grid.links
    last = scene.grid.shape[1] - 1
    entered: dict[tuple[float, float], int] = {}
    routes = placement.routes(scene.grid, scene.places, curved=True)
    for route, low, high in zip(routes, source, target, strict=True):
        if scene.grid.column[low] < last == scene.grid.column[high] and len(route) == 7:
            corner = tuple(route[3].round(3).tolist())
            entered[corner] = entered.get(corner, 0) + 1
    assert max(entered.values()) > 2
    assert len({x for x, _ in entered}) == 1


def test_the_gold_path_skips_no_step_that_carries_more():
    checked = 0
    for seed in range(8):
        graph = random_graph(seed, features=60).prune()
        scene = compose(graph._content, Style())
        share = share_matrix(graph.edges, graph.nodes.num_rows).toarray()
        total = np.linalg.inv(np.eye(len(share)) - share)
        path = sorted(scene.marked)
        for low, high in pairwise(path):
            by_way = total[high] * total[:, low]
            by_way[[low, high]] = 0
            assert by_way.max() <= share[high, low] * (1 + 1e-6)
            checked += 1
    assert checked > 10


def test_a_skipped_step_joins_the_gold_path():
    """Alone the edge carries more than any one path by way of Texas; all of them carry more."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 1},
        *({"kind": "feature", "layer": 1, "position": 0, "feature": at} for at in range(4)),
        {"kind": "logit", "layer": 2, "position": 0, "token": 9, "probability": 1},
    ]
    effect = np.zeros((7, 7))
    effect[1, 0] = effect[2:6, 1] = 1
    effect[6, 2:6], effect[6, 1], effect[6, 0] = 0.14, 0.2, 0.24
    graph = AttributionGraph.build(columns(rows), sparse.csr_array(effect), {"tokens": ["a"]})
    assert compose(graph._content, Style()).marked == {0, 1, 6}


def test_the_answer_is_the_likeliest_target_and_of_equals_the_first():
    def answer(*chances: float | None) -> int | None:
        rows = [{"kind": "embedding", "probability": None}]
        return _answer(rows + [{"kind": "logit", "probability": chance} for chance in chances])

    assert answer(0.2, 0.7, 0.1) == 2
    assert answer(None, 0.3) == 2  # a direction has no probability
    assert answer(0.3, 0.3) == 1
    assert answer(None, None) == 1
    assert answer() is None


def test_the_least_bent_curve_is_tried_first_and_turning_ones_bend_less():
    size = np.abs(BENDS).sum(1) + 1.5 * np.abs(BENDS[:, 0] - BENDS[:, 1])
    assert BENDS[0].tolist() == [0, 0]
    assert (np.diff(size) >= 0).all()
    assert len(np.unique(BENDS, axis=0)) == len(BENDS)
    assert {tuple(pair) for pair in (-BENDS).tolist()} == {tuple(pair) for pair in BENDS.tolist()}
    turning = BENDS[BENDS.prod(1) < 0]
    assert np.abs(BENDS).max() == 216
    assert np.abs(turning).max() == 74
