"""`tracer mcp`: agents ask about saved graphs and a model, by the package's own client."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from graphs import AttributionGraph
from tests.graph_samples import dallas
from tests.test_cli import refused
from tracer import ReplacementModel, TraceError
from tracer.serving.agents import server_of
from tracer.serving.confined import Root
from tracer.serving.graph_words import bounded
from tracer.serving.tools import TOOLS, Tools

ROOT = Path(__file__).parents[1]
CUT_OFF = (
    "import socket\n"
    "def no(*_): raise AssertionError('reached for the network')\n"
    "socket.socket.connect = socket.socket.bind = socket.getaddrinfo = no\n"
    "from tracer.commands import main\n"
    "main(['mcp', '--root', 'inside', '--answer', '900'])\n"
)
Calls = Sequence[tuple[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder and must reach no network."""

    def no_network(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket.socket, "bind", no_network)


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A folder with a graph, beside what is not to be read."""
    folder = tmp_path / "inside"
    folder.mkdir()
    dallas().save(folder / "dallas.graph")
    dallas().save(tmp_path / "secret.graph")
    (folder / "way-out").symlink_to(tmp_path / "secret.graph")
    return folder


def no_model() -> ReplacementModel:
    raise TraceError("this test has no model")


def asked(tools: Tools, calls: Calls) -> list[tuple[bool, str]]:
    """Whether each call failed, and what it says, by the package's client in memory."""

    async def run() -> list[tuple[bool, str]]:
        async with Client(server_of(tools)) as client:
            return [said(await client.call_tool(name, given)) for name, given in calls]

    return anyio.run(run)


def said(result: Any) -> tuple[bool, str]:
    [part] = result.content
    return bool(result.is_error), part.text


def test_the_client_finds_eight_tools_with_what_they_take(inside: Path):
    async def run() -> Any:
        async with Client(server_of(Tools(Root(inside), no_model))) as client:
            return (await client.list_tools()).tools, client.instructions

    tools, instructions = anyio.run(run)
    assert [tool.name for tool in tools] == list(TOOLS) == [
        *("trace", "show", "node", "paths", "heads", "search", "intervene", "validate")
    ]  # fmt: skip
    assert "2_311_8" in instructions
    for tool in tools:
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        for one in tool.input_schema["properties"].values():
            assert one["description"]


def test_a_saved_graph_is_shown_searched_and_walked_without_a_model(inside: Path):
    graph = dallas()
    texas = next(row["id"] for row in graph.nodes.to_pylist() if row["label"] == "say a capital")
    listed, shown, node, paths, found = asked(
        Tools(Root(inside), no_model),
        [
            ("show", {}),
            ("show", {"graph": "dallas.graph", "features": 3}),
            ("node", {"graph": "dallas.graph", "node": texas, "top": 2}),
            ("paths", {"graph": "dallas.graph", "count": 2, "sign": "suppressing"}),
            ("search", {"graph": "dallas.graph", "query": "SAY a", "top": 4}),
        ],
    )
    assert listed == (False, "1 graphs:\n  dallas.graph")
    assert "prompt: The capital of the state containing Dallas is" in shown[1]
    assert f"replacement score {graph.scores.replacement:.3f}" in shown[1]
    assert graph.describe(graph.paths(1)[0]) in shown[1]
    lines = node[1].splitlines()
    assert lines[0] == f"{texas}: say a capital (L1, at “is”)"
    assert sum(line.startswith("  ") for line in lines) == 4
    for path, line in zip(graph.paths(2, -1), paths[1].splitlines(), strict=True):
        assert line.strip().startswith(graph.describe(path))
    assert found[1].splitlines()[1].split()[0] == texas
    assert not any(failed for failed, _ in (listed, shown, node, paths, found))


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.graph", "/etc/passwd", "way-out", ".", "", " ", "a\0b", "a\nb", "x" * 300),
        *("dallas.graph/../../secret.graph", "\x1b[2J", "way-out/nodes.arrow", "..", "~"),
    ],
)
def test_a_hostile_name_reads_and_writes_nothing(inside: Path, name: str):
    before = sorted(path for path in inside.parent.rglob("*"))
    answers = asked(
        Tools(Root(inside), no_model),
        [
            *((tool, {"graph": name}) for tool in ("show", "paths", "heads", "validate")),
            ("node", {"graph": name, "node": "E_37_7"}),
            ("search", {"graph": name, "query": "x"}),
            ("intervene", {"graph": name, "changes": [{"node": "0_1_2", "value": 0}]}),
            ("trace", {"prompt": "hi", "name": name}),
        ],
    )
    for failed, text in answers:
        assert failed
        assert "\n" not in text
        assert "\x1b" not in text
        assert "fault of tracer" not in text
    assert sorted(path for path in inside.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("tool", "given", "line"),
    [
        ("nothing", {}, "'nothing' is no tool: expected trace, show"),
        ("show", {"grpah": "x"}, "'grpah' is no argument: expected graph, features, paths"),
        ("node", {"graph": "dallas.graph"}, "node is missing: id of the node"),
        ("show", {"features": 10**9}, "expected a whole number from 1 to 200"),
        ("show", {"features": True}, "expected a whole number from 1 to 200"),
        ("show", {"graph": 7}, "expected text"),
        ("paths", {"graph": "dallas.graph", "sign": "both"}, "expected one of all, exciting"),
        ("node", {"graph": "dallas.graph", "node": "\x1b[2J"}, "no node has the id"),
        ("show", {"graph": "none.graph"}, "none.graph does not exist"),
        (
            "intervene",
            {"graph": "dallas.graph", "changes": [{"node": "0_1_2", "value": float("1e999")}]},
            "expected 1 to 200 changes",
        ),
        (
            "intervene",
            {"graph": "dallas.graph", "changes": [{"node": "E_37_7", "value": 0}]},
            "'E_37_7' is no feature's id",
        ),
        ("heads", {"graph": "dallas.graph"}, "this test has no model"),
    ],
)
def test_what_cannot_be_answered_says_why_in_one_line(
    inside: Path, tool: str, given: dict[str, Any], line: str
):
    [(failed, text)] = asked(Tools(Root(inside), no_model), [(tool, given)])
    assert failed
    assert line in text
    assert "\n" not in text


