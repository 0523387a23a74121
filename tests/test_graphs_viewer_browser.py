"""The viewer in a browser: what a user does, by mouse and by keys, and what it must never do."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tracer
from graphs import AttributionGraph
from graphs.viewer import modules
from graphs.viewer.page import page
from graphs.viewer.payload import Beside, Extras, pack
from tests.browsers import chromium
from tests.graph_samples import dallas, random_graph
from tests.test_graphs_viewer import HOSTILE
from tests.test_tracer_serving import serving
from tracer.serving.served import Served
from tracer.serving.what_if import WhatIf

AXE = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Viewer:
    """A page with the viewer, and all it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> "Viewer":
        self.page.goto(url)
        self.page.wait_for_selector('[data-ready="1"]', timeout=60_000)
        return self

    def settle(self) -> "Viewer":
        """Wait for the frame that shows the last change."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.page.evaluate(f"() => new Promise((done) => setTimeout(() => {frames}, 40))")
        return self

    def state(self, name: str) -> Any:
        return self.page.evaluate(f"() => __viewer.state.{name}")

    def point(self, label: str) -> tuple[float, float]:
        """Where a mark stands in the window."""
        code = """(label) => {
            const { stage, view } = __viewer, [x, y, k] = stage.place;
            const box = stage.element.getBoundingClientRect();
            const meant = (one) => one.label.startsWith(label) || view.graph.id[one.row] === label;
            const mark = view.scene.marks.find(meant);
            return [box.left + x + k * mark.x, box.top + y + k * mark.y]; }"""
        x, y = self.page.evaluate(code, label)
        return x, y

    def click(self, label: str, *modifiers: str) -> "Viewer":
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.click(*self.point(label))
        for key in modifiers:
            self.page.keyboard.up(key)
        return self.settle()

    def press(self, *keys: str) -> "Viewer":
        for key in keys:
            self.page.keyboard.press(key)
            self.settle()
        return self

    def type(self, text: str) -> "Viewer":
        """Type into the field that an act has just opened."""
        self.page.wait_for_function("() => document.activeElement.tagName === 'INPUT'")
        self.page.keyboard.type(text)
        return self.settle()

    def tab(self, name: str) -> str:
        self.page.get_by_role("tab", name=name).click()
        self.settle()
        return self.panel()

    def panel(self) -> str:
        text: str = self.page.locator(".panel").inner_text()
        return text

    def live(self) -> str:
        text: str = self.page.locator(".live").inner_text()
        return text

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()
        self.settle()

    def quiet(self) -> None:
        """Nothing went wrong and nothing was asked of the network."""
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("file://", "blob:"))] == []


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Viewer]]:
    """A page from disk, offline; what it complained of is checked at the end."""
    found = []

    def make(
        graph: AttributionGraph,
        scheme: str = "light",
        size: tuple[int, int] = (1280, 800),
        fragment: str = "",
        **settings: Any,
    ) -> Viewer:
        context = browser.new_context(
            offline=True,
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            accept_downloads=True,
        )
        viewer = Viewer(context.new_page())
        path = graph.to_html(tmp_path / f"{len(found)}.html", **settings)
        found.append((context, viewer))
        return viewer.open(f"{path.as_uri()}{fragment}")

    yield make
    for context, viewer in found:
        viewer.quiet()
        context.close()


def test_it_opens_from_disk_and_shows_what_pruning_keeps(opened: Callable[..., Viewer]):
    graph = dallas()
    small = graph.prune()
    viewer = opened(graph)
    assert (
        viewer.page.locator("h1").inner_text() == f"{graph.metadata['prompt']} → Austin 87%".strip()
    )
    said = viewer.page.locator(".said").inner_text()
    assert said.startswith(
        f"{small.nodes.num_rows} of {graph.nodes.num_rows} nodes and {small.effect.nnz} of"
    )
    scores = viewer.page.locator(".scores").inner_text()
    assert f"replacement {small.scores.replacement:.2f}" in scores
    assert f"{graph.scores.replacement:.2f} as traced" in scores


def test_a_click_lists_inputs_and_outputs_by_share_and_sign(opened: Callable[..., Viewer]):
    graph = dallas()
    viewer = opened(graph).click("say a capital")
    row = graph.nodes["label"].to_pylist().index("say a capital")
    inputs = [one for one in graph.edges.to_pylist() if one["target"] == row]
    for kind, sign in (("excites", 1), ("inhibits", -1)):
        some = sorted(
            (one for one in inputs if one["share"] * sign > 0), key=lambda one: -abs(one["share"])
        )
        side = viewer.page.locator(".inputs .side", has=viewer.page.locator(f"h4.{kind}"))
        shown = side.locator("button.node").evaluate_all(
            "(all) => all.map((one) => one.dataset.id)"
        )
        expected = [graph.nodes["id"][one["source"]].as_py() for one in some]
        assert shown == expected[:12]
    assert viewer.page.locator(".outputs button.node").count() > 0
    assert "Most of what excites it" in viewer.panel()


def test_hovering_is_shared_between_picture_and_lists(opened: Callable[..., Viewer]):
    viewer = opened(dallas()).click("say a capital")
    first = viewer.page.locator(".inputs button.node").first
    first.hover()
    viewer.settle()
    hovered = viewer.page.evaluate("() => __viewer.graph.id[__viewer.stage.hovered]")
    assert hovered == first.get_attribute("data-id")
    viewer.page.mouse.move(*viewer.point(hovered))
    viewer.settle()
    assert viewer.page.locator(".tip").first.inner_text().startswith(first.inner_text()[:8])
    assert viewer.page.locator(".node.hovered").first.get_attribute("data-id") == hovered


def test_everything_goes_by_keyboard(opened: Callable[..., Viewer]):
    viewer = opened(dallas())
    viewer.page.locator(".stage").first.focus()
    viewer.press("ArrowDown")
    assert viewer.state("clicked") is not None
    viewer.press("ArrowDown", "ArrowDown")
    clicked = viewer.state("clicked")
    viewer.press("p")
    assert viewer.state("pins") == [clicked]
    viewer.press("x", "ArrowUp", "x", "g")
    assert len(viewer.state("groups")[0]["members"]) == 2
    viewer.type("the group")
    viewer.press("Enter", "Escape")
    assert viewer.state("groups")[0]["name"] == "the group"
    viewer.press("z", "z")
    assert viewer.state("groups") == []
    viewer.press("Shift+Z")
    assert len(viewer.state("groups")) == 1
    nodes = viewer.state("nodes")
    viewer.press("[", "{", "l", "e", "-", "v", "v", "t")
    assert viewer.state("nodes") < nodes
    assert viewer.state("links") == "input"
    assert viewer.state("errors") is False
    assert viewer.page.locator(".tracer-viewer").get_attribute("data-theme") == "dark"
    viewer.press("?")
    assert "Legend" in viewer.panel()
    viewer.press("/")
    assert viewer.type("Dallas").state("query") == "Dallas"
    viewer.press("Escape", "a")
    assert viewer.state("from") == viewer.state("clicked")


def test_three_nodes_become_a_group_and_come_apart(opened: Callable[..., Viewer]):
    viewer = (
        opened(dallas()).click("say a capital").click("E_37_7", "Shift").click("E_32_2", "Shift")
    )
    assert len(viewer.state("chosen")) == 3
    viewer.press("g")
    viewer.type("Texas")
    viewer.press("Enter")
    [group] = viewer.state("groups")
    assert (group["name"], len(group["members"])) == ("Texas", 3)
    viewer.button("Circuit")
    assert viewer.page.evaluate(
        "() => __viewer.view.scene.marks.map((one) => [one.label, one.count])"
    ) == [["Texas", 3]]
    viewer.button("Ungroup")
    assert viewer.state("groups") == []


def test_an_empty_circuit_offers_the_main_steps(opened: Callable[..., Viewer]):
    viewer = opened(dallas())
    viewer.button("Circuit")
    assert viewer.page.locator(".empty").first.is_visible()
    viewer.button("Pin the main steps")
    assert len(viewer.state("pins")) > 3
    assert viewer.page.locator(".empty").first.is_hidden()
    assert viewer.page.evaluate("() => __viewer.view.scene.links.length") > 2
    viewer.press("z")
    assert viewer.state("pins") == []


def test_a_circuit_and_its_figure_count_its_boxes(opened: Callable[..., Viewer], tmp_path: Path):
    viewer = opened(dallas())
    viewer.click("say a capital").click("E_37_7", "Shift").press("g").type("Texas")
    viewer.press("Enter")
    viewer.button("Circuit")
    said = viewer.page.locator(".said").inner_text()
    assert said.startswith("1 box: 1 group, 2 of ")
    assert "No edges between the boxes yet" in viewer.page.locator(".empty").first.inner_text()
    viewer.button("Pin the main steps")
    assert re.fullmatch(r"\d+ nodes of the strongest paths pinned", viewer.live())
    said = viewer.page.locator(".said").inner_text()
    boxes = viewer.page.evaluate("() => __viewer.view.scene.marks.length")
    assert re.match(rf"{boxes} boxes: {boxes - 1} pins and 1 group, \d+ of ", said)
    viewer.click("Texas")
    with viewer.page.expect_download() as started:
        viewer.button("SVG")
    started.value.save_as(tmp_path / "circuit.svg")
    svg = (tmp_path / "circuit.svg").read_text(encoding="utf-8")
    for words in (f"{boxes} boxes", "likeliest answer", "whole input"):
        assert words in svg
    ring = viewer.page.evaluate("() => __viewer.view.theme.mark")
    assert ring not in svg


def test_the_status_follows_undo_and_redo(opened: Callable[..., Viewer]):
    viewer = opened(dallas()).click("say a capital").press("p", "x", "g")
    viewer.press("Enter", "Escape", "Escape")
    assert viewer.live() == "Nothing selected"
    viewer.press("z")
    assert viewer.live() == "Undone: groups"
    viewer.press("z")
    assert viewer.live() == "Undone: pins"
    viewer.press("z")
    assert viewer.live() == "Nothing to undo"
    viewer.press("Shift+Z")
    assert viewer.live() == "Redone: pins"


def test_bars_of_both_signs_have_one_scale(opened: Callable[..., Viewer]):
    viewer = opened(dallas()).click("say a capital")
    shown = viewer.page.locator(".inputs li").evaluate_all(
        "(all) => all.map((one) => [parseFloat(one.querySelector('.value').textContent"
        ".replace('−', '-')), parseFloat(one.querySelector('.bar').style.width)])"
    )
    most = max(abs(share) for share, _ in shown)
    for share, width in shown:
        assert width == pytest.approx(max(2, 100 * abs(share) / most), abs=2)
    assert any(share < 0 for share, _ in shown)


def test_a_group_is_named_in_the_graph(opened: Callable[..., Viewer], tmp_path: Path):
    graph = dallas()
    row = next(one for one in graph.nodes.to_pylist() if one["label"] == "say a capital")
    groups = [{"name": "Texas things", "members": [row["id"]], "place": None}]
    viewer = opened(graph, beside=Beside(groups=groups))
    viewer.page.mouse.move(*viewer.point("say a capital"))
    tip = viewer.settle().page.locator(".tip").first.inner_text()
    assert tip.endswith("in the group Texas things")
    with viewer.page.expect_download() as started:
        viewer.button("SVG")
    started.value.save_as(tmp_path / "graph.svg")
    assert "Texas things ×1" in (tmp_path / "graph.svg").read_text(encoding="utf-8")


FREE = """() => {
  const { stage, view } = __viewer, [x, y, k] = stage.place, { marks } = view.scene;
  const box = stage.element.getBoundingClientRect();
  for (const { way } of stage.ways())
    for (let t = 0.2; t < 0.8; t += 0.02) {
      const r = 1 - t, f = [r ** 3, 3 * r * r * t, 3 * r * t * t, t ** 3];
      const [u, v] = [0, 1].map((d) => f.reduce((sum, one, at) => sum + one * way[2 * at + d], 0));
      if (marks.every((m) => Math.hypot(Math.max(0, Math.abs(m.x - u) - m.w / 2),
                                        Math.max(0, Math.abs(m.y - v) - m.h / 2)) > 4 / k + 4))
        return [box.left + x + k * u, box.top + y + k * v];
    }
}"""
"""A point of the window on an edge and on no mark."""


@pytest.mark.parametrize("picture", ["Graph", "Circuit"])
def test_an_edge_under_the_pointer_says_what_it_is(opened: Callable[..., Viewer], picture: str):
    viewer = opened(dallas())
    viewer.tab("Groups")
    viewer.button("Pin the main steps")
    viewer.button(picture)
    x, y = viewer.page.evaluate(FREE)
    viewer.page.mouse.move(x, y)
    tip = viewer.settle().page.locator(".tip").first.inner_text()
    assert re.search(r" (excites|inhibits) .*: −?<?[\d.]+% of its input", tip)
    viewer.page.mouse.click(x, y)
    assert viewer.settle().live() == tip
    viewer.page.mouse.move(2, 2)
    assert viewer.settle().page.locator(".tip").first.is_hidden()


def test_paths_and_boxes_stand_out_in_a_circuit(opened: Callable[..., Viewer]):
    viewer = opened(dallas())
    viewer.button("Circuit")
    viewer.button("Pin the main steps")
    over = "() => __viewer.stage.over.toDataURL()"
    plain = viewer.page.evaluate(over)
    viewer.tab("Paths")
    viewer.page.locator(".paths > li .value").first.hover()
    path = viewer.settle().page.evaluate(over)
    viewer.page.mouse.move(2, 2)
    assert viewer.settle().page.evaluate(over) == plain != path
    viewer.click("say a capital")
    veiled = "() => __viewer.stage.over.getContext('2d').getImageData(3, 3, 1, 1).data[3]"
    assert viewer.page.evaluate(veiled) > 100


def test_holding_g_and_clicking_groups_as_circuit_tracer_does(opened: Callable[..., Viewer]):
    viewer = opened(dallas())
    viewer.page.locator(".stage").first.focus()
    viewer.page.keyboard.down("g")
    for label in ("say a capital", "E_37_7"):
        viewer.page.mouse.click(*viewer.point(label))
        viewer.settle()
    viewer.page.keyboard.up("g")
    viewer.settle()
    assert len(viewer.state("groups")[0]["members"]) == 2


def test_a_label_is_given_and_taken_back(opened: Callable[..., Viewer]):
    viewer = opened(dallas()).click("say a capital")
    viewer.press("r")
    viewer.type(HOSTILE[1])
    viewer.press("Enter")
    assert HOSTILE[1] in viewer.page.locator("h2.title").inner_text()
    viewer.button("Undo")
    assert viewer.page.locator("h2.title").inner_text().startswith("say a capital")


def test_sliders_prune_at_once_with_live_scores(opened: Callable[..., Viewer]):
    graph = dallas()
    viewer = opened(graph)
    for nodes, edges in ((0.5, 0.9), (1, 1)):
        for label, value in (("Nodes", nodes), ("Edges", edges)):
            viewer.page.get_by_label(label, exact=True).fill(str(value))
        small = graph.prune(nodes, edges)
        said = viewer.settle().page.locator(".said").inner_text()
        assert said.startswith(
            f"{small.nodes.num_rows} of {graph.nodes.num_rows} nodes and {small.effect.nnz:,} of"
        )
        assert (
            f"completeness {small.scores.completeness:.2f}"
            in viewer.page.locator(".scores").inner_text()
        )


def test_search_finds_labels_tokens_and_examples(opened: Callable[..., Viewer]):
    graph = dallas()
    row = next(one for one in graph.nodes.to_pylist() if one["label"] == "say a capital")
    example = {
        "kind": "top",
        "rank": 0,
        "texts": ["a", " zebra"],
        "activations": [0, 2.5],
        "position": 1,
        "activation": 2.5,
    }
    known = {
        "label": None,
        "active": 3,
        "density": 0.1,
        "mean": 1.0,
        "maximum": 2.5,
        "minimum": None,
    }
    pairs = {"fires_on": [[" zebra", 0.9]], "promoted": [[" x", 2.0]], "suppressed": []}
    histogram = {"bounds": [1, 2, 4], "counts": [2, 1]}
    feature = {
        **known,
        **pairs,
        "histogram": histogram,
        "examples": [example, {**example, "kind": "decile", "rank": 9}],
    }
    viewer = opened(graph, features={f"{row['layer']}/{row['feature']}": feature})
    viewer.tab("Find")
    viewer.page.get_by_role("searchbox").fill("zebra")
    viewer.settle()
    hits = viewer.page.locator(".found button.node")
    assert hits.count() == 1
    hits.first.click()
    text = viewer.settle().panel()
    for part in ("Strongest examples", "Fires on", "zebra", "active at 3 tokens"):
        assert part in text
    assert viewer.page.locator(".histogram rect").count() == 2
    assert viewer.page.locator(".example b").first.inner_text().strip() == "zebra"
    viewer.page.locator(".panel").evaluate("(panel) => panel.scrollTo(0, 0)")
    viewer.button("Examples ↓")
    box = viewer.page.locator("section.feature").bounding_box()
    assert box is not None
    assert 0 < box["y"] < 500
    assert viewer.page.locator(".panel").evaluate("(panel) => panel.scrollTop") > 0


def test_the_heads_of_an_edge_and_what_made_them_look_are_shown(opened: Callable[..., Viewer]):
    graph = dallas()
    ids = graph.nodes["id"].to_pylist()
    row = graph.nodes["label"].to_pylist().index("say a capital")
    inputs = [one for one in graph.edges.to_pylist() if one["target"] == row]
    strongest = max(inputs, key=lambda one: abs(one["share"]))
    edge = f"{ids[strongest['source']]}__{ids[row]}"
    place = graph.nodes["position"][row].as_py()
    heads = {
        "edge": [edge] * 4, "layer": [2] * 4, "head": [3, 3, -1, -3],
        "query": [None, place, None, None], "key": [None, 1, None, None],
        "loading": [1.5, 1.25, 0.25, -0.1],
    }  # fmt: skip
    why = {
        "explanation": [0], "layer": [2], "head": [3], "query": [place], "key": [1],
        "pattern": [0.9], "log_odds": [4.5], "cancellation": [12.0],
    }  # fmt: skip
    sides = {
        "explanation": [0, 0],
        "side": ["q", "k"],
        "node": [ids[row], "E_37_7"],
        "weight": [2.0, 1.0],
    }
    pairs = {"explanation": [0], "node_q": ["1_9_3"], "node_k": ["rest"], "weight": [0.5]}
    named = {
        "heads": heads,
        "attention": why,
        "attention_marginals": sides,
        "attention_pairs": pairs,
    }
    tables = {name: pa.table(columns) for name, columns in named.items()}
    viewer = opened(graph, beside=Beside(tables=tables)).click("say a capital")
    viewer.page.locator(".heads summary").first.click()
    text = viewer.panel()
    for part in ("head 2.3, most where “is” reads “The”: 1.5", "stays in the stream", "heads not"):
        assert part in text
    assert text.count("head 2.3") == 1
    viewer.page.locator(".attention summary").first.click()
    text = viewer.panel()
    for part in ("Head 2.3", "log-odds 4.5", "read the sums with care", "Pairs", "What asks"):
        assert part in text
    assert "feature 9 (L1, at “of”) × the rest" in " ".join(text.split())


def with_stability(graph: AttributionGraph) -> bytes:
    """The graph packed with the column `stability`: 0.25 of the strongest, unknown of others."""
    best = int(np.argmax(graph.edges["influence"].to_numpy()))
    source, target = (graph.edges[end][best].as_py() for end in ("source", "target"))
    nodes = [0.25 if row in (source, target) else None for row in range(graph.nodes.num_rows)]
    edges = [0.5 if row == best else None for row in range(graph.effect.nnz)]
    turned = graph.edges.append_column("stability", pa.array(edges, pa.float64()))
    tables = (
        graph.nodes.append_column("stability", pa.array(nodes, pa.float64())),
        turned.take(list(range(graph.effect.nnz))[::-1]),
    )
    about = graph._described | {"stability": {"over": "5 thresholds"}}
    return pack(*tables, about, Extras())


def test_what_is_known_of_stability_is_said_of_nodes_and_edges(
    opened: Callable[..., Viewer], tmp_path: Path
):
    graph = dallas()
    best = int(np.argmax(graph.edges["influence"].to_numpy()))
    source, target = (
        graph.nodes["id"][graph.edges[end][best].as_py()].as_py() for end in ("source", "target")
    )
    viewer = opened(graph).click(target)
    assert "variants" not in viewer.panel()
    (tmp_path / "stable.html").write_bytes(page([with_stability(graph)], "x"))
    viewer.open((tmp_path / "stable.html").as_uri()).click(target)
    assert "found in 25% of variants (5 thresholds)" in " ".join(viewer.panel().split())
    rows = viewer.page.locator(f'.inputs li:has([data-id="{source}"])')
    assert "in 50% of variants" in rows.first.get_attribute("title")
    assert viewer.page.locator('.inputs li[title*="variants"]').count() == 1
    viewer.page.mouse.move(*viewer.point(target))
    tip = viewer.settle().page.locator(".tip").first.inner_text()
    assert tip.endswith("in 25% of variants")


def test_paths_lead_from_a_to_b(opened: Callable[..., Viewer]):
    graph = dallas()
    viewer = opened(graph)
    text = viewer.tab("Paths")
    assert viewer.page.locator(".paths > li").count() == 12
    assert re.search(r"\d+%", text)
    viewer.click("E_37_7").press("a")
    viewer.click("say a capital").press("b")
    first = (
        viewer.page.locator(".paths > li")
        .first.locator("button.node")
        .evaluate_all("(all) => all.map((one) => one.dataset.id)")
    )
    assert first[0] == "E_37_7" or "No path" in viewer.panel()


def test_two_graphs_stand_side_by_side_with_what_they_share(opened: Callable[..., Viewer]):
    viewer = opened(dallas(), compare=[dallas(1)])
    viewer.tab("Compare")
    viewer.page.get_by_label("Graph to compare with").select_option("1")
    viewer.page.wait_for_function("() => __viewer.otherView")
    viewer.settle()
    text = viewer.panel()
    assert re.search(r"influence \d+(\.\d)?% is shared", text)
    assert "In both:" in text
    assert viewer.page.locator(".stage").nth(1).is_visible()


def test_another_exported_page_can_be_opened_to_compare(
    opened: Callable[..., Viewer], tmp_path: Path
):
    viewer = opened(dallas())
    other = random_graph(2).to_html(tmp_path / "other.html")
    viewer.tab("Compare")
    viewer.page.get_by_label("Another exported page").set_input_files(other)
    viewer.page.wait_for_function("() => __viewer.otherView")
    assert "In both:" in viewer.settle().panel()
    (tmp_path / "no.html").write_text("<p>no</p>")
    viewer.page.get_by_label("Another exported page").set_input_files(tmp_path / "no.html")
    said = viewer.page.locator(".live", has_text="is no page that tracer exported")
    said.wait_for(state="attached")


def test_the_address_holds_the_whole_view(opened: Callable[..., Viewer]):
    viewer = opened(dallas()).click("say a capital").press("p")
    viewer.click("E_37_7", "Shift").press("g", "Escape", "[", "t")
    viewer.page.wait_for_timeout(300)
    before = viewer.page.evaluate("() => ({ ...__viewer.state })")
    viewer.page.reload()
    viewer.page.wait_for_selector('[data-ready="1"]')
    assert viewer.page.evaluate("() => ({ ...__viewer.state })") == before
    assert before["groups"]
    assert before["pins"]


def test_what_is_seen_is_saved_as_svg_png_tables_and_page(
    opened: Callable[..., Viewer], browser: Any, tmp_path: Path
):
    viewer = opened(dallas()).click("say a capital").press("p")
    saved = {}
    for name in ("SVG", "PNG", "CSV", "Edges", "Copy"):
        with viewer.page.expect_download() as started:
            viewer.button(name)
        saved[name] = tmp_path / started.value.suggested_filename
        started.value.save_as(saved[name])
    svg = saved["SVG"].read_text(encoding="utf-8")
    assert svg.startswith("<svg xmlns")
    assert "say a capital" in svg
    assert "<script" not in svg
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG")
    assert saved["CSV"].read_text().startswith("id,kind,layer,position")
    assert saved["Edges"].read_text().startswith("source,target,weight,share")
    context = browser.new_context(offline=True)
    copy = Viewer(context.new_page()).open(saved["Copy"].as_uri())
    assert copy.state("pins") == viewer.state("pins")
    copy.quiet()
    context.close()


def test_hostile_text_does_nothing(opened: Callable[..., Viewer]):
    graph = dallas()
    ids = graph.nodes["id"].to_pylist()
    hostile = graph.relabel(dict(zip(ids, HOSTILE * 40, strict=False)))
    groups = [{"name": HOSTILE[1], "members": ids[:2], "place": None}]
    viewer = opened(
        hostile,
        beside=Beside(groups=groups),
        fragment=f"#query=%22{'%3Cscript%3E'}%22&tab=%22groups%22",
    )
    viewer.page.evaluate("() => { window.alert = () => { window.hit = true; }; }")
    for tab in ("Node", "Find", "Paths", "Groups", "Compare", "What if", "Legend"):
        viewer.tab(tab)
    viewer.button("Circuit")
    assert viewer.page.evaluate(
        "() => [window.hit, document.images.length, "
        "document.querySelectorAll('.tracer-viewer script').length]"
    ) == [None, 0, 0]
    refused = viewer.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'set'; }"
        " catch (error) { return error.name; } }"
    )
    assert refused == "TypeError"
    viewer.errors = [text for text in viewer.errors if "TrustedHTML" not in text]


SPOTS = "() => [...__viewer.view.spots].map(([row, spot]) => [__viewer.graph.id[row], ...spot])"


def test_on_a_phone_names_hide_no_others_and_every_token_stands_on_the_axis(
    opened: Callable[..., Viewer], tmp_path: Path
):
    graph = dallas()
    graph = graph.group("say a capital", graph.nodes["id"].to_pylist()[-4:-2])
    viewer = opened(graph, size=(390, 844))
    spots = viewer.page.evaluate(SPOTS)
    [tag] = viewer.page.evaluate("() => __viewer.view.tags")
    assert len(spots) >= 10
    for at, (_, left, top, width, _) in enumerate(spots):
        assert left >= 0
        assert left + width <= 390
        assert left > tag[0] + tag[2] or left + width < tag[0] or abs(top - tag[1]) >= 15
        for _, other, over, wide, _ in spots[:at]:
            assert left > other + wide or left + width < other or abs(top - over) >= 16
    with viewer.page.expect_download() as started:
        viewer.button("SVG")
    started.value.save_as(tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    written = [unescape(one) for one in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    shown = viewer.page.evaluate("() => __viewer.view.scene.columns.map((one) => one.name)")
    for token in shown:
        assert any(one.rstrip("…") and token.startswith(one.rstrip("…")) for one in written), token
    name, left, top, *_ = spots[-1]
    box = viewer.page.locator(".stage").first.bounding_box()
    assert box is not None
    viewer.page.mouse.click(box["x"] + left + 3, box["y"] + top + 8)
    assert viewer.settle().state("clicked") == name


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", (1280, 800)), ("dark", (1280, 800)), ("light", (390, 844))]
)
def test_axe_finds_nothing_serious(
    opened: Callable[..., Viewer], scheme: str, size: tuple[int, int]
):
    viewer = opened(dallas(), scheme=scheme, size=size, compare=[dallas(1)]).click("say a capital")
    viewer.press("p")
    for tab in ("Node", "Find", "Paths", "Groups", "Compare", "What if", "Legend"):
        viewer.tab(tab)
        found = run_axe(viewer)
        worst = [one for one in found if one["impact"] in ("serious", "critical")]
        assert worst == [], (
            tab,
            [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in worst],
        )


def run_axe(viewer: Viewer) -> list[dict[str, Any]]:
    """What axe-core finds; its script goes in by the debugger, which the policy lets pass."""
    session = viewer.page.context.new_cdp_session(viewer.page)
    session.send("Runtime.evaluate", {"expression": axe_source()})
    session.detach()
    code = "(tags) => axe.run(document, { runOnly: tags }).then((found) => found.violations)"
    result: list[dict[str, Any]] = viewer.page.evaluate(code, AXE)
    return result


def axe_source() -> str:
    package = pytest.importorskip("axe_playwright_python")
    [file] = Path(package.__file__).parent.rglob("axe.min.js")
    return file.read_text(encoding="utf-8")


def test_motion_is_reduced_and_focus_is_seen(opened: Callable[..., Viewer]):
    viewer = opened(dallas())
    viewer.press("Tab")
    outline = viewer.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_served_it_saves_and_reloads_and_asks_the_model(browser: Any, tmp_path: Path):
    model = tracer.ReplacementModel.load()
    folder = tmp_path / "hot.graph"
    graph = tracer.trace(model, "The opposite of hot is")
    graph.save(folder)
    row = max(
        (one for one in graph.nodes.to_pylist() if one["kind"] == "feature"),
        key=lambda one: one["influence"],
    )
    with serving(Served(folder), what_if=WhatIf(lambda: model)) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        viewer = Viewer(context.new_page()).open(server.access.url).click(row["id"]).press("p", "w")
        viewer.button("Ask the model")
        viewer.page.wait_for_function("() => __viewer.measured", timeout=60_000)
        cells = (
            viewer.settle().page.locator(".result tbody tr").first.locator("td").all_inner_texts()
        )
        assert all(re.fullmatch(r"<?[\d.]+%", cell) for cell in cells), cells
        viewer.press("r")
        viewer.type("mine")
        viewer.press("Enter", "x", "g", "Escape")
        viewer.page.locator(".stage").first.focus()
        viewer.press("s")
        viewer.page.wait_for_function(
            "() => document.querySelector('.live').textContent === 'Saved'"
        )
        viewer.page.goto("about:blank")
        viewer.open(server.access.url)
        assert viewer.state("pins") == [row["id"]]
        assert viewer.state("groups")[0]["members"] == [row["id"]]
        assert viewer.errors == []
        assert {url.split("/")[2] for url in viewer.requests if url.startswith("http")} == {
            f"127.0.0.1:{server.access.port}"
        }
        context.close()
    assert "mine" in AttributionGraph.load(folder).nodes["label"].to_pylist()
    assert json.loads((folder / "view.json").read_text())["view"]["pins"] == [row["id"]]


HOST = """<!DOCTYPE html><meta charset="utf-8"><style>%s</style><div id="cell"></div>
<script type="module">
import widget from "./widget.mjs";
const bytes = await (await fetch("./graph")).arrayBuffer();
const values = { graph: new DataView(bytes), view: { pins: ["E_37_7"] } };
window.values = values;
const model = {
  get: (name) => values[name],
  set: (name, value) => { values[name] = value; },
  save_changes() { window.saved = true; },
};
await widget.render({ el: document.getElementById("cell"), model });
window.done = true;
</script>"""


def test_the_notebook_widget_shows_the_graph_and_sends_the_view_back(browser: Any):
    widget = pytest.importorskip("graphs.viewer.widget").GraphWidget(dallas().packed())
    files = {
        "/": ("text/html", (HOST % widget._css).encode()),
        "/graph": ("application/octet-stream", widget.graph),
        "/widget.mjs": ("text/javascript", widget._esm.encode()),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("text/plain", b""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        context = browser.new_context()
        viewer = Viewer(context.new_page())
        viewer.page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        viewer.page.wait_for_function("() => window.done")
        viewer.page.get_by_role("button", name=re.compile("say a capital")).first.click()
        viewer.page.wait_for_timeout(100)
        viewer.page.get_by_role("button", name="Pin", exact=True).click()
        viewer.page.wait_for_timeout(100)
        assert len(viewer.page.evaluate("() => values.view.pins")) == 2
        assert viewer.page.evaluate("() => window.saved")
        assert viewer.errors == []
        context.close()
        server.shutdown()
    assert modules.script("widget") in widget._esm
