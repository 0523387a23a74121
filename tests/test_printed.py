"""What commands print and draw of small graphs, whole: `data/printed/` holds what was looked at.

`python -m tests.test_printed` writes those files anew; look at what changed before you commit it.
Models are random, of a few features, and run in float64, so no figure depends on the processor.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from graphs.pictures import charts
from tests.graph_samples import dallas, random_graph
from tests.test_graphs_aggregate import written
from tests.test_graphs_picture_heads import carried, moving
from tracer import ReplacementModel
from tracer.commands import COMMANDS as COMMANDS_OF_TRACER
from tracer.commands import main
from tracer.serving.confined import Root
from tracer.serving.tools import Tools

PRINTED = Path(__file__).parent / "data" / "printed"
GOLDEN = Path(__file__).parent / "data" / "golden" / "llama_gqa_clt"
COMMANDS = {
    "template": "train --template",
    "show": "show dallas.graph --features 6 --paths 5",
    "show_pruned": "show pruned.graph --features 3 --paths 3",
    "show_grouped": "show grouped.graph --features 3 --paths 2",
    "show_many": "show many.graphs",
    "prune": "prune dallas.graph -o again.graph --nodes 0.7 --edges 0.9",
    "group": "group dallas.graph -o again.graph --least 0.2",
    "compare": "compare dallas.graph random.graph --top 4",
    "compare_end": "compare dallas.graph random.graph --align end --top 2 --change 0.05",
    "compare_json": "compare pruned.graph random.graph --align anywhere --nodes 0.3 --json",
    "aggregate": "aggregate many.graphs --top 4 --draws 50",
    "aggregate_groups": "aggregate many.graphs --group-by language --frequency 0.6 --top 3",
    "aggregate_json": "aggregate many.graphs --top 2 --draws 50 --least 0.9 --frequency 0.9 --json",
    "picture.dot": "render dallas.graph -o picture.dot --max-edges 60",
    "picture_some.dot": "render random.graph -o picture_some.dot --nodes 0.5 --edges 0.6",
    "heads.dot": "render heads.graph -o heads.dot --heads --max-edges 40",
    "summary.dot": "render dallas.graph -o summary.dot --summary",
    "summary_random.dot": "render random.graph -o summary_random.dot --summary",
    "summary_grouped.dot": "render grouped.graph -o summary_grouped.dot --summary",
    "panels.dot": "compare pruned.graph random.graph -o panels.dot --nodes 0.5 --edges 0.7",
    "circuits.dot": "aggregate many.graphs -o circuits.dot --draws 10",
    "graph.json": "export pruned.graph -o graph.json --nodes 0.4 --edges 0.5",
    "graph.graphml": "export pruned.graph -o graph.graphml --nodes 0.4 --edges 0.5",
    "graph.csv": "export pruned.graph -o graph.csv --nodes 0.4 --edges 0.5",
}
"""By file: the command, whose output it holds, or with a suffix what the command wrote."""
MODEL = " --model model --transcoders transcoders --dtype float64"
IDS = " --tokens 1,7,12,30,5"
WITH_MODELS = {
    "trace": "trace -o again.graph" + IDS,
    "trace_few": "trace -o again.graph --max-features 6 --max-logits 3 --edge-floor 0.01" + IDS,
    "trace_minus": "trace -o again.graph --target w7 --minus w8" + IDS,
    "trace_kept": "trace -o again.graph --keep-attention" + IDS,
    "trace_many": "trace --prompts prompts.txt -o again.graphs --nodes 1 --edges 1",
    "validate": "validate traced.graph --corpus corpus.txt --draws 3",
    "show_validated": "show valid.graph --features 3 --paths 2",
    "heads": "heads traced.graph --top 6",
    "heads_chains": "heads traced.graph --chains --top 3",
    "attention": "attention headed.graph --pairs --top 4",
    "attention_score": "attention headed.graph --contrast score --top 2",
    "intervene": "intervene --set 1/3/7=2.5 --patterns" + IDS,
    "intervene_free": "intervene --scale 1/3/7=-2 --add 0/1:/3=1 --mode free --freeze-norms" + IDS,
    "intervene_between": "intervene --set 1/1:/7=9 --mode constrained --layers 1:3" + IDS,
    "generate": "generate --set 1/1:/7=9 --max-new-tokens 6" + IDS,
    "generate_drawn": "generate --temperature 1.5 --seed 3 --max-new-tokens 6" + IDS,
    "patch": "patch w5_w6_w7 w5_w9_w7 --target w7",
    "patch_heads": "patch w5_w6_w7 w5_w9_w7 --target w7 --minus w8 --sites head",
    "patch_estimated": "patch w5_w6_w7 w5_w9_w7 --target w7 --sites feature --method attribution",
    "patch.svg": "patch w5_w6_w7 w5_w9_w7 --target w7 --sites mlp -o patch.svg",
    "lens": "lens --kind logit --token w7 --last 2" + IDS,
    "lens_local": "lens --kind local --last 2" + IDS,
    "lens.svg": "lens --kind logit -o lens.svg" + IDS,
    "why": "why --not w8 --top 3" + IDS,
    "drive": "drive 1/7 --length 4 --budget 300 --seed 1",
    "direction": "direction pairs.jsonl --layer 1 --held-out 0.5 -o again.safetensors",
}
"""The same of a model's: it is loaded from two folders, and texts have `_` between words."""
AGENTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "mcp": [
        ("show", {"graph": "dallas.graph", "features": 3, "paths": 2}),
        ("node", {"graph": "dallas.graph", "node": "3_80_8", "top": 3}),
        ("node", {"graph": "dallas.graph", "node": "E_37_7"}),
        ("paths", {"graph": "dallas.graph", "count": 2, "sign": "suppressing"}),
        ("heads", {"graph": "heads.graph", "top": 3}),
        ("search", {"graph": "dallas.graph", "query": "TEXAS", "top": 2}),
        ("search", {"graph": "dallas.graph", "query": "nothing"}),
    ],
    "mcp_of_a_model": [
        ("trace", {"prompt": "w5 w6 w7", "name": "again.graph", "features": 2, "paths": 1,
                   "target": "w7", "minus": "w8"}),
        ("show", {"graph": "valid.graph", "features": 2, "paths": 1}),
        ("heads", {"graph": "again.graph", "top": 2}),
        ("intervene", {"graph": "again.graph", "changes": [{"node": "1_7_3", "value": 2.5}]}),
        ("intervene", {"graph": "again.graph", "changes": [{"node": "1_7_3", "scale": -2}],
                       "mode": "free"}),
        ("validate", {"graph": "again.graph"}),
    ],
}  # fmt: skip
"""What agents ask of the same graphs, and of the same model."""


