"""The engine on a GPU, in one run of eight minutes: `python -m benchmarks.gpu [--peer PYTHON]`.

Graphs on the device beside the CPU's, in float32 and with products in TF32, one
or three; shapes of Llama-3.2-1B
and Gemma-2-2B, per-layer and cross-layer, with circuit-tracer on the same card where PYTHON can
import it: seconds, fraction of the rate of a large product, memory of the device; and prompts of
2,048 and 6,000 tokens. Weights are random, layers and dictionaries cut so that time and memory do.
Parts begin until the minutes are over; what is left out is said. Prints a line a case and writes
JSON. `--device cpu --quick` runs every part on tiny cases, to see that it runs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracer
from benchmarks.attribution import RANK_EVERY, WARM, Case, deviation, processor, run_peer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import VOCABULARY, config, write_case
from benchmarks.stages import metered
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from tracer.attribution.product import taking_products
from tracer.attribution.tensor_cores import ThreeProducts, in_tf32

EQUAL = [
    Case("gpt2", kind, 16, 256, layers=6, features=2048) for kind in ("per_layer", "cross_layer")
]
SHAPES = [
    Case("llama", "per_layer", 64, 1000, layers=16),
    Case("llama", "cross_layer", 32, 1000, layers=16, features=1024),
    Case("gemma", "per_layer", 64, 1000, layers=26),
    Case("gemma", "cross_layer", 32, 1000, layers=26, features=512, active=20),
]
LONG = [
    Case("llama", "per_layer", positions, 1000, active=4, features=2048, layers=4)
    for positions in (2048, 6000)
]
MINUTES, RUNS, LARGE = 8.0, 3, 8192


@dataclass
class Session:
    """What all parts of a run share."""

    device: torch.device
    peer: str | None
    quick: bool
    ends: float
    found: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def cases(self, cases: list[Case], name: str) -> Iterator[Case]:
        """Those that begin before the time is over; tiny ones for a quick run."""
        for case in cases:
            if time.monotonic() > self.ends:
                self.left_out.append(f"{name}: {case.shape} {case.kind}, {case.positions} tokens")
                continue
            tiny = replace(case, shape="gpt2", layers=2, features=64, active=4, cap=16)
            yield replace(tiny, positions=min(case.positions, 12)) if self.quick else case

    def waited(self) -> float:
        """The time, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """A call's result and its wall-clock seconds."""
        begin = self.waited()
        result = call()
        return result, self.waited() - begin


@contextmanager
def written(case: Case) -> Iterator[Path]:
    """A case's files."""
    drawn = np.random.default_rng(case.positions).integers(1, VOCABULARY, case.positions - 1)
    settings = config(case.shape, case.layers)
    if case.positions > 2048:
        settings.max_position_embeddings = case.positions
    with tempfile.TemporaryDirectory() as scratch:
        folder, tokens = Path(scratch), [0, *drawn.tolist()]
        write_case(folder, settings, case.kind, tokens, case.active, case.features)
        yield folder


def loaded(folder: Path, case: Case, device: str) -> Callable[[], AttributionGraph]:
    """A call that traces the case, loaded and warm."""
    model = ReplacementModel.load(folder / "model", folder / "transcoders", device=device)
    tokens = json.loads((folder / "case.json").read_text())["tokens"]
    tracer.trace(model, tokens, max_features=WARM)
    return lambda: tracer.trace(model, tokens, max_features=case.cap, rank_every=RANK_EVERY)


def equality(session: Session) -> Iterator[dict[str, Any]]:
    """The device's graphs beside the CPU's."""
    for case in session.cases(EQUAL, "equality"):
        with written(case) as folder:
            expected = loaded(folder, case, "cpu")()
            trace = loaded(folder, case, str(session.device))
            found = {"float32": deviation(expected, trace())}
            for name, entered in (
                ("tf32", in_tf32()),
                ("3xtf32", taking_products(ThreeProducts())),
            ):
                with entered:
                    found[name] = deviation(expected, trace())
        yield asdict(case) | {"difference": found}


def peak(session: Session) -> float:
    """GFLOP a second of a large float32 product."""
    size = 256 if session.quick else LARGE
    x = torch.randn(size, size, device=session.device)
    x @ x
    return max(2e-9 * size**3 / session.timed(lambda: x @ x)[1] for _ in range(5))


def speed(session: Session, cases: list[Case], name: str) -> Iterator[dict[str, Any]]:
    """Seconds, fraction of the peak and memory of each case, and the peer's seconds."""
    best = peak(session)
    for case in session.cases(cases, name):
        with written(case) as folder:
            trace = loaded(folder, case, str(session.device))
            if session.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(session.device)
            seconds = [session.timed(trace)[1] for _ in range(RUNS)]
            with metered() as meter:
                graph, _ = session.timed(trace)
            row: dict[str, Any] = asdict(case) | {"seconds": seconds}
            row["of_peak"] = sum(meter.operations.values()) / 1e9 / min(seconds) / best
            row["conservation"] = graph.metadata["conservation"]["relative"]
            if session.device.type == "cuda":
                row["peak_bytes"] = torch.cuda.max_memory_allocated(session.device)
            del trace
            if session.peer is not None and name == "shapes":
                _, timings = run_peer(session.peer, folder, case, 1, False, str(session.device))
                row["peer"] = timings["wall"]
                row["ratio"] = timings["wall"] / min(seconds)
        yield row


def run(session: Session, out: Path, machine: dict[str, Any]) -> None:
    """Every part, written down as it is done."""
    parts = {
        "equality": equality(session),
        "shapes": speed(session, SHAPES, "shapes"),
        "long": speed(session, LONG, "long"),
    }
    for name, rows in parts.items():
        session.found[name] = []
        for row in rows:
            session.found[name].append(row)
            print(name, {key: row[key] for key in row if key not in CASE_ONLY}, flush=True)
            result = {"machine": machine, **session.found, "left_out": session.left_out}
            out.write_text(json.dumps(result, indent=1) + "\n")
    if session.left_out:
        print("left out, the minutes are over: " + "; ".join(session.left_out))


CASE_ONLY = ("batches",)


def main() -> None:
    """Run every part, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the parts")
    parser.add_argument("--quick", action="store_true", help="tiny cases")
    parser.add_argument("--peer", help="Python interpreter that can import circuit_tracer")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch finds no CUDA device here; run it where there is one, or try its parts with "
            "--device cpu --quick"
        )
    ends = time.monotonic() + 60 * options.minutes
    machine = {
        "command": "python -m benchmarks.gpu",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "torch": torch.__version__,
    }
    run(Session(device, options.peer, options.quick, ends), options.output, machine)


if __name__ == "__main__":
    main()
