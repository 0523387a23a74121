"""The page that shows a graph: what it holds, that it is inert, and its pure modules in node."""

import base64
import dataclasses
import gzip
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from graphs import AttributionGraph, GraphError, words
from graphs.attention_tables import COLUMNS
from graphs.exchange.arrow import VIEW
from graphs.exchange.tables import edge_list_json
from graphs.viewer import modules
from graphs.viewer.beside import read_beside
from graphs.viewer.page import page, policy
from graphs.viewer.payload import Beside
from graphs.viewer.thresholds import strongest_edges
from tests.graph_samples import columns, dallas, random_graph
from tests.test_graphs_steering import known, random_steering

ROOT = Path(__file__).parents[1]
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "\u202egnp.exe\x1b[2J",
    "${alert(1)}`",
]


def capped(graph: AttributionGraph) -> AttributionGraph:
    """The same as if a cap had left as much out of every row as is in it."""
    rows = graph.nodes.to_pylist()
    columns = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
    columns["left_out_absolute"] = [row["input_absolute"] or None for row in rows]
    return AttributionGraph.build(columns, graph.effect, graph.metadata)


def case(graph: AttributionGraph) -> dict[str, Any]:
    """What the modules are to find in a graph."""
    pruned = []
    shares = ((0.8, 0.98), (0.5, 0.9), (0.95, 1.0), (1.0, 0.8), (1.0, 1.0))
    steered = (False, True) if "steering" in graph.tables else (False,)
    for (nodes, edges), both in itertools.product(shares, steered):
        small = graph.prune(nodes, edges, both)
        among = small.scores.among_nodes
        pruned.append(
            {
                "nodes": nodes,
                "edges": edges,
                "steered": both,
                "kept": small.nodes["id"].to_pylist(),
                "links": small.effect.nnz,
                "replacement": small.scores.replacement,
                "completeness": small.scores.completeness,
                "among": [among.replacement, among.completeness],
            }
        )
    columns = {name: graph.edges[name].to_pylist() for name in graph.edges.column_names}
    paths = [{"nodes": one.nodes, "strength": one.strength} for one in graph.paths(6)]
    packed = base64.b64encode(graph.packed()).decode()
    return columns | {"packed": packed, "pruned": pruned, "paths": paths}