def prepare(folder: Path) -> None:
    """Write the graphs that the commands read."""
    graph = dallas()
    graph.save(folder / "dallas.graph")
    random_graph(3, features=30).save(folder / "random.graph")
    small = graph.prune(0.7, 0.8)
    small.save(folder / "pruned.graph")
    across, stays = moving(graph.prune())
    heads = [(edge, edge % 3, edge % 4, 0.9) for edge in across] + [(stays[0], 1, 2, 0.5)]
    carried(graph.prune(), heads).save(folder / "heads.graph")
    ids = [row["id"] for row in small.nodes.to_pylist() if row["kind"] == "feature"]
    grouped = small.group("Texas", ids[:2]).group("capitals", ids[2:4])
    grouped.save(folder / "grouped.graph")
    measured = pa.table({"id": ids, "measured": np.linspace(-1, 1, len(ids))})
    with pa.ipc.new_file(
        str(folder / "grouped.graph" / "validation_features.arrow"), measured.schema
    ) as file:
        file.write_table(measured)
    written(folder / "many.graphs")


def prepare_models(folder: Path) -> None:
    """Write a model, texts, and what other commands made of them."""
    for name in ("model", "transcoders"):
        copytree(GOLDEN / name, folder / name)
    (folder / "corpus.txt").write_text("w5 w6 w7\n\nw9 w3 w12 w4\n\nw8 w8 w2\n", "utf-8")
    (folder / "prompts.txt").write_text("w5 w6 w7\nw9 w3 w12 w4\nw1 w2\n", "utf-8")
    words = [f"w{at} w{at + 1}" for at in range(3, 23)]
    pairs = [{"positive": f"{one} w7", "negative": f"{one} w30"} for one in words]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in pairs), "utf-8")
    run(WITH_MODELS["trace"].replace("again", "traced") + MODEL)
    copytree(folder / "traced.graph", folder / "valid.graph")
    copytree(folder / "traced.graph", folder / "headed.graph")
    run("heads headed.graph" + MODEL)
    run("validate valid.graph --corpus corpus.txt --draws 3" + MODEL)


