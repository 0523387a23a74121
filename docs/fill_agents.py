"""Ask ten questions by `tracer mcp`'s tools and write docs/guides/agents.md from the answers.

    python -m docs.fill_agents

Every figure and every sentence about the model on the page is made of what a call answered;
`tests/test_docs_agents.py` asks again and compares.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tracer
from docs.fill_readme import ROOT
from tracer.serving.confined import Root
from tracer.serving.tools import TOOLS, Tools

PAGE = ROOT / "docs" / "guides" / "agents.md"
PROMPT = "The capital of the state containing {} is"
SHOWN = 7
"""Lines of an answer that the page shows."""
HEAD = """# For agents: ask by calls

`tracer mcp` offers the graphs of one folder and one model to an agent, by the Model Context
Protocol on standard input and output (`pip install 'tracer[mcp]'`). It opens no connection; file
names are confined to `--root` (the current folder); an answer has at most `--answer` characters and
says what it left out; an error is one line.

```sh
tracer mcp --root graphs
tracer mcp --root graphs --model FOLDER_OR_HUB_ID --transcoders FOLDER_OR_HUB_ID
```

An agent's settings name the command and its arguments:

```json
{"mcpServers": {"tracer": {"command": "tracer", "args": ["mcp", "--root", "graphs"]}}}
```

| tool | what it does |
|---|---|
"""
QUESTION = """
## A question answered by ten calls

*The model says "Austin" after "The capital of the state containing Dallas is". Is Texas a step on
the way, or only something that stands beside it?* The embedded default is asked. What follows is
written by `python -m docs.fill_agents`, which makes the calls; a test makes them again.
"""


class Asking:
    """Calls one after the other, each with what the page says of it."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.parts: list[str] = []

    def __call__(
        self, say: Callable[[list[str]], str], name: str, /, shown: int = SHOWN, **given: Any
    ) -> list[str]:
        """Make a call, and say on the page what it answered."""
        lines = self.tools.call(name, given).splitlines()
        number = len(self.parts) + 1
        more = [f"… {len(lines) - shown} more lines"] if len(lines) > shown else []
        answer = "\n".join([*lines[:shown], *more])
        self.parts.append(
            f"**{number}.** `{name}` `{json.dumps(given, ensure_ascii=False)}`\n\n"
            f"```text\n{answer}\n```\n\n{say(lines)}\n"
        )
        return lines


def percent(line: str, at: int) -> str:
    """One of the probabilities of an answer's line, before or after."""
    return f"{100 * float(line.split('  ')[-1].split(' → ')[at]):.1f} %"


def answers(lines: list[str]) -> list[tuple[str, str, str]]:
    """Token, probability before and after; the likeliest afterwards first."""
    found = [(line.split("'")[1].strip(), percent(line, 0), percent(line, 1)) for line in lines[1:]]
    return sorted(found, key=lambda one: -float(one[2].split()[0]))


def cells(line: str) -> list[str]:
    """The cells of a line of an answer."""
    return re.split(r"  +", line.strip())


def token(line: str) -> str:
    """The token of a line of `intervene`."""
    return line.split("'")[1].strip()


def explained(lines: list[str]) -> str:
    """What a traced graph explains."""
    return lines[4].split(": ")[1]


def of_trace(lines: list[str]) -> str:
    """What the first call found."""
    scores = lines[6][0].upper() + lines[6][1:]
    return f"The graph has {lines[5]} and explains {explained(lines)}. {scores}."


def of_search(lines: list[str]) -> str:
    """Which nodes speak of Texas."""
    best = cells(lines[1])
    return (
        f"{lines[0].split(' match')[0]} speak of Texas. The most influential is {best[0]}: "
        f"{float(best[1]):.0%} of the answer passes through it."
    )