def test_a_fault_of_ours_is_one_line_and_the_server_lives_on(inside: Path):
    def broken() -> ReplacementModel:
        raise RuntimeError("two\nlines")

    answers = asked(
        Tools(Root(inside), broken),
        [("trace", {"prompt": "hi", "name": "a.graph"}), ("show", {})],
    )
    assert answers[0] == (True, "this is a fault of tracer: RuntimeError")
    assert not answers[1][0]


def test_a_search_of_the_store_hands_on_what_is_asked(
    inside: Path, monkeypatch: pytest.MonkeyPatch
):
    asked_for: list[tuple[str, str, int]] = []

    def search(*given: Any) -> list[SimpleNamespace]:
        asked_for.append(given)
        return [SimpleNamespace(layer=at, feature=7, score=0.25) for at in range(2)]

    def label_of(layer: int, feature: int) -> SimpleNamespace:
        return SimpleNamespace(label="Texas" if (layer, feature) == (1, 7) else None)

    store = SimpleNamespace(search=search, label_of=label_of)
    monkeypatch.setattr("tracer.features.beside.store_of", lambda _: (store, None))
    model: Any = SimpleNamespace()
    tools = Tools(Root(inside), lambda: model)
    said = tools.call("search", {"query": "Texas", "by": "promoted", "top": 4})
    assert asked_for == [("Texas", "promoted", 4)]
    assert said.splitlines() == [
        *("2 features (layer/feature, score, label):", "  0/7  0.250  no label"),
        "  1/7  0.250  Texas",
    ]


@pytest.mark.parametrize("limit", [500, 1000, 3000])
def test_no_answer_is_longer_than_the_limit(inside: Path, limit: int):
    for failed, text in asked(
        Tools(Root(inside), no_model, limit),
        [
            ("show", {"graph": "dallas.graph", "features": 200, "paths": 200}),
            ("paths", {"graph": "dallas.graph", "count": 200}),
            ("search", {"graph": "dallas.graph", "query": "a", "top": 200}),
        ],
    ):
        assert not failed
        assert len(text) <= limit
        assert text.endswith(" left out: ask for fewer, or for one node)")
    assert bounded(["x" * 999], 500) == "x" * 499 + "…"


def test_hostile_text_of_a_graph_is_spelled_out(inside: Path):
    graph = dallas().relabel({"2_80_8": "\x1b[2J\u202eevil"})
    graph.metadata["prompt"] = "a\nprompt: \x07"
    graph.save(inside / "evil.graph")
    [(_, shown), (_, node)] = asked(
        Tools(Root(inside), no_model),
        [("show", {"graph": "evil.graph"}), ("node", {"graph": "evil.graph", "node": "2_80_8"})],
    )
    for text in (shown, node):
        assert not {"\x1b", "\u202e", "\x07"} & set(text)
    assert "prompt: a⏎prompt: ␇" in shown


def test_a_prompt_is_traced_and_its_features_zeroed_on_the_model(tmp_path: Path):
    tools = Tools(Root(tmp_path), ReplacementModel.load)
    prompt = "The opposite of hot is"
    [(failed, text)] = asked(tools, [("trace", {"prompt": prompt, "name": "hot.graph"})])
    assert not failed, text
    graph = AttributionGraph.load("hot.graph")
    assert "saved hot.graph" in text
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    best = max(rows, key=lambda row: row["influence"])["id"]
    changed, heads, hits, wrong = asked(
        tools,
        [
            ("intervene", {"graph": "hot.graph", "changes": [{"node": best, "scale": -1}]}),
            ("heads", {"graph": "hot.graph", "top": 2}),
            ("search", {"query": "Texas", "top": 3}),
            ("trace", {"prompt": prompt, "name": "a.graph", "minus": " hot"}),
        ],
    )
    first = changed[1].splitlines()[1]
    before, after = (float(part) for part in first.split("  ")[-1].split(" → "))
    assert "' cold'" in first
    assert before > 0.9 > after
    assert len(heads[1].splitlines()) == 3
    assert "Texas" in hits[1]
    assert wrong == (True, "minus needs a target")
    assert not Path("a.graph").exists()


def test_over_standard_input_and_output_without_any_connection(inside: Path):
    server = StdioServerParameters(
        command=sys.executable,
        args=["-W", "error", "-c", CUT_OFF],
        cwd=inside.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )

    async def run() -> list[tuple[bool, str]]:
        async with Client(stdio_client(server)) as client:
            return [
                said(await client.call_tool("show", {})),
                said(await client.call_tool("show", {"graph": "dallas.graph"})),
                said(await client.call_tool("show", {"graph": "../secret.graph"})),
            ]

    listed, shown, refused = anyio.run(run)
    assert listed == (False, "1 graphs:\n  dallas.graph")
    assert 400 < len(shown[1]) <= 900
    assert refused[0]
    assert "leads outside the folder" in refused[1]


def test_the_command_refuses_a_folder_that_is_none():
    assert "--root: there is no folder nowhere" in refused("mcp", "--root", "nowhere")
