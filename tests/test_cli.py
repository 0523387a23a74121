"""The command line as a user meets it."""

import dataclasses
import inspect
import io
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from rich.progress import Progress
from transformers.utils import logging

from graphs import AttributionGraph, GraphError
from graphs.attention_tables import COLUMNS
from graphs.exchange.tables import WRITERS
from graphs.pictures.render import FORMATS
from tests.graph_samples import random_graph
from tracer.attribution import native
from tracer.commands import COMMANDS, main, monitor
from tracer.commands.group import Group
from tracer.commands.options import feature_value
from tracer.commands.progress import progress
from tracer.commands.tables import print_table, row_name
from tracer.commands.trace import slug

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "llama_gqa_clt"
SMALL = ["--model", str(GOLDEN / "model"), "--transcoders", str(GOLDEN / "transcoders")]
IDS = ["--tokens", "1,7,12,30,5", *SMALL]


def run(*arguments: str) -> Result:
    """What a command answers; an exception that would be a traceback is raised here."""
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: str) -> str:
    """Run a command that works and return what it prints to stdout."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    """Run a command that must be refused in one line and return that line."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("Error: ").rstrip("\n")


def present() -> list[str]:
    """Names in the current folder."""
    return sorted(path.name for path in Path().iterdir())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder and must reach no network."""

    def no_network(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A graph on disk."""
    path = tmp_path_factory.mktemp("graphs") / "random.graph"
    random_graph(0).save(path)
    return str(path)


