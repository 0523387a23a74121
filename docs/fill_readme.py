"""Draw docs/dallas.svg and put into the READMEs what the commands shown there print.

With `--models`, only the lists of supported models; with `--speed`, only the table of speeds.
"""

import json
import re
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner

from benchmarks.attribution import SIDES, means, ratio
from benchmarks.random_shapes import LAYERS
from replacement_models.hosts.support import families_line, support_table
from tracer.commands import main

ROOT = Path(__file__).parents[1]
PROMPT = "The capital of the state containing Dallas is"
SHOWN = re.compile(
    r"(?<=<!-- what tracer prints -->\n```text\n).*?(?=^```)", re.DOTALL | re.MULTILINE
)
FAMILIES = re.compile(r"(?<=<!-- supported models -->\n).*?(?=\n\n)", re.DOTALL)
SPEED = re.compile(r"(?<=<!-- measured speed -->\n).*?(?=\n<!-- to here -->)", re.DOTALL)
SHAPES = {"gpt2": "GPT-2", "llama": "Llama-3.2-1B", "gemma": "Gemma-2-2B"}
TABLE = re.compile(r"^\| \d+ decoders of transformers .*?(?=\n\n)", re.DOTALL | re.MULTILINE)


def run(*arguments: str) -> str:
    """What a command prints to stdout."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(result.stderr)
    return result.stdout


def output(graph: str, picture: str) -> str:
    """What tracing and drawing the default prompt print, in columns."""
    text = run("trace", PROMPT, "-o", graph) + run("render", graph, "-o", picture)
    rows = [line.split("\t") for line in text.splitlines()]
    width = max(len(row[0]) for row in rows if len(row) > 1)
    return "".join("  ".join([row[0].ljust(width), *row[1:]]).rstrip() + "\n" for row in rows)


def wrapped(sentence: str) -> str:
    """A sentence as lines of the READMEs' width."""
    return textwrap.fill(sentence, 112, break_long_words=False, break_on_hyphens=False)


def fill() -> None:
    """Rewrite the picture and the block."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        graph, picture = f"{folder}/dallas.graph", str(ROOT / "docs" / "dallas.svg")
        printed = output(graph, picture).replace(folder, "demo").replace(picture, "demo/dallas.svg")
    readme.write_text(SHOWN.sub(lambda _: printed, text, count=1), encoding="utf-8")


def fill_models() -> None:
    """Rewrite the list of supported models in both READMEs."""
    for name, place, shown in (
        ("README.md", FAMILIES, wrapped(families_line())),
        ("replacement_models/README.md", TABLE, support_table()),
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        new = place.sub(lambda _, shown=shown: shown, text, count=1)
        (ROOT / name).write_text(new, encoding="utf-8")


def speed_row(case: dict[str, Any]) -> str:
    """One case of benchmarks/results/attribution.json as a line of the table."""
    cut = f", {case['layers']} layers" if case["layers"] < LAYERS[case["shape"]] else ""
    cells = [
        SHAPES[case["shape"]] + cut,
        case["kind"].replace("_", "-"),
        str(case["positions"]),
        f"{case['cap']:,}",
        str(case["active"]),
        *(ratio(case[side], name) for name in ("ratio", "ratio_split") for side in SIDES),
        f"{max(case[side]['difference'] for side in SIDES):.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def speed_table() -> str:
    """What benchmarks/results/attribution.json says, as the README shows it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "attribution.json").read_text())[
        "results"
    ]
    shapes = list(SHAPES)
    cases = sorted(
        found,
        key=lambda case: (
            case["kind"] != "per_layer",
            shapes.index(case["shape"]),
            case["layers"],
            case["positions"],
            case["cap"],
        ),
    )
    head = ("shape", "dictionary", "tokens", "rows", "active", "peer / tracer")
    head = (*head, "repaired peer / tracer", "peer / split", "repaired peer / split")
    head = (*head, "largest difference")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(speed_row, cases)]
    return "\n".join([*lines, "", "Geometric means, and the worst:", "", means(found)])


def fill_speed() -> None:
    """Rewrite the table of speeds from what the benchmark wrote."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(SPEED.sub(lambda _: speed_table(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    parts = {"--models": fill_models, "--speed": fill_speed}
    for part in [parts[flag] for flag in sys.argv[1:]] or [*parts.values(), fill]:
        part()