def test_the_pure_modules_agree_with_python_and_pass_their_own_tests(tmp_path: Path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the tests of the viewer's modules were not run")
    texts = [*HOSTILE, "a\tb", " Dallas", "e\u0301", "\ud800", "ok\u200d", "\u200bx", "\U000e0101"]
    shares = [0.9234, 0.0234, 0.0004, 0, 1, 0.0995]
    steered = [
        known(graph, random_steering(graph, 4, 0.1)) for graph in (dallas(4), random_graph(6))
    ]
    assert len({one["links"] for one in case(steered[0])["pruned"]}) > 5
    samples = [
        *steered,
        dallas(),
        random_graph(3),
        capped(dallas(1)),
        random_graph(5, dtype=np.float64),
    ]
    cases = {
        "graphs": [case(graph) for graph in [*samples, dallas(2).prune(0.9, 0.99)]],
        "visible": [[text, words.visible(text)] for text in texts],
        "token": [[text, words.token(text)] for text in (" Dallas", "  ", "\n", "")],
        "percent": [[share, words.percent(share)] for share in shares],
    }
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run(
        [node, "--test", str(ROOT / "tests" / "viewer.test.mjs")],
        env={"TRACER_VIEWER_CASES": str(file), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def policy_of(content: str) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', content)
    assert found is not None
    return found[1]


def hash_of(text: str) -> str:
    return base64.b64encode(sha256(text.encode()).digest()).decode()


def test_the_policy_allows_the_one_script_and_the_one_style_and_no_more():
    content = page([dallas().packed()], "x").decode()
    code, style = re.findall(r"<script>(.*?)</script>|<style>(.*?)</style>", content, re.DOTALL)[
        ::-1
    ]
    directives = dict(part.split(" ", 1) for part in policy_of(content).split("; "))
    assert directives == {
        "default-src": "'none'",
        "script-src": f"'sha256-{hash_of(code[0])}'",
        "style-src": f"'sha256-{hash_of(style[1])}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert policy(connect=True) == f"{policy()}; connect-src 'self'"


def sources() -> list[Path]:
    return sorted(modules.FOLDER.glob("*.mjs"))


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.name)
def test_no_module_makes_markup_or_code_of_text_or_asks_the_network(file: Path):
    text = file.read_text(encoding="utf-8")
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|https?://(?!www\.w3\.org/)"
    assert re.findall(banned, text) == []
    assert re.findall(r"\bon[a-z]+\s*=\s*[\"'`]", text) == []
    assert ("fetch(" in text) == (file.name == "page.mjs")
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.name)
def test_no_text_of_a_module_runs_over_lines(file: Path):
    """Joining takes the space off the beginnings of lines."""
    for line in file.read_text(encoding="utf-8").splitlines():
        assert line.count("`") % 2 == 0, line
        assert not re.search(r"[^:/]//(?! )", line.replace("https://", "")) or "`" in line
        assert not re.search(r"\S // ", line), line


def test_joined_modules_are_one_script_of_at_most_150_kilobytes():
    for entry in ("page", "widget"):
        code = modules.script(entry)
        assert len((code + modules.style()).encode()) <= 150_000
        assert not re.search(r"</script|<!--", code.replace("<\\/script", ""))
        assert not re.search(r"^(import|export)\b", code, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "short"),
    [
        ('if (a > 0) return { a: "b  c, d" };', 'if(a>0)return{a:"b  c, d"};'),
        ("const a = b - -c + d;", "let a=b - -c + d;"),
        ('return a.true === "true" ? a : undefined;', 'return a.true==="true"?a:void 0;'),
        ("f((a) => a, async (b) => b, (c, d) => c);", "f(a=>a,async(b)=>b,(c,d)=>c);"),
        ("{ true: g(a) => `(b)=>`, const_: false }", "{true:g(a)=>`(b)=>`,const_:!1}"),
        ("return `a , b`;", "return `a , b`;"),
        ('a += b - "x + y" + c;', 'a+=b-"x + y"+c;'),
        ("a = b + ++c;", "a=b + ++c;"),
        ("f( [ `a , ${b + 1} {` , c / d ] );", "f([`a , ${b + 1} {`,c/d]);"),
        ("return [ `a , ${ `b , c` }` ];", "return [ `a , ${ `b , c` }` ];"),
        ("a = [ / , /u, b / c ];", "a = [ / , /u, b / c ];"),
        ('a = [ "1 / 2", b ];', 'a=["1 / 2",b];'),
        ("a = b / c; // and so on", "a = b / c; // and so on"),
        ("else if (x in y) z = 'it\\'s , so';", "else if(x in y)z='it\\'s , so';"),
    ],
)
def test_joining_keeps_texts_and_parts_words_and_signs(line: str, short: str):
    assert modules._squeezed(line) == short


def test_modules_that_cannot_be_joined_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modules, "FOLDER", tmp_path)
    (tmp_path / "a.mjs").write_text('import { b } from "./b.mjs";\nexport const a = 1;\n')
    (tmp_path / "b.mjs").write_text('import { a } from "./a.mjs";\nexport const b = 1;\n')
    (tmp_path / "c.mjs").write_text("export default 1;\n")
    with pytest.raises(ValueError, match="modules import each other: a -> b -> a"):
        modules.script.__wrapped__("a")
    with pytest.raises(ValueError, match=r"c\.mjs: cannot join 'export default 1;'"):
        modules.script.__wrapped__("c")


def test_hostile_text_never_stands_in_the_page_as_markup(tmp_path: Path):
    graph = dallas()
    ids = graph.nodes["id"].to_pylist()
    hostile = graph.relabel(dict(zip(ids, HOSTILE * 40, strict=False)))
    hostile = dataclasses.replace(hostile, metadata=graph.metadata | {"prompt": HOSTILE[0]})
    beside = Beside(name=HOSTILE[1], groups=[{"name": HOSTILE[0], "members": ids[:2]}])
    hostile.to_html(tmp_path / "a.html", {"0/70": {"label": HOSTILE[0]}}, beside=beside)
    content = (tmp_path / "a.html").read_text(encoding="utf-8")
    tags = re.findall(
        r"<(/?[a-zA-Z!][^\s>]*)", re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    )
    assert {tag.lower() for tag in tags} <= {
        "!doctype", "html", "head", "meta", "title", "/title", "style", "/style", "/head", "body",
        "div", "p", "/p", "noscript", "/noscript", "/div", "script", "/script", "/body", "/html",
    }  # fmt: skip
    assert "alert(1)" not in re.sub(r"<title>.*?</title>", "", content)


