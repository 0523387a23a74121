"""Draw docs/dallas.svg and fill in what documents show and nobody should type.

What commands print, supported models, speeds, the map of the code. With `--models`, `--speed` or
`--map`, only those.
"""

import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner

from benchmarks.attribution import SIDES, mean_and_worst, means, ratio
from benchmarks.random_shapes import LAYERS
from replacement_models.hosts.support import families_line, support_table
from tracer.commands import main

ROOT = Path(__file__).parents[1]
PROMPT = "The capital of the state containing Dallas is"
SHOWN = re.compile(
    r"(?<=<!-- what tracer prints -->\n```text\n).*?(?=^```)", re.DOTALL | re.MULTILINE
)
SHAPES = {"gpt2": "GPT-2", "llama": "Llama-3.2-1B", "gemma": "Gemma-2-2B"}
PLACES = {
    "docs": "guides, concepts, a page for each number, formats, the Python reference",
    "examples": "three notebooks and three scripts, run by the tests",
}
"""What stands in folders that have no docstring to say it."""


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


def between(mark: str) -> re.Pattern[str]:
    """What stands between a comment with these words and the next `<!-- to here -->`."""
    return re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=\n?<!-- to here -->)", re.DOTALL)


def replace(file: str, place: re.Pattern[str], shown: str) -> None:
    """Put `shown` where `place` is found in a document."""
    text = (ROOT / file).read_text(encoding="utf-8")
    (ROOT / file).write_text(place.sub(lambda _: shown, text, count=1), encoding="utf-8")


def fill() -> None:
    """Rewrite the picture and the block."""
    with TemporaryDirectory() as folder:
        graph, picture = f"{folder}/dallas.graph", str(ROOT / "docs" / "dallas.svg")
        printed = output(graph, picture).replace(folder, "demo").replace(picture, "demo/dallas.svg")
    replace("README.md", SHOWN, printed)


def models() -> dict[str, str]:
    """Document -> what it says of the supported models."""
    count, _, names = families_line().partition(": ")
    full = f"{wrapped(f'{count}: {names}')}\n\n{support_table()}"
    return {"README.md": f"{count}.", "docs/families.md": full}


def fill_models() -> None:
    """Rewrite the number of supported models, their list, and the table of all types."""
    for file, shown in models().items():
        replace(file, between("supported models"), shown)


def files() -> list[Path]:
    """What belongs to the project, relative to its root: what git knows or would take up."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:  # an archive, not a clone
        found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.suffix != ".pyc"]
        listed = [path for path in found if not any(part[0] == "." for part in path.parts)]
    else:
        listed = [Path(line) for line in done.stdout.splitlines()]
    return sorted(path for path in listed if (ROOT / path).is_file())


def code_map() -> str:
    """What `ls` shows, as a table: every top-level folder, and the rooms of the packages."""
    parts = [file.parts for file in files()]
    folders = {Path(*part[:end]) for part in parts for end in (1, 2) if end < len(part)}
    rows = [("[cli.py](cli.py)", first_line(ROOT / "cli.py"))]
    for folder in sorted(folder for folder in folders if folder.parts[0][0] != "."):
        room = len(folder.parts) == 2
        module = ROOT / folder / "__init__.py"
        if module.is_file() and (not room or (ROOT / folder.parent / "py.typed").is_file()):
            name = f"— [{folder.name}/]({folder})" if room else f"[{folder}/]({folder})"
            rows.append((name, first_line(module)))
        elif not room:
            rows.append((f"[{folder}/]({folder})", PLACES[str(folder)]))
    return "\n".join(["| path | what |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def first_line(module: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").splitlines()[0]


def fill_map() -> None:
    """Rewrite the map of the code."""
    replace("README.md", between("map"), code_map())


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


def measured(name: str = "attribution") -> dict[str, Any]:
    """What the benchmark wrote: its `results`, and of the `machine`."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def speed_table(name: str = "attribution") -> str:
    """What the benchmark measured, case by case and in the mean."""
    found, shapes = measured(name)["results"], list(SHAPES)
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


def speed_in_short() -> str:
    """The same in two sentences."""
    said = []
    for kind in ("per_layer", "cross_layer"):
        cases = [case for case in measured()["results"] if case["kind"] == kind]
        (mean, worst), (repaired, least) = (
            mean_and_worst([case[side] for case in cases], "ratio") for side in SIDES
        )
        said.append(
            f"{mean} times with {kind.replace('_', '-')} dictionaries (closest case {worst}), "
            f"{repaired} ({least}) with its slowest product repaired"
        )
    return wrapped(
        "On two cores of an Intel server processor with AMX and random weights, circuit-tracer "
        "takes a multiple of the CPU time that tracer takes for the same graph, in the geometric "
        f"mean {'; '.join(said)}."
    )


def drawn_in_short() -> str:
    """On which machine shapes were drawn, by which seed, and the least and the largest ratios."""
    found, said = measured("attribution_drawn"), []
    for kind in ("per_layer", "cross_layer"):
        cases = [case for case in found["results"] if case["kind"] == kind]
        least, repaired = ([case[side]["ratio"]["cpu"] for case in cases] for side in SIDES)
        said.append(
            f"{min(least):.1f} to {max(least):.1f} times with {kind.replace('_', '-')} "
            f"dictionaries, {min(repaired):.1f} to {max(repaired):.1f} repaired"
        )
    machine = found["machine"]
    return wrapped(
        f"On {len(found['results'])} shapes drawn at random at run time (seed "
        f"{machine['command'].split()[-1]}), on {machine['processor']}, the peer's batch size "
        f"searched from 1 up: {'; '.join(said)}."
    )


def fill_speed() -> None:
    """Rewrite all of them from what the benchmark wrote."""
    replace("benchmarks/README.md", between("measured speed"), speed_table())
    replace(
        "benchmarks/README.md", between("speed of drawn shapes"), speed_table("attribution_drawn")
    )
    replace("README.md", between("speed of drawn shapes in short"), drawn_in_short())
    replace("README.md", between("speed in short"), speed_in_short())


if __name__ == "__main__":
    parts = {"--models": fill_models, "--speed": fill_speed, "--map": fill_map}
    for part in [parts[flag] for flag in sys.argv[1:]] or [*parts.values(), fill]:
        part()
