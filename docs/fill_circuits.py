"""Fill the table of docs/numbers/circuit-keeps.md with what `python -m benchmarks.circuits` found.

python -m docs.fill_circuits
"""

import json
from collections.abc import Mapping
from typing import Any

from docs.fill_readme import ROOT, between, replace

RESULTS = ROOT / "benchmarks" / "results" / "circuits.json"
PAGE, MARK = "docs/numbers/circuit-keeps.md", "circuits that stand"
HEAD = "| rule | all else at its mean: choice; reported | silent features left: choice; reported |"
WAYS = ("at means", "silent left")


def table() -> str:
    """A line a rule, the chosen one in bold, and one for whole graphs."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    rules = list(dict.fromkeys(name.partition("; ")[0] for name in found["choice"]))
    lines = [HEAD, "|---|---|---|"]
    for rule in rules:
        cells = [f"{rule}; {way}" for way in WAYS]
        told = " | ".join(shares(cell, found["choice"], found["reported"]) for cell in cells)
        chosen = "**" if rule == found["rule"] else ""
        lines.append(f"| {chosen}{rule}{chosen} | {told} |")
    whole = " | ".join(f"{found['whole_graphs'][way] * 100:.0f} % (reported)" for way in WAYS)
    return "\n".join([*lines, f"| the whole graph, every node kept | {whole} |"])


def shares(cell: str, choice: Mapping[str, Any], reported: Mapping[str, Any]) -> str:
    """How many circuits stand on the prompts for choosing, and on those reported."""
    chosen = f"{choice[cell]['stand'] * 100:.0f} %"
    if cell not in reported:
        return f"{chosen} (choice alone)"
    return f"{chosen}; {reported[cell]['stand'] * 100:.0f} %"


if __name__ == "__main__":
    replace(PAGE, between(MARK), table())
