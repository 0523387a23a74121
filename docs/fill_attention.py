"""Run the commands of docs/guides/attention-walk.md and keep what they print and draw.

    python -m docs.fill_attention

Every line `tracer ...` of the page's `sh` blocks is run, in order, in a folder that is removed
afterwards. A `text` block behind one shows a table of what was printed: the one under the heading
that is the block's first line, as many of its lines as the block had. Pictures move beside the
page.
"""

import contextlib
import re
import shlex
import shutil
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from docs.fill_readme import ROOT, run

PAGE = ROOT / "docs" / "guides" / "attention-walk.md"
BLOCK = re.compile(
    r"^```sh\n(?P<commands>.*?)^```\n(?:\n?```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
WIDTH = 420


def printed(commands: str) -> str:
    """What the commands of a block print, columns apart by two spaces."""
    lines = []
    for line in commands.replace("\\\n", " ").splitlines():
        if line.startswith("tracer "):
            lines += run(*shlex.split(line)[1:]).splitlines()
    return "\n".join("  ".join(line.split("\t")) for line in lines)


def kept(shown: str, text: str) -> str:
    """The table under the heading that a block begins with, as long as the block was."""
    wanted, lines = shown.splitlines(), text.splitlines()
    start = next(
        at
        for at, line in enumerate(lines)
        if line and line.split("  ")[0] == wanted[0].split("  ")[0]
    )
    found = list(takewhile(str.strip, lines[start:]))[: len(wanted)]
    return "".join(f"{line if len(line) <= WIDTH else line[: WIDTH - 1] + '…'}\n" for line in found)


def fill() -> None:
    """Rewrite the page's blocks and its pictures."""
    page = PAGE.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder, contextlib.chdir(folder):

        def told(block: re.Match[str]) -> str:
            text = printed(block["commands"])
            if block["shown"] is None:
                return block[0]
            return f"```sh\n{block['commands']}```\n\n```text\n{kept(block['shown'], text)}```\n"

        page = BLOCK.sub(told, page)
        for picture in Path(folder).glob("*.svg"):
            shutil.copy(picture, PAGE.parent / picture.name)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    fill()
