"""The viewer's server gives nothing to strangers and writes nowhere but beside its graphs."""

import base64
import dataclasses
import gzip
import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import tracer
from graphs import AttributionGraph
from graphs.exchange.tables import edge_list_json
from graphs.viewer.page import policy
from tests.graph_samples import dallas
from tests.test_cli import succeed
from tracer.commands import main, view
from tracer.commands.view import beside
from tracer.features import packaged
from tracer.serving.access import Access
from tracer.serving.served import Served
from tracer.serving.server import LARGEST, Server, Viewing
from tracer.serving.what_if import WhatIf

ROOT = Path(__file__).parents[1]
PROMPT = "The opposite of hot is"
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(*graphs: Served, what_if: WhatIf | None = None) -> Iterator[Server]:
    """A server in a thread."""
    with Server(Viewing(graphs, what_if=what_if)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: Server,
    path: str,
    body: bytes | object = None,
    headers: dict[str, str | None] | None = None,
    method: str | None = None,
) -> Answer:
    """What the server answers; a header of None is left out."""
    sent: dict[str, str | None] = {
        "Host": f"127.0.0.1:{server.access.port}",
        "X-Tracer-Token": server.access.token,
    }
    if body is not None:
        sent["Content-Type"] = "application/json"
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent["Content-Length"] = str(len(body))
    sent |= headers or {}
    connection = http.client.HTTPConnection("127.0.0.1", server.access.port, timeout=20)
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = (answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph on disk, with a file beside its folder that nobody may have."""
    dallas().save(tmp_path / "served" / "dallas.graph")
    (tmp_path / "served" / "secret.txt").write_text("secret")
    return tmp_path / "served" / "dallas.graph"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(Served(folder)) as running:
        yield running


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir(exist_ok=True)


def test_the_page_comes_with_its_token_and_its_policy(server: Server):
    status, headers, content = ask(
        server, f"/?token={server.access.token}", headers={"X-Tracer-Token": None}
    )
    assert status == 200
    assert headers["Content-Security-Policy"] == f"{policy(connect=True)}; frame-ancestors 'none'"
    assert policy(connect=True).encode() in content
    for name, value in {
        "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
    }.items():  # fmt: skip
        assert headers[name] == value
    assert not any(name.startswith("Access-Control") for name in headers)


def test_a_graph_comes_packed(server: Server, folder: Path):
    status, _, content = ask(server, "/api/graphs/0")
    assert status == 200
    assert content == Served(folder).packed({"nodes": 0.8, "edges": 0.98})


def test_it_listens_on_loopback_only(server: Server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(Access(1).token) >= 43
    assert Access(1).token != Access(1).token


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?other=1", "/?token=%00"])
def test_the_page_needs_the_token(server: Server, path: str):
    assert ask(server, path, headers={"X-Tracer-Token": None})[0] == 403


STRANGERS: list[dict[str, str | None]] = [
    {"X-Tracer-Token": None},
    {"X-Tracer-Token": "wrong"},
    {"X-Tracer-Token": "\xff"},
    {"Host": None},
    {"Host": "evil.example"},
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1:1"},
    {"Host": "127.0.0.1.evil.example:80"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
@pytest.mark.parametrize("path", ["/api/graphs/0", "/api/graphs/0/save"])
def test_strangers_get_and_change_nothing(
    server: Server, folder: Path, headers: dict[str, str | None], path: str
):
    before = sorted(file.name for file in folder.iterdir())
    body = {"labels": {"E_37_7": "mine"}} if path.endswith("save") else None
    status, _, content = ask(server, path, body, headers)
    assert status == 403
    assert b"dallas" not in content.lower()
    assert sorted(file.name for file in folder.iterdir()) == before
    assert AttributionGraph.load(folder).nodes.equals(dallas().nodes)


def test_a_page_of_this_server_may_ask(server: Server):
    for host in ("127.0.0.1", "localhost"):
        place = f"{host}:{server.access.port}"
        headers: dict[str, str | None] = {
            "Host": place,
            "Origin": f"http://{place}",
            "Sec-Fetch-Site": "same-origin",
        }
        assert ask(server, "/api/graphs/0", headers=headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt", "/../secret.txt", "/api/graphs/../secret.txt",
        "/api/graphs/0/../../secret.txt",
        "/api/graphs/%2e%2e%2fsecret.txt", "/api/graphs/0%00", "/api/graphs/-1", "/api/graphs/1",
        "/api/graphs/99999", "//secret.txt", "/api/graphs/0/nodes.arrow", "/etc/passwd",
        "/api/graphs/0/save/../../x", "http://127.0.0.1/secret.txt", "/\\..\\secret.txt",
    ],
)  # fmt: skip
def test_no_address_names_a_file(server: Server, path: str):
    try:
        status, _, content = ask(server, path.encode().decode("latin-1"))
    except http.client.InvalidURL:
        return
    assert status in (400, 404)
    assert b"secret\n" not in content
    assert b"root:" not in content


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"Content-Length": str(LARGEST + 1)}, 413),
        (b"{}", {"Content-Length": "9" * 40}, 413),
        (b"{}", {"Content-Length": "-1"}, 411),
        (b"{}", {"Content-Length": None}, 411),
        (b"{}", {"Content-Length": None, "Transfer-Encoding": "chunked"}, 411),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
    ],
)
def test_a_body_must_be_small_json_of_a_stated_length(
    server: Server, body: bytes, headers: dict[str, str | None], status: int
):
    assert ask(server, "/api/graphs/0/save", body, headers)[0] == status
    assert ask(server, "/api/graphs/0")[0] == 200


def test_other_methods_are_refused(server: Server):
    assert ask(server, "/api/graphs/0/save")[0] == 405
    assert ask(server, "/api/graphs/0", {})[0] == 405
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(server, "/api/graphs/0", method=method)[0] == 501


def test_labels_groups_and_view_are_saved_beside_the_graph(server: Server, folder: Path):
    row = next(one for one in dallas().nodes.to_pylist() if one["label"] == "say a capital")
    groups = [{"name": "</script>", "members": [row["id"], "E_37_7"], "place": [1, 2.5]}]
    wanted = {"labels": {row["id"]: "my label"}, "groups": groups, "view": {"pins": ["E_37_7"]}}
    assert ask(server, "/api/graphs/0/save", wanted)[0] == 200
    saved = AttributionGraph.load(folder)
    [label] = [one["label"] for one in saved.nodes.to_pylist() if one["id"] == row["id"]]
    assert label == "my label"
    known = saved.metadata["labels"][f"{row['layer']}/{row['feature']}"]
    assert known == {"polysemantic": False, "f1": None, "source": "user"}
    assert json.loads((folder / "groups.json").read_text()) == {"format": 1, "groups": groups}
    assert json.loads((folder / "view.json").read_text())["view"] == {"pins": ["E_37_7"]}
    assert (folder.parent / "secret.txt").read_text() == "secret"
    assert sorted(one.name for one in folder.parent.iterdir()) == ["dallas.graph", "secret.txt"]


@pytest.mark.parametrize(
    "wanted",
    [
        [], "x", {"labels": []}, {"groups": {}}, {"view": 1}, {"labels": {"nobody": "x"}},
        {"labels": {"E_37_7": 1}}, {"labels": {"E_37_7": "x" * 3000}}, {"groups": [1]},
        {"groups": [{"name": "", "members": ["E_37_7"]}]},
        {"groups": [{"name": "a", "members": []}]},
        {"groups": [{"name": " ", "members": ["E_37_7"]}]},
        {"groups": [{"name": "a", "members": ["E_37_7", "E_37_7"]}]},
        {"groups": [{"name": "a", "members": [one]} for one in ("E_37_7", "E_32_2")]},
        {"groups": [{"name": one, "members": ["E_37_7"]} for one in "ab"]},
        {"groups": [{"name": "a", "members": ["../../x"]}]},
        {"groups": [{"name": "a" * 300, "members": ["E_37_7"]}]},
    ],
)  # fmt: skip
def test_what_is_not_of_the_graph_is_not_saved(server: Server, folder: Path, wanted: object):
    status, _, content = ask(server, "/api/graphs/0/save", wanted)
    assert status == 422
    assert content.startswith(b"cannot save: ")
    assert sorted(file.name for file in folder.iterdir()) == ["edges.arrow", "nodes.arrow"]


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-Infinity"])
def test_a_view_keeps_no_number_that_a_page_could_not_read(
    server: Server, folder: Path, number: bytes
):
    body = b'{"labels": {"E_37_7": "x"}, "view": {"zoom": [1, 2, %s]}}' % number
    status, _, content = ask(server, "/api/graphs/0/save", body)
    assert (status, content[:15]) == (422, b"the view is no ")
    assert "x" not in AttributionGraph.load(folder).nodes["label"].to_pylist()


def test_a_fault_of_ours_is_one_line_and_no_traceback(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> bytes:
        raise RuntimeError("secret path")

    monkeypatch.setattr(Served, "packed", broken)
    status, _, content = ask(server, "/api/graphs/0")
    assert (status, content) == (500, b"this is a fault of tracer: RuntimeError")
    with socket.create_connection(("127.0.0.1", server.access.port)) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.send(b"GET / HTTP/1.1")
    assert ask(server, "/api/graphs/9")[0] == 404
    assert capfd.readouterr() == ("", "")


def test_a_link_in_a_graph_leads_no_writing_out_of_its_folder(server: Server, folder: Path):
    secret = folder.parent / "secret.txt"
    for name in ("groups.json", "view.json"):
        (folder / name).symlink_to(secret)
    assert ask(server, "/api/graphs/0/save", {"view": {"pins": []}})[0] == 422
    for name in ("groups.json", "view.json"):
        (folder / name).unlink()
    (folder / "view.json").symlink_to(secret)
    status, _, content = ask(server, "/api/graphs/0")
    assert (status, b"secret\n" in content) == (422, False)
    assert ask(server, "/api/graphs/0/save", {"view": {"pins": ["E_37_7"]}})[0] == 200
    assert secret.read_text() == "secret"
    assert not (folder / "view.json").is_symlink()


def test_a_zip_keeps_labels_groups_and_view(tmp_path: Path):
    path = tmp_path / "alone" / "dallas.zip"
    path.parent.mkdir()
    dallas().save(path)
    group = {"name": "Texas", "members": ["E_37_7"], "place": None}
    wanted = {"labels": {"E_37_7": "x"}, "groups": [group], "view": {"pins": ["E_37_7"]}}
    with serving(Served(path)) as server:
        assert ask(server, "/api/graphs/0/save", wanted)[0] == 200
        packed = gzip.decompress(ask(server, "/api/graphs/0")[2])
        assert ask(server, "/api/graphs/0/save", {"view": {"pins": []}})[0] == 200
    saved = AttributionGraph.load(path)
    assert "x" in saved.nodes["label"].to_pylist()
    assert b'"view":{"pins":["E_37_7"]}' in packed
    assert b'"groups":[{"name":"Texas"' in packed
    assert saved.groups == ()
    assert [one.name for one in path.parent.iterdir()] == ["dallas.zip"]


def test_without_a_model_what_if_says_how_to_have_one(server: Server):
    status, _, content = ask(server, "/api/graphs/0/what-if", {"mode": "free", "changes": []})
    assert status == 422
    assert b"start tracer view with --model" in content


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WhatIf]:
    """A traced graph on disk, and its model."""
    model = tracer.ReplacementModel.load()
    path = tmp_path_factory.mktemp("traced") / "hot.graph"
    tracer.trace(model, PROMPT).save(path)
    return path, WhatIf(lambda: model)


@pytest.mark.parametrize("mode", ["free", "held", "direct"])
def test_the_model_answers_what_intervene_answers(traced: tuple[Path, WhatIf], mode: str):
    path, what_if = traced
    graph = AttributionGraph.load(path)
    row = max(
        (one for one in graph.nodes.to_pylist() if one["kind"] == "feature"),
        key=lambda one: one["influence"],
    )
    place = {name: row[name] for name in ("layer", "position", "feature")}
    settings: dict[str, Any] = {"held": {"mode": "free", "freeze_attention": True}}.get(
        mode, {"mode": mode}
    )
    change = tracer.intervene(
        what_if.model, PROMPT, [tracer.Intervention(**place, scale=-3.0)], **settings
    )
    with serving(Served(path), what_if=what_if) as server:
        status, _, content = ask(
            server, "/api/graphs/0/what-if", {"mode": mode, "changes": [{**place, "scale": -3}]}
        )
    assert status == 200
    answers = json.loads(content)["answers"]
    for logits, when in ((change.base.logits, "before"), (change.logits, "after")):
        expected = logits[-1].double().softmax(-1)
        for one in answers:
            assert one[when] == pytest.approx(float(expected[one["token"]]), abs=1e-9)
    shown = {one["token"] for one in answers}
    assert {one["token"] for one in graph.nodes.to_pylist() if one["kind"] == "logit"} <= shown
    assert any(abs(one["after"] - one["before"]) > 0.01 for one in answers)


def test_a_graph_of_the_embedded_default_shows_its_own_stores_examples(
    traced: tuple[Path, WhatIf], tmp_path: Path
):
    graph = AttributionGraph.load(traced[0])
    pages = {
        "served": Served(traced[0]).packed({}),
        "exported": exported(traced[0], tmp_path / "a.html"),
    }
    wanted = {f"{row['layer']}/{row['feature']}" for row in graph.nodes.to_pylist()
              if row["kind"] == "feature"}  # fmt: skip
    for packed in pages.values():
        raw = gzip.decompress(packed)
        features = json.loads(raw[4 : 4 + int.from_bytes(raw[:4], "little")])["features"]
        assert set(features) == wanted
        assert any(one["examples"] for one in features.values())
    packed = len(base64.b64encode(pages["exported"]))
    text = edge_list_json(graph.nodes, graph.edges, graph._described)
    assert packed <= 1.2 * len(gzip.compress(text, 9))
    other = dataclasses.replace(graph, metadata=graph.metadata | {"dictionary_hash": "0" * 64})
    assert packaged.store_of_graph(other) is None
    store = beside(traced[1])
    assert store is not None
    assert store.path == packaged.EMBEDDED / "clt.features"


def exported(folder: Path, page: Path) -> bytes:
    """What the page holds that `tracer export` writes."""
    succeed("export", str(folder), "-o", str(page))
    [found] = re.findall(r'class="tracer-graph">([A-Za-z0-9+/=]+)<', page.read_text("utf-8"))
    return base64.b64decode(found)


def test_of_its_own_store_a_page_takes_as_many_examples_as_fit(
    traced: tuple[Path, WhatIf], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    graph = AttributionGraph.load(traced[0])
    every = packaged.shown(graph, None)
    monkeypatch.setattr(packaged, "room_for_examples", lambda _: 20_000)
    some = packaged.shown(graph, None)
    assert 0 < len(some) < len(every)
    assert list(some) == list(every)[: len(some)]
    assert len(base64.b64encode(gzip.compress(json.dumps(some).encode()))) <= 20_000
    monkeypatch.undo()
    for small in (graph.prune(), graph.prune(0.95, 0.995), graph):
        page = small.to_html(tmp_path / "small.html", packaged.shown(small, None)).read_text(
            "utf-8"
        )
        [packed] = re.findall(r'class="tracer-graph">([A-Za-z0-9+/=]+)<', page)
        text = edge_list_json(small.nodes, small.edges, small._described)
        assert len(packed) <= 1.2 * len(gzip.compress(text, 9))
    assert packaged.said(graph, some, named=False) == (
        f"It shows examples of {len(some)} of {len(every)} features, from the embedded default's "
        "own store"
    )


@pytest.mark.parametrize(
    "wanted",
    [
        [], {"mode": "free"}, {"mode": "free", "changes": []}, {"mode": "eval", "changes": [{}]},
        {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2}]},
        {
            "mode": "free",
            "changes": [{"layer": 0, "position": 1, "feature": 2, "scale": 1, "value": 1}],
        },
        {"mode": "free", "changes": [{"layer": "0", "position": 1, "feature": 2, "scale": 1}]},
        {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2, "scale": 1e999}]},
        b'{"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2, "scale": 1%s}]}'
        % (b"0" * 400),
        {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 10**30, "scale": 1}]},
        {"mode": "free", "changes": [{"layer": 99, "position": 1, "feature": 2, "scale": 1}]},
        {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2, "scale": 1}] * 1001},
    ],
)  # fmt: skip
def test_a_change_that_is_none_is_named(traced: tuple[Path, WhatIf], wanted: object):
    path, what_if = traced
    with serving(Served(path), what_if=what_if) as server:
        status, _, content = ask(server, "/api/graphs/0/what-if", wanted)
    assert status == 422
    assert content
    assert b"\n" not in content


def test_a_graph_of_another_model_is_not_asked_about(folder: Path, traced: tuple[Path, WhatIf]):
    with serving(Served(folder), what_if=traced[1]) as server:
        body = {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2, "scale": 1}]}
        status, _, content = ask(server, "/api/graphs/0/what-if", body)
    assert status == 422
    assert b"name the model it was traced from" in content


def test_the_command_serves_until_it_is_interrupted(folder: Path):
    command = [sys.executable, "-m", "tracer", "view", str(folder), "--no-browser"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        try:
            found = re.fullmatch(r"Open http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})\n", line)
            assert found is not None, line
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
            connection.request("GET", f"/?token={found[2]}")
            assert connection.getresponse().status == 200
            connection.close()
        finally:
            running.send_signal(signal.SIGINT)
        try:
            assert running.wait(20) == 0
        finally:
            running.kill()


def test_what_is_no_graph_is_not_served(tmp_path: Path):
    result = CliRunner().invoke(main, ["view", str(tmp_path / "none"), "--no-browser"])
    assert result.exit_code == 2
    assert "none does not exist" in result.stderr


class Told:
    """Stands for the server: notes what it was given, and is interrupted at once."""

    given: tuple[Viewing, int]

    def __init__(self, viewing: Viewing, port: int) -> None:
        type(self).given = viewing, port
        self.access = SimpleNamespace(url="http://here/?token=x")

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def serve_forever(self) -> None:
        raise KeyboardInterrupt


def test_the_command_hands_on_what_it_was_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    graph = AttributionGraph.load(folder)
    own = dataclasses.replace(graph, metadata=graph.metadata | {"model": "embedded/clt"})
    own.save(tmp_path / "own.graph")
    opened: list[str] = []
    loaded: list[dict[str, Any]] = []
    model, store = object(), SimpleNamespace(path=Path("store"))
    monkeypatch.setattr("tracer.serving.server.Server", Told)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(view, "load_model", lambda given: loaded.append(given) or model)
    monkeypatch.setattr("tracer.features.beside.store_of", lambda one: (store, "said of it"))

    def looked(*arguments: str) -> tuple[Viewing, int, str]:
        opened.clear()
        loaded.clear()
        result = CliRunner().invoke(main, ["view", *arguments])
        assert result.exit_code == 0, result.output
        assert result.stdout == "Open http://here/?token=x\n"
        return *Told.given, result.stderr

    found, port, said = looked(str(folder), "--nodes", "0.5", "--edges", "0.6")
    assert (port, found.opening, found.what_if) == (0, {"nodes": 0.5, "edges": 0.6}, None)
    assert opened == ["http://here/?token=x"]
    assert said == "Ctrl-C ends it\nEnded\n"
    assert [(one.path, one.store) for one in found.graphs] == [(folder, None)]
    found, port, _ = looked(str(folder), "--port", "7", "--no-browser")
    assert (port, found.opening, opened) == (7, {"nodes": 0.8, "edges": 0.98}, [])
    found, *_ = looked(str(tmp_path / "own.graph"))
    assert found.what_if is not None
    assert found.graphs[0].store is None
    assert not loaded
    found, *_ = looked(str(folder), str(tmp_path / "own.graph"))
    assert found.what_if is None
    for named in (("--model", "m"), ("--transcoders", "t"), ("--model", "m", "--transcoders", "t")):
        found, _, said = looked(str(folder), *named)
        assert found.what_if is not None
        assert found.what_if.model is model
        assert len(loaded) == 1
        assert found.graphs[0].store is store
        assert said == "said of it\nCtrl-C ends it\nEnded\n"
