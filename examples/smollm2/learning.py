"""What a run learnt, against tokens and CPU seconds: `learning.py RUN FOLDER`.

Writes FOLDER/learning.json and FOLDER/learning.svg. `measured` are the measurements on held-out
text that the run wrote each `run.measure_every` steps, thresholds as they stood, and the finished
dictionary at the end; `training` are errors of the batches themselves, by step. CPU seconds are
those of the start and of all steps, harvesting included, measurements left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

from graphs.pictures.charts import lines
from replacement_models.training import checkpoint
from replacement_models.training.journal import FILE, entries
from replacement_models.training.loop import CHECKPOINTS
from tracer.training.curves import beside

TRAINING = ("step", "tokens", "cpu_seconds", "error", "error_unweighted", "l0", "dead")
CHARTS = (
    ("Error, held-out text", "share of variance", ("error", "error_weighted")),
    ("All MLPs replaced", "KL, nats a token", ("divergence",)),
    ("All MLPs replaced", "next token agrees", ("agreement",)),
    ("Graphs", "share", ("replacement_score", "completeness_score", "replacement_score_of_skip")),
)


def points(run: Path) -> list[dict[str, float]]:
    """One a measurement, in order; the finished dictionary last, where the run has ended."""
    start = _start(run)
    found = [
        {"tokens": line["tokens"], "cpu_seconds": start + line["cpu_seconds"], **line["measured"]}
        for line in entries(run / FILE)
        if "measured" in line
    ]
    if not (run / "summary.json").is_file():
        return found
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    means = {
        name: sum(summary[name]) / len(summary[name])
        for name in ("error", "error_weighted", "l0", "dead")
    }
    last = {"tokens": summary["tokens"], "cpu_seconds": start + summary["cpu_seconds"]}
    return [*found, {**last, **means, **summary["replaced"]}]


def _start(run: Path) -> float:
    """CPU seconds that the start took, as the run's newest checkpoint has them."""
    path = checkpoint.newest(run / CHECKPOINTS)
    if path is None:
        raise SystemExit(f"{run}: has no checkpoint yet")
    return float(checkpoint.read_state(path)["notes"]["start_cpu_seconds"])


def steps(run: Path) -> list[dict[str, float]]:
    """What the log says of every step it has."""
    start = _start(run)
    return [
        {name: line[name] for name in TRAINING} | {"cpu_seconds": start + line["cpu_seconds"]}
        for line in entries(run / FILE)
        if line["step"]
    ]


def charts(found: list[dict[str, float]], trained: list[dict[str, float]]) -> str:
    """Two rows of charts: over tokens, and over CPU seconds."""
    rows = []
    for name, label in (("tokens", "tokens"), ("cpu_seconds", "CPU seconds")):
        x = (label, [point[name] for point in found])
        every = [chart(found, x, *one) for one in CHARTS]
        x = (label, [point[name] for point in trained])
        every.append(chart(trained, x, "Error, batches", "share of variance", TRAINING[3:5]))
        rows.append(beside(every))
    return stacked(rows)


def chart(
    found: list[dict[str, float]],
    x: tuple[str, list[float]],
    title: str,
    unit: str,
    names: tuple[str, ...],
) -> str:
    """Some figures over one axis; a figure that no point has is left out."""
    every = {name: [point.get(name) for point in found] for name in names}
    known = {name: values for name, values in every.items() if any(values)}
    return lines(title, x, unit, known)


def stacked(rows: list[str]) -> str:
    """SVGs one below the other."""
    height = 300
    placed = [row.replace("<svg ", f'<svg y="{height * at}" ', 1) for at, row in enumerate(rows)]
    size = f'width="{420 * (1 + len(CHARTS))}" height="{height * len(rows)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{"".join(placed)}</svg>\n'


def main(run: Path, folder: Path) -> None:
    """Write both files."""
    found, trained = points(run), steps(run)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"measured": found, "training": trained}, indent=1) + "\n"
    (folder / "learning.json").write_text(text, encoding="utf-8")
    (folder / "learning.svg").write_text(charts(found, trained), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