def test_the_same_graph_gives_the_same_page_smaller_than_its_json(tmp_path: Path):
    graph = random_graph(0, features=400)
    for name in ("a.html", "b.html"):
        graph.to_html(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    text = edge_list_json(graph.nodes, graph.edges, graph._described)
    packed = len(base64.b64encode(graph.packed()))
    assert packed <= 1.2 * len(gzip.compress(text, 9))


def test_export_writes_the_graph_as_it_stands(tmp_path: Path):
    graph = dallas().prune()
    graph.export(tmp_path / "a.html")
    raw = gzip.decompress(packed_in(tmp_path / "a.html")[0])
    header = json.loads(raw[4 : 4 + int.from_bytes(raw[:4], "little")])
    assert header["nodes"]["id"] == graph.nodes["id"].to_pylist()
    assert header["metadata"]["pruned"] == graph.metadata["pruned"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0.0}, "nodes is 0"),
        ({"edges": 1.5}, "edges is 1.5"),
        ({"max_edges": 0}, "max_edges is 0"),
    ],
)
def test_a_share_or_number_out_of_range_is_refused_before_writing(
    settings: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(GraphError, match=said):
        dallas().to_html(tmp_path / "a.html", **settings)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("most", [2, 7, 11])
def test_as_many_edges_are_kept_as_were_asked_for_but_ties_at_the_bound_go(most: int):
    """Twelve tokens that write to the answer: every edge is a path of its own."""
    rows = [{"kind": "embedding", "layer": -1, "position": at, "token": at} for at in range(12)]
    rows.append({"kind": "logit", "layer": 1, "position": 11, "token": 9, "probability": 1})
    size = np.random.default_rng(0).permutation(12) + 1.0
    for tied in (False, True):
        effect = np.zeros((13, 13))
        effect[12, :12] = np.where(tied & (size <= 12 - most), 13 - most, size)
        graph = AttributionGraph.build(columns(rows), sparse.csr_array(effect), {})
        _, edges, held = strongest_edges(graph.nodes, graph.edges, most)
        assert edges.num_rows == held["edges"] == most - tied
        strongest = np.sort(size)[::-1][: most - tied]
        assert sorted(edges["weight"].to_pylist(), reverse=True) == strongest.tolist()


def test_a_large_graph_keeps_its_strongest_edges_and_counts_the_others_as_left_out():
    graph = dallas()
    nodes, edges, held = strongest_edges(graph.nodes, graph.edges, 100)
    assert 0 < edges.num_rows <= 100
    assert held["total_edges"] == graph.effect.nnz
    assert held["total_nodes"] == graph.nodes.num_rows
    through = np.sort(graph.edges["influence"].to_numpy())[::-1]
    assert edges["influence"].to_numpy().min() >= through[99]
    assert 0 < held["influence"] < 1
    ids = graph.nodes["id"].to_pylist()
    row = {name: at for at, name in enumerate(ids)}
    old = graph.nodes.to_pylist()
    left = np.bincount(edges["target"], np.abs(edges["weight"]), nodes.num_rows)
    for at, node in enumerate(nodes.to_pylist()):
        before = old[row[node["id"]]]
        lost = (node["left_out_absolute"] or 0) - (before["left_out_absolute"] or 0)
        assert left[at] + lost == pytest.approx(before["input_absolute"], rel=1e-6, abs=1e-6)
    assert strongest_edges(graph.nodes, graph.edges, graph.effect.nnz)[2] == {}


@pytest.mark.parametrize("place", ["a.graph", "a.zip"])
def test_groups_view_and_tables_of_attention_come_back_and_go_along(place: str, tmp_path: Path):
    path = tmp_path / place
    strong = max(dallas().edges.to_pylist(), key=lambda one: one["influence"])
    name = "__".join(dallas().nodes["id"][strong[end]].as_py() for end in ("source", "target"))
    rows = {"edge": name, "layer": 0, "head": -1, "query": None, "key": None}
    heads = pa.Table.from_pylist([rows | {"loading": math.nan}], pa.schema(COLUMNS["heads"]))
    graph = dallas().group("Texas", ["E_37_7"], (1.5, 2)).with_tables({"heads": heads})
    graph.save(path)
    assert read_beside(path) == Beside(name=place)
    graph.save(path, view={"pins": ["E_37_7"]})
    assert read_beside(path) == Beside(name=place, view={"pins": ["E_37_7"]})
    packed = gzip.decompress(AttributionGraph.load(path).packed())
    assert b'"groups":[{"name":"Texas","members":["E_37_7"],"place":[1.5,2]}]' in packed
    assert b'"loading":[null]' in packed
    assert b'"name":"Texas"' in gzip.decompress(bytes(graph.widget().graph))
    AttributionGraph.load(path).to_html(tmp_path / "a.html", compare=[graph])
    graph.export(tmp_path / "b.html")
    assert b'"name":"Texas"' in gzip.decompress(packed_in(tmp_path / "b.html")[0])
    assert all(b'"name":"Texas"' in gzip.decompress(one) for one in packed_in(tmp_path / "a.html"))


def header_of(packed: bytes) -> dict[str, Any]:
    raw = gzip.decompress(packed)
    header: dict[str, Any] = json.loads(raw[4 : 4 + int.from_bytes(raw[:4], "little")])
    return header


@pytest.mark.parametrize("place", ["a.graph", "a.zip"])
def test_a_loaded_graph_shows_the_pins_and_groups_saved_beside_it(place: str, tmp_path: Path):
    path = tmp_path / place
    logit = dallas().nodes["id"][-1].as_py()
    saved = {"pins": ["E_37_7", logit], "nodes": 0.5}
    dallas().group("Texas", ["E_37_7"]).save(path, view=saved)
    graph = AttributionGraph.load(path)
    for one in (
        graph,
        graph.relabel({logit: "x"}),
        dataclasses.replace(graph, groups=graph.groups),
    ):
        header = header_of(bytes(one.widget().graph))
        assert (header["view"], header["groups"][0]["name"]) == (saved, "Texas")
    assert header_of(graph.prune().packed())["view"] == {"pins": saved["pins"]}
    graph.to_html(tmp_path / "a.html")
    assert header_of(packed_in(tmp_path / "a.html")[0])["view"] == saved


def test_a_torn_view_stops_the_viewer_alone(tmp_path: Path):
    dallas().save(tmp_path / "a.graph")
    (tmp_path / "a.graph" / VIEW).write_text("{")
    graph = AttributionGraph.load(tmp_path / "a.graph")
    assert graph.prune().nodes.num_rows
    with pytest.raises(GraphError, match=r"view\.json is no JSON"):
        graph.packed()
    assert graph._repr_mimebundle_() is None


def packed_in(page: Path) -> list[bytes]:
    """The graphs of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'class="tracer-graph">([A-Za-z0-9+/=]+)<', text)
    return [base64.b64decode(one) for one in found]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 2}', '{"format": 1, "view": 3}', '{"format": 1, "x": NaN}']
)
def test_a_torn_view_beside_a_graph_is_named(content: str, tmp_path: Path):
    (tmp_path / VIEW).write_text(content)
    with pytest.raises(GraphError, match=re.escape(VIEW)):
        read_beside(tmp_path)


def test_a_view_that_json_cannot_hold_is_not_saved(tmp_path: Path):
    with pytest.raises(GraphError, match="the view is no JSON"):
        dallas().save(tmp_path / "a.graph", view={"zoom": math.inf})
    assert not (tmp_path / "a.graph").exists()


def test_a_notebook_without_anywidget_keeps_the_picture_and_says_what_the_viewer_needs(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "graphs.viewer.widget", raising=False)
    graph = dallas()
    assert graph._repr_mimebundle_() is None
    with pytest.raises(GraphError, match=r"pip install 'tracer\[notebook\]'"):
        graph.widget()


def test_a_notebook_with_anywidget_shows_the_viewer_and_keeps_the_picture_beside_it():
    pytest.importorskip("anywidget")
    bundle = dallas()._repr_mimebundle_()
    assert bundle is not None
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert {"image/svg+xml", "text/html"} & set(bundle)
    assert bundle["text/plain"].startswith("AttributionGraph(")
