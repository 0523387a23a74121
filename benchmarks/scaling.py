"""How the cost of a trace grows: with rows, positions, layers and active features.

    OMP_NUM_THREADS=2 python -m benchmarks.scaling

Random weights of GPT-2's layout, 512 wide. One quantity grows, the others stay at `BASE`. Prints a
line a point and, for every curve, the exponent of growth (the slope between logarithms) and how far
a straight line is from the points; writes JSON and one SVG a quantity.

Under a cap the first rows stand at the top and at the last position, where a row costs most, and
later ones ever lower: a trace's cost is not linear in its cap, nor should it be. So every point has
the operations of the sweep's products as well, and the curve of rows has as many rows drawn at
random from all features, swept alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import VOCABULARY, random_dictionary, random_model
from benchmarks.stages import metered
from graphs.pictures.charts import lines
from replacement_models import ReplacementModel
from tracer.attribution.blocks import BLOCK
from tracer.attribution.local_model import linearise
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import feature_rows

WIDTH, HEADS, FEATURES, WARM = 512, 8, 2048, 16
BASE = {"rows": 512, "positions": 32, "layers": 12, "active": 40}
POINTS = {
    "rows": (256, 512, 1024, 2048, 4096, 8192),
    "positions": (8, 16, 32, 64, 128, 256),
    "layers": (6, 12, 18, 26),
    "active": (10, 20, 40, 80, 160),
}
LABELS = {
    "rows": "rows (targets explained)",
    "positions": "positions (tokens of the prompt)",
    "layers": "layers",
    "active": "active features a token and layer",
}
KINDS = ("per_layer", "cross_layer")
SERIES = {"cpu": ", whole trace", "sweep": ", sweep", "drawn": ", sweep of rows drawn at random"}


def model_of(kind: str, positions: int, layers: int, active: int) -> tuple[Any, list[int]]:
    """A model with a dictionary that fires as wanted on a prompt, and the prompt."""
    settings = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=1024,
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=layers,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    drawn = np.random.default_rng(positions).integers(1, VOCABULARY, positions - 1)
    tokens = [0, *drawn.tolist()]
    model = random_model(settings)
    dictionary = random_dictionary(model, kind, tokens, active, FEATURES)
    return ReplacementModel.from_huggingface(model, None, dictionary), tokens


def measure(kind: str, varied: str, value: int) -> dict[str, Any]:
    """CPU seconds of one trace and of its sweep, after a short one."""
    size = BASE | {varied: value}
    model, tokens = model_of(kind, size["positions"], size["layers"], size["active"])
    tracer.trace(model, tokens, max_features=WARM)
    with metered() as meter:
        begin = time.process_time()
        graph = tracer.trace(model, tokens, max_features=size["rows"])
        cpu = time.process_time() - begin
    rows = sum(name == "feature" for name in graph.nodes["kind"].to_pylist())
    found = {"kind": kind, "varied": varied, **size, "explained": rows, "cpu": cpu}
    found["sweep"] = meter.seconds["sweep"]
    found["gflop"] = sum(meter.operations.values()) / 1e9
    if varied == "rows":
        found["drawn"] = drawn(model, tokens, value)
    return found


@torch.no_grad()
def drawn(model: ReplacementModel, tokens: list[int], count: int) -> float:
    """CPU seconds of sweeping so many rows drawn at random from all features."""
    recording = model.record(tokens)
    local = linearise(model, recording, 1, rows=count)
    chosen = torch.randperm(len(local.features), generator=torch.Generator().manual_seed(0))
    begin = time.process_time()
    for columns in chosen[:count].split(BLOCK):
        sweep(local, feature_rows(model, recording, local, columns.numpy()))
    return time.process_time() - begin


def growth(points: list[dict[str, Any]], varied: str) -> dict[str, float]:
    """Exponent of growth of the sweep and of the trace; a straight line's error, relative."""
    x = np.array([point[varied] for point in points], dtype=float)
    found = {}
    for name in SERIES:
        if name not in points[0]:
            continue
        y = np.array([point[name] for point in points])
        found[f"{name}_exponent"] = float(np.polyfit(np.log(x), np.log(y), 1)[0])
        line = np.polyval(np.polyfit(x, y, 1, w=1 / y), x)
        found[f"{name}_line_error"] = float(np.abs(line / y - 1).max())
    return found


def main() -> None:
    """Measure all curves; write JSON and plots as they grow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=POINTS, help="one quantity; the others are kept")
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "scaling.json")
    args = parser.parse_args()
    held = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    curves: dict[str, Any] = held.get("curves", {})
    for varied in [args.only] if args.only else POINTS:
        curves[varied] = {}
        for kind in KINDS:
            points = []
            for value in POINTS[varied]:
                points.append(measure(kind, varied, value))
                one = points[-1]
                rate = one["gflop"] / one["sweep"]
                print(
                    f"{kind} {varied} {value}: {one['cpu']:.2f} s, sweep {one['sweep']:.2f} s, "
                    f"{rate:.0f} GFLOP a CPU second"
                )
            curves[varied][kind] = {"points": points, **growth(points, varied)}
            print({name: round(v, 2) for name, v in growth(points, varied).items()}, flush=True)
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        found = {"machine": machine, "width": WIDTH, "base": BASE, "curves": curves}
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        _plot(args.out.with_name(f"scaling_{varied}.svg"), varied, curves[varied])


def _plot(path: Path, varied: str, curves: dict[str, Any]) -> None:
    x = [float(value) for value in POINTS[varied]]
    series = {
        f"{kind.replace('_', '-')}{part}": [point[name] for point in curve["points"]]
        for kind, curve in curves.items()
        for name, part in SERIES.items()
        if name in curve["points"][0]
    }
    title = f"CPU seconds against {varied}"
    path.write_text(lines(title, (LABELS[varied], x), "CPU seconds", series))


if __name__ == "__main__":
    main()
