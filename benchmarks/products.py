"""The sweep's matrix products: torch's default against oneDNN, in float32, on this machine.

    python -m benchmarks.products

Prints GFLOP/s of both for the shapes the sweep meets, their ratio and their largest difference.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tracer import product

SHAPES = [(rows, width) for width in (768, 2048) for rows in (64, 256, 1024)]


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


def measure(rows: int, width: int) -> dict[str, float]:
    """One shape, (rows, width) times (width, width)."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(width, width, generator=generator)
    operations = 2.0 * rows * width * width
    default = rate(lambda: x @ weight.T, operations)
    ours = rate(lambda: product.product(x, weight), operations)
    difference = (product.product(x, weight) - x @ weight.T).abs().max() / (
        x @ weight.T
    ).abs().max()
    return {
        "rows": rows,
        "width": width,
        "default": default,
        "ours": ours,
        "ratio": ours / default,
        "difference": float(difference),
    }


def main() -> None:
    """Measure all shapes, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "products.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(rows, width) for rows, width in SHAPES]
    print("| rows | width | torch GFLOP/s | oneDNN GFLOP/s | ratio | largest difference |")
    print("|---|---|---|---|---|---|")
    for one in results:
        print(
            f"| {one['rows']} | {one['width']} | {one['default']:.0f} | {one['ours']:.0f} "
            f"| {one['ratio']:.2f} | {one['difference']:.1e} |"
        )
    args.out.write_text(json.dumps({"threads": args.threads, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
