"""What commands print: nothing in a prompt, a file name or a graph acts on a terminal."""

import ast
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tracer
from graphs import AttributionGraph
from graphs.pictures import charts, render
from tests.graph_samples import random_graph
from tests.test_cli import IDS, ROOT, SMALL
from tracer.commands import main
from tracer.commands.progress import described
from tracer.commands.say import shown
from tracer.commands.tables import print_table

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\x00\x7f\u202eevil\u2066\u200b\ufeff\r\n\tx\u2028"
SPELLED = "␛[2J␛]0;owned␇\\x9b31m␀␡\\u202eevil\\u2066\\u200b\\ufeff␍⏎⇥x\\u2028"
ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
"""What must not be in any output, but for line breaks and the tabs of tables."""
WRITERS = {
    *("click.echo", "click.secho", "click.prompt", "click.confirm", "click.pause", "print"),
    *("sys.stdout.write", "sys.stderr.write", "Console", "rich.print", "warnings.warn"),
}

ALLOWED = {"say.py": {"click.echo", "Console"}, "progress.py": {"Console"}}


def harmless(text: str) -> str:
    assert ACTS.findall(text.replace("\r\n", "\n")) == []
    return text


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return harmless(result.output)


@pytest.fixture
def stranger(tmp_path: Path) -> AttributionGraph:
    """A graph all of whose texts are hostile, saved as `g` and `g.zip`."""
    graph = random_graph(0, features=20)
    given = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
    for name in ("text", "label"):
        given[name] = [value and EVIL + value for value in given[name]]
    names = ("prompt", "model", "model_revision", "transcoders", "transcoders_hash")
    metadata = graph.metadata | dict.fromkeys(names, EVIL) | {"partial": {EVIL: EVIL}}
    metadata |= {
        "tokens": [EVIL + token for token in graph.metadata["tokens"]],
        "settings": {f"name{EVIL}": EVIL},
        "conservation": {"worst": 1e3, "node": EVIL, "relative": 1e-7},
    }
    found = AttributionGraph.build(given, graph.effect, metadata)
    for name in ("g", "g.zip"):
        found.save(tmp_path / name)
    return found


def test_every_control_is_spelled_and_plain_text_stays():
    assert shown(EVIL) == SPELLED
    assert shown("a [b] é 東 👩\u200d🚀") == "a [b] é 東 👩\u200d🚀"
    assert described(f"[red]{EVIL}") == rf"\[red]{SPELLED}"


def test_a_table_stays_a_table_whatever_its_cells_hold(capsys: pytest.CaptureFixture[str]):
    print_table((EVIL, "b"), [(EVIL, 0.5), ("x", EVIL)])
    assert capsys.readouterr().out == f"{SPELLED}\tb\n{SPELLED}\t0.5\nx\t{SPELLED}\n\n"


def test_no_command_writes_past_the_one_place():
    for file in sorted((ROOT / "tracer" / "commands").glob("*.py")):
        mine = {"say.py": {"click.echo", "Console"}, "progress.py": {"Console"}}.get(
            file.name, set()
        )
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in WRITERS - mine, f"{file.name}:{node.lineno}: use say"


@pytest.mark.parametrize("name", ["g", "g.zip"])
def test_a_strangers_graph_is_shown_as_text(tmp_path: Path, stranger: AttributionGraph, name: str):
    text = said("show", str(tmp_path / name))
    for about in ("prompt", "model", "model revision", "transcoders", "transcoders hash"):
        assert f"{about}\t{SPELLED}\n" in text
    assert f"settings\tname{SPELLED}={SPELLED}\n" in text
    assert stranger.describe(stranger.paths(1)[0]) in text
    table = text.partition("feature\tat\t")[2].splitlines()[1:]
    assert {line.count("\t") for line in table[: table.index("")]} == {4}


def test_a_terminal_is_told_nothing_either(tmp_path: Path, stranger: AttributionGraph):
    del stranger
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tracer", "show", str(tmp_path / "g")]
    plain = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "400"}
    shows = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT, env=plain)
    os.close(theirs)
    parts = []
    while True:
        try:
            parts.append(os.read(ours, 65536))
        except OSError:
            break
        if not parts[-1]:
            break
    os.close(ours)
    assert shows.wait() == 0
    text = harmless(b"".join(parts).decode())
    assert re.search(rf"transcoders hash +{re.escape(SPELLED)}", text)


def test_errors_quote_names_as_text(tmp_path: Path):
    name = "\x1b]0;owned\x07\u202e\x9b"
    for arguments in (
        ["show", str(tmp_path / name)],
        ["prune", str(tmp_path), "-o", str(tmp_path / name / "x")],
        ["trace", "hi", "--model", name, "--transcoders", name],
        ["trace", "hi", f"--{name}"],
        [name],
        ["convert", str(tmp_path), name],
        ["render", str(tmp_path), "-o", name],
    ):
        text = said(*arguments, code=2)
        assert text.startswith("Error: ")
        assert text.count("\n") == 1
    assert "␛]0;owned␇\\u202e\\x9b does not exist" in said("show", str(tmp_path / name), code=2)


def test_what_is_generated_is_text(monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    found = [SimpleNamespace(plain=SimpleNamespace(text=EVIL), steered=SimpleNamespace(text=EVIL))]
    monkeypatch.setattr(tracer, "generate", lambda *_, **__: found)
    assert said("generate", *IDS) == f"as it is\t{SPELLED}\nchanged\t{SPELLED}\n\n"


def test_a_prompt_and_a_place_are_printed_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = said("trace", "w5 \x1b[2J\u202e w7", *SMALL, "-o", "\x1b[2J\u202e.graph")
    assert r"Saved ␛[2J\u202e.graph. To draw it: tracer render" in text
    assert Path("\x1b[2J\u202e.graph").is_dir()


@pytest.mark.parametrize("layers", [4, 14])
def test_titles_tooltips_and_labels_of_pictures_are_text(
    tmp_path: Path, stranger: AttributionGraph, layers: int
):
    stranger.metadata["layers"] = layers
    source = stranger.to_dot()
    for text in (source, stranger.to_dot(labels=500)):
        assert not ACTS.search(text.replace("\n", ""))
    assert SPELLED.replace("\\", "\\\\")[:40] in source
    if render.available():
        stranger.render(tmp_path / "a.svg")
        drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
        assert not ACTS.search(drawn.replace("\n", ""))
        titles = re.findall(r"<title>(.*?)</title>|xlink:title=\"(.*?)\"", drawn)
        assert any("\\u202eevil" in "".join(title) for title in titles)


def test_a_token_cannot_leave_its_label_in_dot():
    graph: Any = random_graph(0, tokens=['"];x\\l', *"abcdefgh"], layers=14, features=20)
    assert '\\"];x\\\\l' in graph.to_dot()
    assert '""];x' not in graph.to_dot().replace('\\"', "")
    assert 'label=""];x' not in graph.to_dot()


def test_charts_and_notebooks_show_text(
    monkeypatch: pytest.MonkeyPatch, stranger: AttributionGraph
):
    drawn = charts.heat_map(EVIL, [EVIL], [EVIL], charts.np.zeros((1, 1)))
    assert drawn.count("␛[2J␛") >= 2
    harmless(drawn)
    monkeypatch.setattr(render, "available", lambda: False)
    html = stranger._repr_html_()
    assert html is not None
    assert "\\u202eevil" in harmless(html)
