"""Float32 matrix products as tracer makes them: every way, for every layout, on this machine.

    python -m benchmarks.products

Products of the sweep, scores of many writers by few rows, a few rows by a large weight, and maps of
a few positions by weights read from memory anew each time, as in a forward pass; each with operands
that lie in memory in five ways (speed/ways.py in replacement_models). Prints GFLOP per CPU second
of every way, of torch given the strides as they are and given contiguous copies, and of what tracer
does, which is what a probe chose for the first case of each class (speed/choices.py). Fails, and
names the cases, where that takes over 1.5 times as long as the best, also when measured again;
what oneDNN reaches once it has compiled does not count for a few rows of less than 100 MFLOP.

Where there is AMX, products of the sweep by the optional kernel too (tracer/attribution/native),
and the errors of both against float64, relative to the norm of the result.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attribution import processor
from benchmarks.output import RESULTS, output_file
from replacement_models.speed import choices
from replacement_models.speed.allocator import keep_freed
from replacement_models.speed.choice_file import ChoiceFile
from replacement_models.speed.few_rows import fast_maps
from replacement_models.speed.probe import fastest
from replacement_models.speed.ways import COMPILED, LAYOUTS, WAYS, available, gathered
from tracer.attribution import native
from tracer.attribution.product import product as tracer_product

SWEEP = [(rows, width, width) for width in (768, 2048) for rows in (64, 256, 1024)]
SHAPES = {
    "product": [
        *((300, 768, 768), (64, 2048, 2048), (1100, 512, 256)),
        *((7680, 576, 16), (2048, 640, 45), (15, 640, 8192), (60, 640, 2048)),
    ],
    "few": [(8, 768, 3072), (16, 2048, 1024), (40, 768, 1024)],
    "map": [
        (rows, width, columns)
        for columns, width in ((4096, 768), (8192, 2048))
        for rows in (8, 16, 32, 64)
    ],
}
"""Rows, inner size and columns of what each purpose is measured with."""
COPIES = 8
"""Weights of maps that take turns, so that no cache holds them."""
ROUNDS = 3
MOST = 1.5
"""Times the best way's time that what tracer does may take."""


