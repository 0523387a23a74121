"""Draw docs/dallas.svg and put into README.md what the commands shown there print."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner

from cli import main

ROOT = Path(__file__).parents[1]
PROMPT = "The capital of the state containing Dallas is"
SHOWN = re.compile(
    r"(?<=<!-- what tracer prints -->\n```text\n).*?(?=^```)", re.DOTALL | re.MULTILINE
)


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


def fill() -> None:
    """Rewrite the picture and the block."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        graph, picture = f"{folder}/dallas.graph", str(ROOT / "docs" / "dallas.svg")
        printed = output(graph, picture).replace(folder, "demo").replace(picture, "demo/dallas.svg")
    readme.write_text(SHOWN.sub(lambda _: printed, text, count=1), encoding="utf-8")


if __name__ == "__main__":
    fill()
