"""Float32 matrix products as tracer makes them: torch's default against oneDNN, on this machine.

    python -m benchmarks.products

Square products of the sweep, its weight in the cache; and maps of a few positions by large weights,
read from memory anew each time, as in a forward pass: these in blocks of 16 outputs too. Prints
GFLOP per CPU second, ratios to the default and the largest difference. tracer takes oneDNN for the
first on processors that MKL is not made for (tracer/product.py), for the second one of the other
two (replacement_models/few_rows.py). Where there is AMX, products of the sweep by the optional
kernel too (tracer/native), and the errors of both against float64, relative to the norm of the
result.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch

from benchmarks.attribution import processor
from benchmarks.output import RESULTS, output_file
from replacement_models.speed.few_rows import linear_in_blocks, onednn_linear
from tracer.attribution import native

SWEEP = [(rows, width, width) for width in (768, 2048) for rows in (64, 256, 1024)]
FEW = [(rows, *weight) for weight in ((4096, 768), (8192, 2048)) for rows in (8, 16, 32, 64)]
COPIES = 16
"""Weights that take turns, so that no cache holds them."""


def rate(call: Callable[[], torch.Tensor], operations: float, repeats: int = 20) -> float:
    """GFLOP per CPU second, the best of five rounds."""
    call()
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(repeats):
            call()
        seconds.append((time.process_time() - begin) / repeats)
    return operations / min(seconds) / 1e9


def measure(kind: str, rows: int, columns: int, width: int) -> dict[str, Any]:
    """One shape, (rows, width) times the transpose of (columns, width)."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator)
    copies = COPIES if kind == "few rows" else 1
    weights = [torch.randn(columns, width, generator=generator) for _ in range(copies)]
    turn, operations = cycle(weights), 2.0 * rows * width * columns
    default = rate(lambda: x @ next(turn).T, operations)
    expected = x @ weights[0].T
    found = {"kind": kind, "rows": rows, "columns": columns, "width": width, "default": default}
    ways = {"onednn": onednn_linear, "blocks": linear_in_blocks}
    for name in ways if kind == "few rows" else ["onednn"]:
        way = ways[name]
        difference = (way(x, weights[0]) - expected).abs().max() / expected.abs().max()
        speed = rate(lambda way=way: way(x, next(turn)), operations)
        found[name] = {
            "rate": speed,
            "ratio": speed / default,
            "difference": float(difference),
        }
    return found


def measure_split(rows: int, columns: int, width: int) -> dict[str, Any]:
    """One shape by torch and by the kernel for split products."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(columns, width, generator=generator)
    exact, operations = x.double() @ weight.double().T, 2.0 * rows * width * columns
    kernel = native.kernel()
    default = rate(lambda: x @ weight.T, operations)
    split = rate(lambda: kernel.add(x, weight), operations)
    errors = [
        float((found - exact).norm() / exact.norm())
        for found in (x @ weight.T, kernel.add(x, weight))
    ]
    shape = {"rows": rows, "columns": columns, "width": width}
    rates = {"default": default, "split": split, "ratio": split / default}
    return shape | rates | dict(zip(("default_error", "split_error"), errors, strict=True))


def _cell(way: dict[str, float] | None) -> str:
    if way is None:
        return "-"
    return f"{way['rate']:.0f} ({way['ratio']:.2f}, {way['difference']:.0e})"


def main() -> None:
    """Measure all shapes, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "products.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = [("sweep", shape) for shape in SWEEP] + [("few rows", shape) for shape in FEW]
    results = [measure(kind, *shape) for kind, shape in shapes]
    print("| | rows | weight | torch GFLOP/s | oneDNN (ratio, difference) | blocks |")
    print("|---|---|---|---|---|---|")
    for one in results:
        print(
            f"| {one['kind']} | {one['rows']} | {one['columns']} x {one['width']} "
            f"| {one['default']:.0f} | {_cell(one['onednn'])} | {_cell(one.get('blocks'))} |"
        )
    split = [] if native.missing() else [measure_split(*shape) for shape in SWEEP]
    if split:
        print("| rows | weight | torch GFLOP/s (error) | split GFLOP/s (error) | ratio |")
        print("|---|---|---|---|---|")
    for one in split:
        print(
            f"| {one['rows']} | {one['columns']} x {one['width']} "
            f"| {one['default']:.0f} ({one['default_error']:.0e}) "
            f"| {one['split']:.0f} ({one['split_error']:.0e}) | {one['ratio']:.2f} |"
        )
    machine = {"threads": args.threads, "processor": processor(), "torch": torch.__version__}
    found = {"machine": machine, "results": results, "split": split}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
