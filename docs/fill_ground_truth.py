"""Fill the tables of docs/ground-truth.md with what `python -m benchmarks.ground_truth` measured.

python -m docs.fill_ground_truth
"""

import json
from typing import Any

from docs.fill_readme import ROOT, between, replace

RESULTS = ROOT / "benchmarks" / "results" / "ground_truth.json"
FIGURES = ("node_precision", "node_recall", "edge_precision", "edge_recall")


def tables() -> dict[str, str]:
    """Mark in the page -> table."""
    known: dict[str, list[dict[str, Any]]] = json.loads(RESULTS.read_text("utf-8"))
    return {
        "ground truth neurons": of_neurons(known["neurons"]),
        "ground truth dictionaries": of_dictionaries(known["dictionaries"], known["neurons"]),
        "ground truth planted": of_planted(known["planted"]),
    }


def of_neurons(rows: list[dict[str, Any]]) -> str:
    """A line a program, and the mean over programs."""
    head = (
        "nodes: precision, recall | edges: precision, recall | pruned to 0.95, 0.99 | flat | random"
    )
    lines = [f"| program | layers | prompts | edges | {head} | law |", f"|{'---|' * 10}"]
    for row in rows:
        kept, wide = row["kept"], row["wide"]
        cells = [
            row["program"],
            str(row["layers"]),
            str(row["prompts"]),
            str(row["edges"]),
            pair(kept, "node"),
            pair(kept, "edge"),
            pair(wide, "edge"),
            f"{row['flat']:.2f}",
            pair(row["random"], "edge"),
            f"{row['law']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    means = {
        name: {key: sum(row[name][key] for row in rows) / len(rows) for key in FIGURES}
        for name in ("kept", "wide", "random")
    }
    cells = [
        f"mean | | | {sum(row['edges'] for row in rows)}",
        pair(means["kept"], "node"),
        pair(means["kept"], "edge"),
        pair(means["wide"], "edge"),
        f"{sum(row['flat'] for row in rows) / len(rows):.2f}",
        pair(means["random"], "edge"),
        f"{max(row['law'] for row in rows):.0e}",
    ]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def pair(figures: dict[str, float], of: str) -> str:
    """Precision and recall of nodes or edges."""
    return f"{figures[f'{of}_precision']:.2f}, {figures[f'{of}_recall']:.2f}"


def of_dictionaries(rows: list[dict[str, Any]], neurons: list[dict[str, Any]]) -> str:
    """A line a program, kind, start and seed."""
    steps = {row["program"]: row["steps"] for row in neurons}
    head = "nodes: precision, recall | edges: precision, recall | early | skips | steps (neurons)"
    lines = [f"| program | kind | start | seed | {head} | error |", f"|{'---|' * 10}"]
    for row in sorted(rows, key=lambda row: (row["program"], row["start"], row["seed"])):
        cells = [
            row["program"],
            row["kind"].replace("_", "-"),
            row["start"],
            str(row["seed"]),
            pair(row, "node"),
            pair(row, "edge"),
            f"{row['early']:.2f}",
            f"{row['skips']:.2f}",
            f"{row['steps']:.1f} ({steps[row['program']]:.1f})",
            f"{row['error']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def of_planted(rows: list[dict[str, Any]]) -> str:
    """A line a way of finding, and seed."""
    head = "nodes: precision, recall | edges: precision, recall | weight on true edges | skips"
    lines = [f"| found by | start | seed | {head} | found again | error |", f"|{'---|' * 9}"]
    for row in rows:
        cells = [
            row["kind"].replace("_", "-"),
            row["start"] or "",
            str(row["seed"]),
            pair(row, "node"),
            pair(row, "edge"),
            f"{row['edge_weight']:.2f}",
            f"{row['skips']:.2f}",
            f"{row['again']:.2f}",
            f"{row['error']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if "random" in row:
            chance = row["random"]
            cells = ["as many at random", "", str(row["seed"]), pair(chance, "node")]
            cells += [pair(chance, "edge"), f"{chance['edge_weight']:.2f}", "", "", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fill() -> None:
    """Rewrite the tables."""
    for mark, shown in tables().items():
        replace("docs/ground-truth.md", between(mark), shown)


if __name__ == "__main__":
    fill()