def run(command: str) -> str:
    """What a command prints."""
    words = [word.replace("_", " ") if word.startswith("w") else word for word in command.split()]
    found = CliRunner().invoke(main, words, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def asked(name: str) -> str:
    """A command with its model, where it takes one."""
    command = WITH_MODELS[name]
    return command if command.startswith("show") else command + MODEL


def result(name: str) -> str:
    """What a command prints or writes, in a folder with what it reads."""
    printed = run(COMMANDS.get(name) or asked(name))
    return shorter(Path(name).read_text("utf-8") if "." in name else printed)


def answered(name: str) -> str:
    """What agents are told, one answer after another."""

    def load() -> ReplacementModel:
        return ReplacementModel.load("model", "transcoders", dtype="float64")

    tools = Tools(Root(Path()), load)
    return shorter("\n\n".join(tools.call(*call) for call in AGENTS[name]) + "\n")


def shorter(text: str) -> str:
    """Numbers of more digits than are the same on every processor to six, and mere rounding."""
    text = re.sub(r"-?\d+\.\d{7,}(e-?\d+)?", lambda found: f"{float(found[0]):.6g}", text)
    return re.sub(r"\b\d(\.\d+)?e-(0[7-9]|1\d)\b", "ROUNDING", text)


def helped(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The help of a command and of those below it, 80 letters wide."""
    name = " ".join(("tracer", *path))
    context = click.Context(command, info_name=name, terminal_width=80, show_default=True)
    yield command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from helped(below, (*path, name))


def help_of(name: str) -> str:
    """All of one command's help."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return "\n\n".join(helped(command, (name,))) + "\n"


def drawn() -> str:
    """Every chart, of a few numbers."""
    ragged: dict[str, list[float | None]] = {"one": [1.0, None, 3.5], "other": [0.25, -2.0, 0.5]}
    some = {"a": (0.1, 2.0), "a name that is longer than fits": (0.9, -1.0), "c": (0.4, 0.7)}
    cells = np.array([[1.0, -2.0], [np.nan, 0.25]])
    every = [
        charts.points("points", ("x", [0.0, 1.0, 4.0]), ("y", [-1.0, 2.0, 0.5])),
        charts.named_points("names", "x", "y", some, front=["a", "c"]),
        charts.lines("lines", ("step", [10.0, 20.0, 50.0]), "loss", ragged),
        charts.heat_map("cells", ["up", "down"], ["left", "right"], cells),
        charts.heat_map("said", ["r"], ["c", "d"], cells[:1], [["word", "a longer text"]]),
        charts.bars("bars", "count", [0.0, 1.0, 2.0, 4.0], [3, 0, 5], "size"),
    ]
    return "\n".join(every) + "\n"


@pytest.fixture(scope="module", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("printed") / "here"
    folder.mkdir()
    with chdir(folder):
        prepare(Path())
        yield


@pytest.fixture(scope="module")
def models() -> None:
    prepare_models(Path())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_or_draws_what_was_looked_at(name: str):
    assert result(name) == (PRINTED / _file(name)).read_text("utf-8")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", WITH_MODELS)
def test_a_command_that_runs_a_model_prints_or_draws_what_was_looked_at(name: str):
    assert result(name) == (PRINTED / _file(name)).read_text("utf-8")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", AGENTS)
def test_agents_are_told_what_was_looked_at(name: str):
    assert answered(name) == (PRINTED / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", COMMANDS_OF_TRACER)
def test_the_help_of_a_command_is_what_was_looked_at(name: str):
    assert help_of(name) == (PRINTED / f"help_{name}.txt").read_text("utf-8")


def test_charts_are_drawn_as_they_were_looked_at():
    assert drawn() == (PRINTED / "charts.svg.txt").read_text("utf-8")


def _file(name: str) -> str:
    return name if "." in name else f"{name}.txt"


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    PRINTED.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch, chdir(scratch):
        Path("here").mkdir()
        os.chdir("here")
        prepare(Path())
        prepare_models(Path())
        for one in sys.argv[1:] or AGENTS:
            if one in AGENTS:
                (PRINTED / f"{one}.txt").write_text(answered(one), "utf-8")
        for one in (set(sys.argv[1:]) - set(AGENTS)) or {**COMMANDS, **WITH_MODELS}:
            (PRINTED / _file(one)).write_text(result(one), "utf-8")
        (PRINTED / "charts.svg.txt").write_text(drawn(), "utf-8")
        for one in COMMANDS_OF_TRACER:
            (PRINTED / f"help_{one}.txt").write_text(help_of(one), "utf-8")
