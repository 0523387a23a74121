"""Run the commands of docs/guides/attention-walk.md and keep what they print and draw.

    python -m docs.fill_attention

Every line `tracer ...` of the page's `sh` blocks is run, in order, in a folder that is removed
afterwards. What a block prints is cut to the lines that the page's next `text` block had, which are
kept by their beginnings; pictures move beside the page.
"""

import contextlib
import re
import shlex
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from docs.fill_readme import ROOT, run

PAGE = ROOT / "docs" / "guides" / "attention-walk.md"
BLOCK = re.compile(
    r"^```sh\n(?P<commands>.*?)^```\n(?:\n?```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
WIDTH = 160


def printed(commands: str) -> str:
    """What the commands of a block print, columns apart by two spaces."""
    lines = []
    for line in commands.replace("\\\n", " ").splitlines():
        if line.startswith("tracer "):
            lines += run(*shlex.split(line)[1:]).splitlines()
    return "\n".join("  ".join(line.split("\t")) for line in lines)


def kept(shown: str, text: str) -> str:
    """The lines of `text` that begin as those of a block did, cut to the page's width."""
    wanted = [line.split("  ")[0][:24] for line in shown.splitlines() if line.strip()]
    found = []
    for start in dict.fromkeys(wanted):
        lines = [line for line in text.splitlines() if line.startswith(start)]
        found += lines[: wanted.count(start)]
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
