"""Where a trace's time goes: CPU seconds a stage, and the rate of the sweep's matrix products.

Used by `benchmarks/attribution.py` on one trace apart from the timed ones.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from replacement_models import recording, replacement
from tracer.attribution import assemble, blocks, product, scoring, sweep
from tracer.attribution import local_model as linear
from tracer.attribution import trace as attribute
from tracer.attribution.frontier import Frontier
from tracer.attribution.frontier_on_device import FrontierOnDevice

STAGES: dict[str, list[tuple[Any, str]]] = {
    "forward pass and encoding": [(replacement, "record")],
    "of it encoding": [(recording, "encode")],
    "check of the layout": [(replacement, "check_layout")],
    "local model": [(attribute, "linearise")],
    "of it decoder rows": [(linear, "gather")],
    "target rows": [(attribute, "logit_targets"), (blocks, "feature_rows")],
    "sweep": [(blocks, "sweep")],
    "ranking": [
        (place, name) for place in (Frontier, FrontierOnDevice) for name in ("add", "next")
    ],
    "graph": [(attribute, "assemble")],
    "of it labels": [(assemble, "labelled")],
}
PRODUCTS = {
    "scores of writers": ("score_writers", "score_mixed"),
    "attention": ("_attention", "add_product"),
    "join": ("_first_attention",),
}
"""Kinds of products in the sweep, and the functions that make them."""


def peak(size: int = 2048) -> float:
    """GFLOP per CPU second of a large float32 matrix product: torch's own or oneDNN's."""
    x = torch.randn(size, size)
    rates = []
    for call in (lambda: x @ x.T, lambda: product.product(x, x)):
        call()
        for _ in range(5):
            begin = time.process_time()
            call()
            rates.append(2e-9 * size**3 / (time.process_time() - begin))
    return max(rates)


class Meter:
    """CPU seconds and floating-point operations by name, over all threads."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.operations: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._inside = threading.local()

    def timed(self, name: str, call: Callable[..., Any], thread: bool = False) -> Any:
        """`call`, its CPU seconds (the process's, or its own thread's) added to `name`."""
        clock = time.thread_time if thread else time.process_time

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin, around = clock(), getattr(self._inside, "name", None)
            self._inside.name = name if thread else None
            result = call(*args, **kwargs)
            self._inside.name = around
            with self._lock:
                self.seconds[name] += clock() - begin
            return result

        return wrapped

    def counted(self, call: Callable[..., Tensor]) -> Any:
        """A product `x @ weight.T`, its operations added to the kind it is made for."""

        def wrapped(*args: Tensor, **kwargs: Any) -> Tensor:
            *_, x, weight = args
            name = getattr(self._inside, "name", None)
            with self._lock:
                self.operations[name or "other"] += 2.0 * len(x) * weight.numel()
            return call(*args, **kwargs)

        return wrapped

    def mixed(self, call: Callable[..., Tensor]) -> Any:
        """The mixing with attention patterns, causal halves not taken off."""

        def wrapped(pattern: Tensor, heads: Tensor) -> Tensor:
            with self._lock:
                self.operations["attention"] += 2.0 * pattern.numel() * heads.shape[-1]
            return call(pattern, heads)

        return wrapped

    def spread(self, call: Callable[..., None]) -> Any:
        """Rows at one position through every head's maps, and by the pattern to all positions."""

        def wrapped(out: Tensor, pattern: Tensor, back: Tensor, value: Tensor, *rest: Any) -> None:
            rows, positions, width = out.shape
            heads = pattern.shape[0] * pattern.shape[2]
            with self._lock:
                self.operations["join"] += 2.0 * back.numel() * width
                self.operations["join"] += 2.0 * rows * positions * heads * width
            call(out, pattern, back, value, *rest)

        return wrapped


@contextmanager
def metered() -> Iterator[Meter]:
    """Measure the stages of the traces inside."""
    meter = Meter()
    changed: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, new: Any) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    for stage, parts in STAGES.items():
        for owner, name in parts:
            put(owner, name, meter.timed(stage, getattr(owner, name)))
    put(sweep, "product", meter.counted(sweep.product))
    put(scoring, "product", meter.counted(scoring.product))
    put(scoring, "scores_product", meter.counted(scoring.scores_product))
    put(sweep, "add_product", meter.counted(sweep.add_product))
    for kind, names in PRODUCTS.items():
        for name in names:
            put(sweep, name, meter.timed(kind, getattr(sweep, name), thread=True))
    put(sweep, "_mix", meter.mixed(sweep._mix))
    put(sweep, "spread_over_keys", meter.spread(sweep.spread_over_keys))
    try:
        yield meter
    finally:
        for owner, name, old in reversed(changed):
            setattr(owner, name, old)


def profile(trace: Callable[[], Any]) -> dict[str, Any]:
    """One trace: CPU seconds a stage, and what part of the peak its products reach."""
    best = peak()
    with metered() as meter:
        begin = time.process_time()
        trace()
        whole = time.process_time() - begin
    done = sum(meter.operations.values())
    return {
        "whole": whole,
        "seconds": {name: meter.seconds[name] for name in [*STAGES, *PRODUCTS]},
        "gflop": {name: count / 1e9 for name, count in meter.operations.items()},
        "peak_gflop_per_cpu_second": best,
        "of_peak": {
            "sweep": done / 1e9 / meter.seconds["sweep"] / best,
            **{
                kind: meter.operations[kind] / 1e9 / meter.seconds[kind] / best
                for kind in PRODUCTS
                if meter.seconds[kind]
            },
        },
        "ranking_share": meter.seconds["ranking"] / whole,
    }