def of_node(lines: list[str]) -> str:
    """What the Texas feature reads, writes and is called."""
    inputs, outputs = (
        cells(lines[1 + next(at for at, line in enumerate(lines) if line.startswith(what))])
        for what in ("inputs", "outputs")
    )
    truth = next(line for line in lines if "F1" in line).split(": ")[1]
    return (
        f"{inputs[2].lstrip('+')} of its input is the token {inputs[-1]}, and its strongest output "
        f"is {outputs[-1]}. Its label says where it fires with an F1 of {truth}."
    )


def of_heads(lines: list[str]) -> str:
    """What carried the strongest edge."""
    head, share, edge = cells(lines[1])
    return f"Head {head} carries {share} of the edge {edge}."


def of_ablation(lines: list[str]) -> str:
    """What becomes of the answer without the feature."""
    now, _, odds = answers(lines)[0]
    return (
        f"Without it “{token(lines[1])}” falls from {percent(lines[1], 0)} to "
        f"{percent(lines[1], 1)}, and the likeliest token is “{now}” ({odds})."
    )


def of_swap(lines: list[str]) -> str:
    """What the other prompt's answer becomes with the feature put in."""
    now, before, odds = answers(lines)[0]
    return (
        f"The likeliest token is now “{now}” ({odds}, before {before}); of “{token(lines[1])}” "
        f"{percent(lines[1], 1)} are left."
    )


def of_control(lines: list[str]) -> str:
    """What it becomes with nothing put in."""
    now, _, odds = answers(lines)[0]
    texan = next((after for name, _, after in answers(lines) if name == "Austin"), None)
    said = f"“Austin” has {texan}" if texan else "“Austin” is not among those listed"
    return f"The control, with nothing put in: the likeliest is “{now}” ({odds}); {said}."


def features_at(lines: list[str], position: int) -> list[str]:
    """Ids of the listed features of layer 0 at a position."""
    return re.findall(rf"^  (0_\d+_{position})  ", "\n".join(lines), re.MULTILINE)


def ask(tools: Tools) -> list[str]:
    """The ten calls.

    Returns:
        The parts of the page, one a call.
    """
    asking, here, there = Asking(tools), "dallas.graph", "oakland.graph"
    asking(of_trace, "trace", prompt=PROMPT.format("Dallas"), name=here, features=3, paths=2)
    found = asking(of_search, "search", graph=here, query="Texas", top=4)
    texas = cells(found[1])[0]
    about = asking(of_node, "node", shown=12, graph=here, node=texas, top=3)
    active = float(cells(about[2].replace(", ", "  "))[0].split()[1])
    asking(
        lambda a: f"{sum(texas in line for line in a)} of the {len(a)} strongest run through it.",
        "paths", graph=here, count=6, sign="exciting",
    )  # fmt: skip
    asking(of_heads, "heads", graph=here, top=3)
    asking(of_ablation, "intervene", graph=here, changes=[{"node": texas, "value": 0}])
    other = asking(
        lambda a: f"Another city, to see whether the feature is enough: {explained(a)}.",
        "trace", shown=15, prompt=PROMPT.format("Oakland"), name=there, features=8, paths=1,
    )  # fmt: skip
    asking(
        lambda a: f"{a[0].split(' match')[0]} of this graph speak of Texas.",
        "search", graph=there, query="Texas", top=3,
    )  # fmt: skip
    off = [{"node": node, "value": 0} for node in features_at(other, 7)]
    swapped = [*off, {"node": texas, "value": active}]
    asking(of_swap, "intervene", graph=there, changes=swapped)
    asking(of_control, "intervene", graph=there, changes=off)
    return asking.parts


def page(tools: Tools) -> str:
    """The whole page."""
    table = "".join(f"| `{name}` | {tool.says} |\n" for name, tool in TOOLS.items())
    return "\n".join([HEAD + table + QUESTION, *ask(tools)])


def fresh(folder: str) -> str:
    """The page, asked anew in an empty folder."""
    return page(Tools(Root(Path(folder)), tracer.ReplacementModel.load))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        PAGE.write_text(fresh(folder), encoding="utf-8")