def command_of(name: str) -> click.Command:
    """One of the commands, imported."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def defaults(command: str) -> dict[str, Any]:
    """Option -> its value where the user gives none."""
    arguments = {
        **{name: [] for name in ("trace", "intervene", "generate", "evaluate", "mcp")},
        **{
            name: ["x"]
            for name in ("show", "validate", "view", "label", "drive", "aggregate", "cluster")
        },
        **{name: ["x"] for name in ("stability", "triage", "match")},
        "monitor": ["x", "--features", "x"],
        "why": ["x", "--not", "x"],
        **{name: ["x", "x"] for name in ("convert", "compare")},
        "patch": ["x", "x", "--target", "x"],
    }
    needed = arguments.get(command, ["x", "-o", "x"])
    return command_of(command).make_context(command, needed).params


def python_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    parameters = inspect.signature(function).parameters.values()
    return {item.name: item.default for item in parameters if item.default is not empty}


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (GraphError("edge 1 -> 0\nruns backward"), 2, "Error: edge 1 -> 0 runs backward\n"),
        (
            OSError(28, "No space left on device", "a.graph"),
            2,
            "Error: a.graph: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "Error: interrupted\n"),
        (KeyError("x"), 1, ""),
        (OSError("not from the system"), 1, ""),
    ],
)
def test_only_what_a_user_can_mend_becomes_one_line(error: BaseException, code: int, shown: str):
    def fail() -> None:
        raise error

    group = Group("main", commands={"fail": click.Command("fail", callback=fail)})
    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.output) == (code, shown)


def test_trace_has_the_defaults_of_the_python_functions():
    import tracer
    from replacement_models import ReplacementModel

    shown = defaults("trace")
    expected = python_defaults(tracer.trace) | python_defaults(tracer.trace_many)
    assert shown.pop("prompts") is None
    assert shown.pop("target") == ()
    assert shown.pop("minus") is None
    assert shown.pop("target_direction") == ()
    assert expected.pop("targets") is None
    for name in ("progress", "keep_partial", "on_estimate", "on_graph", "on_recording"):
        del expected[name]
    loaded = python_defaults(ReplacementModel.load)
    named = ("name", "transcoders", "device", "dtype", "lazy", "elsewhere", "device_map")
    expected |= {name: loaded[name] for name in named}
    assert {name: shown[name] for name in expected} == expected
    assert set(shown) - set(expected) == {"prompt", "tokens", "output"}


def test_intervene_has_the_default_mode_of_the_python_function():
    import tracer

    shown = defaults("intervene")
    assert shown["mode"] == python_defaults(tracer.intervene)["mode"]


@pytest.mark.parametrize("command", ["prune", "render", "export"])
def test_pruning_commands_have_the_defaults_of_prune(command: str):
    shown = defaults(command)
    expected = python_defaults(AttributionGraph.prune)
    assert {name: shown[name] for name in expected} == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_holds_where_an_option_is_left_out(command: str):
    found = command_of(command)
    context = click.Context(found, show_default=True)
    plain = {"tokens", "value", "scale", "add"}
    """Beside PROMPT, or changes of which there are none."""
    for option in found.params:
        if isinstance(option, click.Option) and option.name not in plain:
            record = option.get_help_record(context)
            assert record is not None
            assert re.search(r"\[(default: .+|required)\]$", record[1]), option.name


@pytest.mark.parametrize(
    ("command", "suffixes"),
    [("render", [".dot", *(f".{form}" for form in FORMATS)]), ("export", list(WRITERS))],
)
def test_help_names_every_kind_of_file(command: str, suffixes: list[str]):
    text = succeed(command, "--help")
    for suffix in suffixes:
        assert suffix in text
        line = refused("trace", *IDS, "-o", f"a{suffix}")
        assert line.endswith(f"tracer {command} makes {suffix} files of it")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_every_default(command: str):
    text = succeed(command, "--help")
    assert f"Example:\n    tracer {command} " in text
    flat = " ".join(text.split())
    for name, value in defaults(command).items():
        flag = value is False  # says so itself
        if isinstance(value, int | float | str) and value != "x" and not flag:
            shown = name.replace("_", "-") if value is True else value
            assert f"[default: {shown}" in flat, name


def test_trace_writes_the_whole_graph_and_says_where():
    text = succeed("trace", *IDS, "-o", "small.graph")
    graph = AttributionGraph.load("small.graph")
    assert "pruned" not in graph.metadata
    assert f"{graph.effect.nnz} edges" in text
    assert f"replacement score\t{graph.scores.replacement:.4f}" in text
    assert f"completeness score\t{graph.scores.completeness:.4f}" in text
    assert "conservation error\tat worst" in text
    logit = next(node for node in graph.nodes.to_pylist() if node["kind"] == "logit")
    likeliest = f'"{logit["text"]}"\t{logit["probability"]:.4g}\n'
    assert f"next token\tprobability\n{likeliest}" in text
    assert lines_of_paths(text, 10) == list(map(graph.describe, graph.paths(10)))
    assert text.endswith("Saved small.graph. To draw it: tracer render small.graph -o small.svg\n")


def test_a_capped_graph_says_what_the_cap_left_out_and_both_scores():
    text = succeed("trace", *IDS, "--max-features", "3", "-o", "few.graph")
    scores = AttributionGraph.load("few.graph").scores
    among = scores.among_nodes
    assert 0 < scores.uncovered < 1
    lines = (
        f"replacement score\t{scores.replacement:.4f} "
        f"({among.replacement:.4f} among the nodes kept)\n",
        f"completeness score\t{scores.completeness:.4f} "
        f"({among.completeness:.4f} among the nodes kept)\n",
    )
    beyond = f"uncovered\t{scores.uncovered:.4f} of the influence ends in features beyond "
    for line in (*lines, beyond + "--max-features\n"):
        assert line in text
        assert line in succeed("show", "few.graph")
    succeed("prune", "few.graph", "-o", "small.graph", "--nodes", "0.5")
    assert beyond in succeed("show", "small.graph")


def test_the_scores_of_the_linear_skip_alone_stand_beside_those_with_features(saved: str):
    graph = AttributionGraph.load(saved)
    assert "skip alone" not in succeed("show", saved)
    bare = {"replacement": 0.25, "completeness": None}
    graph = dataclasses.replace(graph, metadata=graph.metadata | {"skip_alone": bare})
    graph.save("skip.graph")
    text = succeed("show", "skip.graph")
    score = f"{graph.scores.replacement:.4f} (0.2500 with the linear skip alone)"
    assert f"replacement score\t{score}\n" in text
    assert text.count("skip alone") == 1


def lines_of_paths(text: str, count: int) -> list[str]:
    """The paths printed, less the line that explains an arrow among them."""
    first, *rest = text.split("carries\n")[1].splitlines()
    explained = first == "(⊣ inhibits: the effect is negative)"
    paths = rest[:count] if explained else [first, *rest][:count]
    assert explained == any("⊣" in path for path in paths)
    return paths


def test_the_arrow_of_inhibition_is_explained_where_it_is_printed(saved: str):
    graph = AttributionGraph.load(saved)
    inhibits = ["⊣" in graph.describe(path) for path in graph.paths(50)]
    first = inhibits.index(True)
    explained = "carries\n(⊣ inhibits: the effect is negative)\n"
    assert first > 0
    assert explained not in succeed("show", saved, "--paths", str(first))
    assert explained in succeed("show", saved, "--paths", str(first + 1))


def test_a_trace_runs_the_model_once(monkeypatch: pytest.MonkeyPatch):
    from transformers import LlamaForCausalLM

    passes = []
    whole = LlamaForCausalLM.forward

    def forward(self: Any, *inputs: Any, **settings: Any) -> Any:
        passes.append(settings["input_ids"].shape)
        return whole(self, *inputs, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    succeed("trace", *IDS, "-o", "a.graph", "--position", "3")
    assert passes == [(1, 4)]


def test_the_worst_row_is_named_in_words():
    graph = random_graph(0)
    feature = next(row for row in graph.nodes.to_pylist() if row["kind"] == "feature")
    logit = next(row for row in graph.nodes.to_pylist() if row["kind"] == "logit")
    place = f"feature L{feature['layer']}/{feature['feature']}"
    token = graph.metadata["tokens"][feature["position"]].strip()
    label = feature["label"].rpartition(" · ")[0]
    assert row_name(graph, feature["id"]) == f"{place} ({label}) at “{token}”"
    assert row_name(graph, logit["id"]) == f"logit “{logit['text'].strip()}”"
    assert row_name(graph, "7_999_1").startswith("feature L7/999 at “")
    assert row_name(graph, "7_999_99") == "feature L7/999 at 99"
    text = succeed("trace", *IDS, "-o", "a.graph")
    worst = AttributionGraph.load("a.graph").metadata["conservation"]["node"]
    assert row_name(AttributionGraph.load("a.graph"), worst) in text
    assert row_name(AttributionGraph.load("a.graph"), worst) in succeed("show", "a.graph")
    assert f" {worst}\n" not in text


def test_a_model_alone_is_told_what_its_transcoders_may_be():
    line = refused("trace", "hi", *SMALL[:2])
    assert line.startswith(f"--model {SMALL[1]} needs --transcoders: the folder or hub id of a set")
    assert "or neurons for the model's own" in line


def test_options_reach_the_engine():
    options = (
        "--max-features 9 --rank-every 2 --max-logits 3 --logit-mass 0.5 --position 3 "
        "--skip-positions 2 --edge-floor 0.001 --recompute-patterns --dtype float64"
    )
    succeed(
        "trace",
        *IDS,
        "-o",
        "a.zip",
        *options.split(),
        "--skip-positions",
        "2",
        "--dtype",
        "float64",
    )
    graph = AttributionGraph.load("a.zip")
    assert graph.metadata["settings"] == {
        "max_features": 9, "rank_every": 2, "max_logits": 3, "logit_mass": 0.5, "targets": None,
        "position": 3, "skip_positions": 2, "edge_floor": 0.001,
        "recompute_patterns": True, "split_products": False, "dtype": "float64", "device": "cpu",
    }  # fmt: skip
    assert str(graph.effect.dtype) == "float64"


def test_a_trace_that_does_not_fit_is_refused_in_one_line():
    line = refused("trace", *IDS, "-o", "a.graph", "--memory-limit", "1e-6")
    assert line.startswith("memory: the trace needs about ")
    assert "but 1e-06 GB are allowed (--memory-limit)" in line
    assert present() == []
    succeed("trace", *IDS, "-o", "a.graph", "--memory-limit", "inf")


def test_a_command_leaves_the_logging_of_transformers_as_it_was():
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    succeed("trace", *IDS, "-o", "a.graph")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_split_products_that_cannot_be_had_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(native, "missing", lambda: "the processor has no amx_bf16")
    line = refused("trace", *IDS, "-o", "a.graph", "--split-products")
    assert line == "split_products: the processor has no amx_bf16; leave the option out"
    assert present() == []


def test_the_progress_of_a_trace_says_what_memory_it_takes(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []

    @contextmanager
    def progress(what: str) -> Iterator[Callable[..., None]]:
        yield lambda done, total, what=None: told.append(what or "")

    monkeypatch.setattr("tracer.commands.trace.progress", progress)
    succeed("trace", *IDS, "-o", "a.graph")
    assert re.fullmatch(r"Explaining features \(memory: about [\d.]+ GB\)", told[0])


def test_what_an_edge_floor_dropped_is_shown():
    assert "below the edge floor" not in succeed("trace", *IDS, "-o", "a.graph")
    text = succeed("trace", *IDS, "-o", "a.graph", "--edge-floor", "0.01")
    share = AttributionGraph.load("a.graph").metadata["floored_share"]
    assert f"below the edge floor\t{share:.2%} of all absolute effects\n" in text
    assert f"{share:.2%}" in succeed("show", "a.graph")


def test_targets_may_be_tokens_or_differences():
    succeed("trace", *IDS, "-o", "a.graph", "--target", "w5", "--target", "w6")
    kinds = AttributionGraph.load("a.graph").nodes.to_pylist()
    assert [node["text"] for node in kinds if node["kind"] == "logit"] == ["w5", "w6"]
    text = succeed("trace", *IDS, "-o", "a.graph", "--target", "w5", "--minus", "w6")
    assert 'explained\t"w5 − w6" 1\n' in text


def test_the_output_is_named_after_the_prompt():
    assert "Saved w7-w12.graph." in succeed("trace", "w7 w12", *SMALL)
    assert "Saved tokens-1-7.graph." in succeed("trace", "--tokens", "1,7", *SMALL)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The capital of Texas, is", "the-capital-of-texas-is"),
        ("../../etc/passwd", "etc-passwd"),
        ("Straße in 東京", "straße-in-東京"),
        ("🙂 !?", "prompt"),
        ("x" * 300, "x" * 60),
        ("東" * 300, "東" * 60),
        ("\udcff", "prompt"),
    ],
)
def test_a_slug_is_a_plain_short_file_name(prompt: str, name: str):
    assert slug(prompt) == name


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "expected PROMPT or --tokens, got neither"),
        (["hi", "--tokens", "1"], "expected PROMPT or --tokens, got both"),
        (["--tokens", ""], "'' is not a list of token ids such as 1,7,12"),
        (["--tokens", "1,,2"], "'1,,2' is not a list of token ids"),
        (["--tokens", "1,-2"], "'1,-2' is not a list of token ids"),
        (["", *SMALL], "empty"),
        (["  ", *SMALL], "empty"),
        (["w7 \udcff", *SMALL], "Unicode"),
        (["--tokens", "1,40", *SMALL], "token id 40"),
        (["--tokens", ",".join(["1"] * 500), *SMALL], "500 tokens"),
        ([*IDS, "--max-logits", "0"], "'--max-logits': 0 is not in the range 1<=x<="),
        ([*IDS, "--max-features", "-1"], "'--max-features': -1 is not in the range 0<=x<="),
        ([*IDS, "--rank-every", "0"], "'--rank-every': 0 is not in the range 1<=x<="),
        ([*IDS, "--logit-mass", "0"], "'--logit-mass'"),
        ([*IDS, "--logit-mass", "1.5"], "'--logit-mass'"),
        ([*IDS, "--logit-mass", "nan"], "nan"),
        ([*IDS, "--skip-positions", "-1"], "'--skip-positions'"),
        ([*IDS, "--edge-floor", "1"], "'--edge-floor': 1.0 is not in the range 0<=x<1"),
        ([*IDS, "--edge-floor", "nan"], "nan"),
        ([*IDS, "--position", "5"], "position is 5"),
        ([*IDS, "--position", "-6"], "position is -6"),
        ([*IDS, "--position", "x"], "'x' is not a valid integer"),
        ([*IDS, "--target", "no such token"], "no such token"),
        ([*IDS, "--target", "w5w6"], "w5w6"),
        ([*IDS, "--target", ""], "target"),
        ([*IDS, "--minus", "w5"], "--minus needs a --target"),
        ([*IDS, "--target", "w5", "--minus", "no such token"], "no such token"),
        ([*IDS, "--dtype", "float16"], "'float16' is not one of"),
        ([*IDS, "--device", "toaster"], "toaster"),
        ([*IDS, "--device", "cuda:99"], "cuda:99"),
        ([*IDS, "--colour"], "No such option"),
        ([*IDS, "-o", "a.svg"], "tracer render makes .svg files"),
        ([*IDS, "-o", "a.json"], "tracer export makes .json files"),
        ([*IDS, "-o", "none/a.graph"], "there is no folder"),
        ([*IDS, "-o", "/dev/null"], "it exists and is no graph"),
        ([*IDS, "-o", "/proc/a.graph"], "cannot write /proc/a.graph"),
        (["hi", "--model", "none"], "none"),
        (["hi", "--transcoders", "none"], "none"),
        (["hi", "--model", str(GOLDEN / "model")], "transcoders"),
        (["hi", "--transcoders", str(GOLDEN / "transcoders")], "model"),
        (["hi", "--model", str(GOLDEN / "transcoders"), *SMALL[2:]], "config.json"),
        (["hi", *SMALL[:2], "--transcoders", str(GOLDEN / "model")], "no transcoder"),
    ],
)  # fmt: skip
def test_trace_refuses_in_one_line_and_writes_nothing(arguments: list[str], shown: str):
    assert shown in refused("trace", *arguments)
    assert not present()


@pytest.mark.parametrize("name", ["a.graph", "a.zip", "folder", "folder.zip"])
def test_trace_overwrites_no_more_than_a_graph(name: str):
    place = Path(name)
    if name.startswith("folder"):
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    else:
        place.write_text("years of work")
    assert "it exists and is no graph" in refused("trace", *IDS, "-o", name)
    assert "it exists and is no graph" in refused("prune", "nothing", "-o", name)
    left = place / "thesis.txt" if place.is_dir() else place
    assert left.read_text() == "years of work"
    assert present() == [name]


@pytest.mark.parametrize("name", ["a.graph", "a.zip"])
def test_an_earlier_graph_is_replaced(name: str):
    random_graph(1).save(name)
    succeed("trace", *IDS, "-o", name)
    assert AttributionGraph.load(name).metadata["tokens"][1] == "w7"
    assert present() == [name]


def test_a_trace_interrupted_early_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    import tracer

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracer, "trace", interrupt)
    result = run("trace", *IDS)
    assert (result.exit_code, result.stderr) == (130, "Error: interrupted\n")
    assert not present()


def test_a_trace_interrupted_late_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch):
    import tracer

    whole = tracer.trace

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    succeed("trace", *IDS, "-o", "a.graph")
    before = AttributionGraph.load("a.graph")
    limited = ["--max-features", "60", "--rank-every", "20"]
    monkeypatch.setattr(tracer, "trace", lambda *a, **b: whole(*a, **b | {"progress": interrupt}))
    result = run("trace", *IDS, *limited, "-o", "a.graph")
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted; a.partial.graph holds what was finished\n"
    assert present() == ["a.graph", "a.partial.graph"]
    assert AttributionGraph.load("a.graph").nodes.equals(before.nodes)
    shown = succeed("show", "a.partial.graph")
    assert "partial\tinterrupted before every feature was explained\n" in shown
    assert "of the influence ends in features not reached when interrupted\n" in shown


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    import tracer

    monkeypatch.setattr(tracer, "trace", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("trace", *IDS)


def test_show_prints_scores_features_and_paths(saved: str):
    graph = AttributionGraph.load(saved)
    text = succeed("show", saved, "--features", "3", "--paths", "4")
    for score in (graph.scores.replacement, graph.scores.completeness):
        assert f"\t{score:.4f}\n" in text
    head = text.split("strongest paths")[0]
    assert lines_of_paths(text, 4) == [graph.describe(path) for path in graph.paths(4)]
    features = [node for node in graph.nodes.to_pylist() if node["kind"] == "feature"]
    best = max(features, key=lambda node: node["influence"])
    assert f"{best['layer']}/{best['position']}/{best['feature']}\t" in head
    assert best["label"] in head


def test_show_imports_nothing_that_takes_long_and_is_not_needed(saved: str):
    slow = {"torch", "networkx", "pyarrow.parquet", "scipy.sparse.linalg"}
    code = (
        f"import sys; from tracer.commands import main; "
        f"main(['show', {saved!r}], standalone_mode=False); "
        f"sys.exit(bool({slow} & {{*sys.modules}}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_pruned_graph_is_written_and_the_rest_counted(saved: str):
    result = run("prune", saved, "-o", "small.graph", "--nodes", "0.5", "--edges", "0.9")
    graph, small = AttributionGraph.load(saved), AttributionGraph.load("small.graph")
    assert result.exit_code == 0
    assert small.nodes.equals(graph.prune(0.5, 0.9).nodes)
    kept = f"{small.nodes.num_rows} of {graph.nodes.num_rows} nodes"
    assert result.stderr.startswith(
        f"Kept {kept} and {small.effect.nnz} of {graph.effect.nnz} edges"
    )
    assert "pruned" in AttributionGraph.load("small.graph").metadata


@pytest.mark.parametrize("suffix", ["json", "graphml", "csv"])
def test_exports_are_pruned_unless_asked(saved: str, suffix: str):
    succeed("export", saved, "-o", f"part.{suffix}")
    succeed("export", saved, "-o", f"all.{suffix}", "--nodes", "1", "--edges", "1")
    assert 0 < Path(f"part.{suffix}").stat().st_size < Path(f"all.{suffix}").stat().st_size


@pytest.mark.parametrize(
    "command", ["prune none", "group none", "import none.json", "trace --model none", "why --not b"]
)
def test_a_place_that_takes_no_graph_is_refused_before_anything_is_read(command: str):
    prompt = ["a"] if command.startswith(("trace", "why")) else []
    said = refused(*command.split(), *prompt, "-o", "a.svg")
    assert said.startswith("cannot write a.svg: a graph is a folder or .zip")
    assert refused(*command.split(), *prompt, "-o", "no/a.graph").startswith("cannot write no/a.")


def test_what_is_said_beside_a_result_is_no_part_of_it(saved: str):
    for command, name in (
        ("export", "a.json"),
        ("prune", "a.graph"),
        ("render", "a.dot"),
        ("render --summary", "b.dot"),
    ):
        result = run(*command.split(), saved, "-o", name)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"Saved {name}\n"
        assert result.stderr.startswith("Kept ")


def test_validation_draws_as_it_was_told_to(saved: str, monkeypatch: pytest.MonkeyPatch):
    import tracer

    given: dict[str, Any] = {}

    def validate(*_: Any, **options: Any) -> Any:
        given.update(options)
        raise tracer.TraceError("enough")

    monkeypatch.setattr(tracer, "validate", validate)
    assert refused("validate", saved, *SMALL, "--draws", "7", "--seed", "11") == "enough"
    assert (given["draws"], given["seed"]) == (7, 11)


def test_progress_on_a_terminal_knows_its_end_when_it_is_told(monkeypatch: pytest.MonkeyPatch):
    bars: list[Progress] = []

    class Seen(Progress):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            bars.append(self)

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("rich.progress.Progress", Seen)
    with progress("Reading [1/2]") as advance:
        [task] = bars[0].tasks
        assert task.total is None
        advance(3, 10, "Reading [2/2]")
        [task] = bars[0].tasks
        assert (task.completed, task.total) == (3, 10)
        assert task.description == "Reading [2/2]"


def test_progress_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("Reading") as advance:
        advance(1, 2)
    printed = capsys.readouterr()
    assert not printed.out
    assert "Reading" in printed.err


def test_a_monitor_says_every_ten_seconds_how_fast_it_goes(monkeypatch: pytest.MonkeyPatch):
    now, said = [0.0], list[str]()
    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(monitor, "say", lambda text, err: said.append(text))
    with monitor.Throughput() as told:
        for now[0] in (4.0, 9.5, 10.0, 15.0, 19.5, 20.0):
            told.add(30)
    assert [text.split(" s:")[0] for text in said] == [
        "3 texts, 90 tokens in 10.0",
        "6 texts, 180 tokens in 20.0",
        "6 texts, 180 tokens in 20.0",
    ]


def test_numbers_are_taken_as_far_as_tables_hold_them(saved: str):
    assert "Saved" not in succeed("show", saved, "--features", str(2**31 - 1))
    for number in (2**31, 2**31 + 1, -1):
        result = run("show", saved, "--features", str(number))
        assert result.exit_code == 2
        assert f"{number} is not in the range 0<=x<=2147483647" in result.stderr


def test_a_picture_is_drawn_pruned(saved: str):
    result = run("render", saved, "-o", "a.dot")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Kept ")
    assert result.stdout == "Saved a.dot\n"
    assert Path("a.dot").read_text(encoding="utf-8").startswith("digraph")


def test_a_picture_draws_the_strongest_edges_and_says_so(saved: str):
    usual = python_defaults(AttributionGraph.render)["edges"]
    assert f"[default: ({usual}, or all" in " ".join(succeed("render", "--help").split())
    graph = AttributionGraph.load(saved)
    few = run("render", saved, "-o", "few.dot", "--max-edges", "7")
    assert "Drew the 7 most influential edges" in few.stderr
    assert Path("few.dot").read_text(encoding="utf-8") == graph.prune().to_dot(edges=7)
    whole = run("render", saved, "-o", "all.dot", "--nodes", "1", "--edges", "1")
    assert "Drawing" not in whole.stderr
    assert Path("all.dot").read_text(encoding="utf-8") == graph.to_dot(edges=None)


def test_a_picture_without_graphviz_is_refused(saved: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert "raphviz" in refused("render", saved, "-o", "a.svg")
    assert not present()


def test_heads_colour_a_picture_once_they_are_known(saved: str):
    said = refused("render", saved, "-o", "a.dot", "--heads")
    assert f"run tracer heads {saved} first" in said
    assert not present()
    assert "--summary" in refused("render", saved, "-o", "a.dot", "--heads", "--summary")
    graph = AttributionGraph.load(saved)
    ids, position = (graph.nodes[name].to_pylist() for name in ("id", "position"))
    ends = zip(*(graph.edges[name].to_pylist() for name in ("source", "target")), strict=True)
    moved = [(ids[s], ids[t]) for s, t in ends if position[s] != position[t]]
    row = {"edge": "__".join(moved[0]), "layer": 1, "head": 2, "query": None, "key": None}
    kinds = COLUMNS["heads"].items()
    row["loading"] = float(graph.effect[ids.index(moved[0][1]), ids.index(moved[0][0])])
    table = pa.table({name: pa.array([row[name]], kind) for name, kind in kinds})
    graph.with_tables({"heads": table}).save("told.graph")
    shown = run("render", "told.graph", "-o", "a.dot", "--heads", "--nodes", "1", "--edges", "1")
    assert f"{len(moved) - 1} edges between positions are not split over heads" in shown.stderr
    assert "head 1.2" in Path("a.dot").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["render", "export"])
@pytest.mark.parametrize(("name", "shown"), [("a.gif", ".gif"), ("a", "a"), ("none/a.dot", "none")])
def test_a_bad_file_name_is_refused(saved: str, command: str, name: str, shown: str):
    name = name.replace(".dot", ".json") if command == "export" else name
    assert shown in refused(command, saved, "-o", name)
    assert not present()


@pytest.mark.parametrize("command", ["show", "prune", "render", "export"])
def test_what_is_no_graph_is_refused(command: str):
    Path("empty").mkdir()
    Path("text").write_text("no graph")
    Path("torn").mkdir()
    random_graph(0).save("torn")
    Path("torn/nodes.arrow").write_bytes(Path("torn/nodes.arrow").read_bytes()[:999])
    output = {"show": [], "render": ["-o", "a.dot"], "export": ["-o", "a.json"]}
    before = present()
    for name in ("missing", "empty", "text", "torn"):
        assert name in refused(command, name, *output.get(command, ["-o", "a.graph"]))
    assert present() == before


@pytest.mark.parametrize("flag", ["--nodes", "--edges"])
@pytest.mark.parametrize("share", ["0", "-1", "1.1", "nan", "x"])
def test_a_share_outside_0_to_1_is_refused(saved: str, flag: str, share: str):
    assert flag[2:] in refused("prune", saved, "-o", "a.graph", flag, share)
    assert not present()


@pytest.mark.parametrize("mode", ["direct", "free"])
def test_intervening_prints_the_answers_and_responses_of_the_python_function(mode: str):
    import tracer
    from replacement_models import ReplacementModel

    model = ReplacementModel.load(SMALL[1], SMALL[3])
    ids = [1, 7, 12, 30, 5]
    found = model.record(ids).features
    layer, feature = 0, int(found.feature[found.layer == 0][-1])
    text = succeed("intervene", *IDS, "--set", f"{layer}/1:/{feature}=3", "--mode", mode)
    wanted = tracer.Intervention(layer=layer, position=slice(1, None), feature=feature, value=3.0)
    change = tracer.intervene(model, ids, [wanted], mode)
    likeliest = [state.logits[-1].softmax(-1).max(-1) for state in (change.base, change)]
    line = "\t".join(f'"w{top.indices}"\t{top.values:.4g}' for top in likeliest)
    assert text.startswith(f"before\tprobability\tafter\tprobability\n{line}\n")
    response = (change.activations - change.base.activations).abs()
    strongest = "/".join(map(str, (response == response.max()).nonzero()[0].tolist()))
    assert text.split("feature\tat\tbefore\tafter\n")[1].startswith(f"{strongest}\t")
    changed = ("--set", f"{layer}/1:/{feature}=3", "--mode", mode, "--patterns")
    shown = succeed("intervene", *IDS, *changed).removeprefix(text)
    if mode == "direct":
        assert shown.startswith("no attention changes\n")
    else:
        seen = tracer.intervene(model, ids, [wanted], mode, patterns=True)
        pairs = zip(seen.patterns, seen.base.patterns, strict=True)
        moved = max(float((after - before).abs().max()) for after, before in pairs)
        _, _, _, was, now = shown.split("before\tafter\n")[1].split("\n")[0].split("\t")
        assert abs(float(now) - float(was)) == pytest.approx(moved, rel=1e-2, abs=2e-4)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("2/7/311=0", (2, 7, 311, 0.0)),
        ("0/-1/5=-1.5e3", (0, -1, 5, -1500.0)),
        ("1/2:5/3=1", (1, slice(2, 5), 3, 1.0)),
        ("1/:/3=1", (1, slice(None, None), 3, 1.0)),
        ("1/-2:/3=1", (1, slice(-2, None), 3, 1.0)),
    ],
)
def test_a_change_names_layer_position_feature_and_number(text: str, place: tuple[Any, ...]):
    assert feature_value(text) == place


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "expected --set, --scale or --add, --steer or --remove"),
        (["--set", "1/2=3"], "'1/2=3' is not L/P/F=X"),
        (["--set", "1/2/3"], "is not L/P/F=X"),
        (["--set", "-1/2/3=0"], "is not L/P/F=X"),
        (["--set", "1/2/3=x"], "is not L/P/F=X"),
        (["--add", "1/2/3=nan"], "is not L/P/F=X"),
        (["--add", "1/2/3=1e999"], "is not L/P/F=X"),
        (["--set", "9/2/3=0"], "layer"),
        (["--set", "1/99/3=0"], "position"),
        (["--scale", "1/2/9999=2"], "feature"),
        (["--set", "1/2/3=0", "--mode", "wild"], "'wild' is not one of"),
    ],
)
def test_a_bad_change_is_refused(arguments: list[str], shown: str):
    assert shown in refused("intervene", *IDS, *arguments)


def test_a_terminal_gets_an_aligned_table_that_shows_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_table(("token", "p"), [("[bold]", 0.123456), (":smile:", 1.0)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["token", "p"],
        ["[bold]", "0.1235"],
        [":smile:", "1"],
        [],
    ]


def test_validate_stores_and_prints_what_show_shows():
    graph = traced()
    said = succeed("validate", graph, *SMALL, "--corpus", corpus(), "--draws", "2")
    assert "Spearman, influence" in said
    assert "circuit keeps" in said
    assert "validation_circuits.svg" in said
    assert {"validation_features.arrow", "validation_responses.svg"} <= {
        path.name for path in Path(graph).iterdir()
    }
    table = said[: said.index("\n\n")]
    assert table in succeed("show", graph)
    assert "not measured: needs a corpus" in succeed("validate", graph, *SMALL)


def test_a_verdict_stands_first_and_all_is_said_in_about_thirty_lines():
    graph = traced()
    assert not succeed("show", graph).startswith("verdict")
    said = succeed("validate", graph, *SMALL, "--corpus", corpus(), "--draws", "2")
    assert said.startswith("verdict\tKept alone, this circuit ")
    assert len(said.splitlines()) <= 32
    assert succeed("show", graph).startswith(said[: said.index("\n\n")])
    assert "scrubbing\t-\t-\tnot measured: needs hypotheses" in said


def test_validate_refuses_in_one_line():
    graph = traced()
    assert "load the model it was traced from" in refused("validate", graph, *OTHER)
    succeed("prune", graph, "-o", "small.graph")
    assert "graph is pruned" in refused("validate", "small.graph", *SMALL)
    assert "missing.txt" in refused("validate", graph, *SMALL, "--corpus", "missing.txt")


OTHER = [part.replace("llama_gqa_clt", "gpt2_plt") for part in SMALL]


def traced() -> str:
    """A graph of the small model."""
    succeed("trace", *IDS, "-o", "traced.graph")
    return "traced.graph"


def corpus() -> str:
    """Two prompts in a file."""
    Path("corpus.txt").write_text("w5 w6 w7\n\nw9 w3 w12 w4\n", encoding="utf-8")
    return "corpus.txt"


def test_intervene_constrains_and_freezes_as_told():
    change = [*IDS, "--set", "1/3/7=2.5"]
    clamped = succeed("intervene", *change, "--mode", "constrained", "--layers", "1:3")
    recomputed = ["--mode", "constrained", "--layers", "1:3", "--recompute-attention"]
    assert clamped != succeed("intervene", *change, *recomputed)
    free = succeed("intervene", *change, "--mode", "free")
    assert free != succeed("intervene", *change, "--mode", "free", "--freeze-norms")
    outside = ["--mode", "constrained", "--layers", "2:3"]
    assert "outside the constrained layers" in refused("intervene", *change, *outside)
    assert "is not A:B" in refused("intervene", *change, "--layers", "2")


def test_generate_continues_twice():
    said = succeed("generate", *IDS, "--set", "1/1:/7=9", "--max-new-tokens", "4")
    assert [line.split("\t")[0] for line in said.splitlines() if line] == ["as it is", "changed"]
    same = succeed("generate", *IDS, "--max-new-tokens", "4").splitlines()
    assert same[0].split("\t")[1] == same[1].split("\t")[1]
    assert "reads at most" in refused("generate", *IDS, "--max-new-tokens", "999")


def test_patch_prints_a_table_and_draws_a_heat_map():
    prompts = ["w5 w6 w7", "w5 w9 w7", *SMALL, "--target", "w7"]
    said = succeed("patch", *prompts, "-o", "map.svg")
    assert said.splitlines()[0].startswith("layer\tposition\tindex\tbefore")
    assert Path("map.svg").read_text(encoding="utf-8").startswith("<svg")
    heads = succeed(
        "patch", *prompts, "--minus", "w8", "--sites", "head", "--method", "attribution"
    )
    assert heads != said
    assert "needs as many of each" in refused("patch", "w5 w6", *prompts[1:])
    assert "expected a suffix of .svg" in refused("patch", *prompts, "-o", "map.png")


def test_products_are_taken_from_a_graph_that_records_them(tmp_path: Path):
    from graphs import AttributionGraph

    first, second = tmp_path / "first.graph", tmp_path / "second.graph"
    succeed("trace", *IDS, "-o", str(first))
    succeed("trace", *IDS, "--products", str(first), "-o", str(second))
    assert (second / "edges.arrow").read_bytes() == (first / "edges.arrow").read_bytes()
    graph = AttributionGraph.load(first)
    del graph.metadata["versions"]["products"]
    graph.save(tmp_path / "silent.graph")
    silent = ["--products", str(tmp_path / "silent.graph"), "-o", str(tmp_path / "third.graph")]
    assert "does not say how its products were made" in refused("trace", *IDS, *silent)
    assert not (tmp_path / "third.graph").exists()