@dataclass(frozen=True)
class Case:
    """Operands of one shape that lie in memory as named, None being steps inside rows."""

    purpose: str
    rows: int
    inner: int
    columns: int
    x: str | None = "plain"
    weight: str | None = "plain"

    def __str__(self) -> str:
        """What an error names."""
        layouts = f"{self.x or 'steps'} by {self.weight or 'steps'}"
        return f"{self.purpose} {self.rows} x {self.inner} by {self.columns}, {layouts}"

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """A call for each way; all give the same, contiguous."""
        torch.manual_seed(0)
        x = laid_out(self.rows, self.inner, self.x)
        copies = COPIES if self.purpose == "map" else 1
        weights = [laid_out(self.columns, self.inner, self.weight) for _ in range(copies)]
        turn = cycle(weights)

        def by(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
            return lambda: way(x, next(turn)).contiguous()

        straight = {name: by(_gathering(WAYS[name])) for name in available() if name != "torch"}
        return {
            "tracer": by(_mapped if self.purpose == "map" else tracer_product),
            "torch": by(lambda x, weight: x @ weight.T),
            "torch, copies": by(lambda x, weight: x.contiguous() @ weight.contiguous().T),
            **straight,
        }


def _gathering(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: way(gathered(x), gathered(weight))


def _mapped(x: Tensor, weight: Tensor) -> Tensor:
    with fast_maps(len(x), x.device):
        return nn.functional.linear(x, weight)


def laid_out(rows: int, columns: int, name: str | None) -> Tensor:
    """A random matrix, in memory as named."""
    if name == "transposed":
        return torch.randn(columns, rows).T
    if name == "rows":
        return torch.randn(rows, 2, columns)[:, 1]
    if name == "columns":
        return torch.randn(columns, 2, rows)[:, 1].T
    return torch.randn(rows, columns) if name else torch.randn(rows, 2 * columns)[:, ::2]


def cases() -> list[Case]:
    """Every shape and layout; a forward pass maps by contiguous weights alone."""
    layouts = [*LAYOUTS, None]
    return [
        Case(purpose, *shape, x, weight)
        for purpose, shapes in SHAPES.items()
        for shape, x, weight in product(shapes, layouts, layouts)
        if purpose != "map" or (x, weight) in (("plain", "plain"), ("rows", "plain"))
    ]


def seconds(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """CPU seconds of each call, the best of so many; they take turns."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return best


@torch.no_grad()
def measure(case: Case) -> dict[str, Any]:
    """GFLOP per CPU second of every way, and how the best compares with what tracer does."""
    calls = case.ways()
    found = {name: call() for name, call in calls.items()}  # compiles and chooses
    scale = float(found["torch"].abs().max())
    difference = max(float((one - found["torch"]).abs().max()) / scale for one in found.values())
    best = seconds(calls, ROUNDS)
    if _ratio(case, best) > MOST:  # something else ran meanwhile, or it is so
        again = seconds(calls, 4 * ROUNDS)
        best = {name: min(best[name], again[name]) for name in best}
    operations = 2e-9 * case.rows * case.inner * case.columns
    return {
        **vars(case),
        "rates": {name: operations / spent for name, spent in best.items()},
        "times_the_best": _ratio(case, best),
        "largest_difference": difference,
    }


def _ratio(case: Case, best: dict[str, float]) -> float:
    """Times the best that counts: small products do not earn what compiles for every shape."""
    few = case.purpose == "few"
    return best["tracer"] / min(best[way] for way in best if not (few and way in COMPILED))


@dataclass
class TimedProbe:
    """`fastest`, and the longest that it took."""

    longest: float = 0.0

    def __call__(self, ways: list[str], x: Tensor, weight: Tensor, uses: int) -> str:
        """As `fastest`."""
        begin = time.process_time()
        found = fastest(ways, x, weight, uses)
        self.longest = max(self.longest, time.process_time() - begin)
        return found


def measure_all(wanted: list[Case]) -> dict[str, Any]:
    """Every case, by ways that are chosen anew and without the limit that one process has."""
    probe = TimedProbe()
    keep_freed(True)  # as in a trace; else who comes first in a round pays for fresh memory
    with tempfile.TemporaryDirectory() as folder:
        file = ChoiceFile(Path(folder) / "products.json")
        choices.process = choices.Choices(file, probe, budget=math.inf)
        results = [measure(case) for case in wanted]
        return {"results": results, "chosen": file.read(), "longest_probe_seconds": probe.longest}


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


def print_results(results: list[dict[str, Any]]) -> None:
    """A line a case; the layouts of one shape stand together."""
    names = list(results[0]["rates"])
    print(f"| | rows | inner | columns | x | weight | {' | '.join(names)} | times the best |")
    print("|---" * (7 + len(names)) + "|")
    for one in results:
        shape = (one[name] for name in ("purpose", "rows", "inner", "columns"))
        layouts = (one[name] or "steps" for name in ("x", "weight"))
        rates = (f"{one['rates'][name]:.1f}" for name in names)
        cells = (*map(str, shape), *layouts, *rates, f"{one['times_the_best']:.2f}")
        print(f"| {' | '.join(cells)} |")


def print_split(split: list[dict[str, Any]]) -> None:
    """A line a shape by the optional kernel."""
    print("| rows | weight | torch GFLOP/s (error) | split GFLOP/s (error) | ratio |")
    print("|---|---|---|---|---|")
    for one in split:
        print(
            f"| {one['rows']} | {one['columns']} x {one['width']} "
            f"| {one['default']:.0f} ({one['default_error']:.0e}) "
            f"| {one['split']:.0f} ({one['split_error']:.0e}) | {one['ratio']:.2f} |"
        )


def main() -> None:
    """Measure all cases, print the tables, write JSON; exit code 1 where a choice was bad."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "products.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure_all(cases())
    print_results(found["results"])
    split = [] if native.missing() else [measure_split(*shape) for shape in SWEEP]
    if split:
        print_split(split)
    machine = {"threads": args.threads, "processor": processor(), "torch": torch.__version__}
    found = {"machine": machine, **found, "split": split}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    names = Case.__dataclass_fields__
    slow = [one for one in found["results"] if one["times_the_best"] > MOST]
    for one in slow:
        case = Case(**{name: one[name] for name in names})
        print(f"{case}: takes {one['times_the_best']:.2f} times as long as the best way")
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
