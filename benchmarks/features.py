"""What a feature store costs: searches among a million features, tokens a second of a build.

    python -m benchmarks.features
    python -m benchmarks.features --quick
    python -m benchmarks.features --model FOLDER

Search: a synthetic store (columns that searches read are drawn at random), every way of searching,
the first query, which reads what is searched, apart from the following ones. Build: the pass over
text against the same forward pass with every dictionary encoding and nothing kept, in turns, on the
embedded default, on GPT-2's shape with a per-layer dictionary of random weights, and with --model
on the neurons of another. Prints tables and writes JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.attribution import processor
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import write_case
from replacement_models import ReplacementModel
from tracer.features.build import default_settings
from tracer.features.encoding import encode_rows
from tracer.features.running import Running
from tracer.features.search import WAYS, Index
from tracer.features.tables import (
    EXAMPLE_COLUMNS,
    EXAMPLES,
    FEATURE_COLUMNS,
    FEATURES,
    PLACES,
    WINDOW_COLUMNS,
    WINDOWS,
    layer_file,
    write,
)

LAYERS, WORDS, EACH, WINDOW, WINDOW_COUNT, QUERIES = 4, 50_000, 10, 64, 20_000, 20
"""Of the synthetic store; words that are drawn from, words and neighbours a feature has."""
BATCHES, BATCHES_OF_LARGE, ROWS = 200, 5, 16
"""Of a build's pass, and rows of a batch."""


def synthetic(path: Path, features: int) -> Index:
    """A store of so many features with what searches read, in LAYERS layers."""
    drawn, count = np.random.default_rng(0), features // LAYERS
    names = pa.array([f" w{number}" for number in range(WORDS)])
    for layer in range(LAYERS):
        write(feature_rows(drawn, names, count), layer_file(path, FEATURES, layer))
        write(example_rows(drawn, count), layer_file(path, EXAMPLES, layer))
    write(window_rows(drawn, names), path / WINDOWS)
    return Index(path, range(LAYERS))


def feature_rows(drawn: np.random.Generator, names: pa.Array, count: int) -> pa.Table:
    """Rows of one layer; what no search reads is null."""
    offsets = pa.array(np.arange(0, count * EACH + 1, EACH, dtype=np.int32))

    def listed(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    columns = {one.name: pa.nulls(count, one.type) for one in FEATURE_COLUMNS}
    columns["feature"] = pa.array(np.arange(count, dtype=np.int32))
    columns["label"] = names.take(pa.array(drawn.integers(0, WORDS, count)))
    for name, weight in (("fires_on", "fires_on_share"), ("promoted", "promoted_score")):
        columns[name] = listed(names.take(pa.array(drawn.integers(0, WORDS, count * EACH))))
        columns[weight] = listed(pa.array(drawn.random(count * EACH, dtype=np.float32)))
    near = [
        pa.array(drawn.integers(0, LAYERS, count * EACH, dtype=np.int32)),
        pa.array(drawn.integers(0, count, count * EACH, dtype=np.int32)),
        pa.array(drawn.random(count * EACH, dtype=np.float32)),
    ]
    columns["similar"] = listed(pa.StructArray.from_arrays(near, fields=list(PLACES.value_type)))
    return pa.table(columns).cast(FEATURE_COLUMNS)


def example_rows(drawn: np.random.Generator, count: int) -> pa.Table:
    """Two examples a feature."""
    columns = {one.name: pa.nulls(2 * count, one.type) for one in EXAMPLE_COLUMNS}
    columns["feature"] = pa.array(np.repeat(np.arange(count), 2), pa.int32())
    columns["window"] = pa.array(drawn.integers(0, WINDOW_COUNT, 2 * count))
    return pa.table(columns, schema=EXAMPLE_COLUMNS)


def window_rows(drawn: np.random.Generator, names: pa.Array) -> pa.Table:
    """Windows of words at random."""
    words = names.take(pa.array(drawn.integers(0, WORDS, WINDOW_COUNT * WINDOW)))
    ends = pa.array(np.arange(0, WINDOW_COUNT * WINDOW + 1, WINDOW, dtype=np.int32))
    columns = {one.name: pa.nulls(WINDOW_COUNT, one.type) for one in WINDOW_COLUMNS}
    columns["window"] = pa.array(np.arange(WINDOW_COUNT))
    columns["texts"] = pa.ListArray.from_arrays(ends, words)
    return pa.table(columns, schema=WINDOW_COLUMNS)


def searches(features: int) -> list[dict[str, Any]]:
    """Seconds of every way to search a store of so many features."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        index = synthetic(Path(folder), features)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        for by in WAYS:
            first, *rest = (timed(partial(index.search, q, by, 20)) for q in queries(by))
            wall, cpu = (median(column) for column in zip(*rest, strict=True))
            row = {"features": features, "by": by, "bytes_on_disk": size}
            row |= {"first_seconds": first[0], "median_seconds": wall, "median_cpu_seconds": cpu}
            row["worst_seconds"] = max(seconds for seconds, _ in rest)
            found.append(row)
            print(
                f"{features:,} features by {by}: first {first[0]:.3f} s, then {wall * 1e3:.1f} ms "
                f"({cpu * 1e3:.1f} ms CPU), at worst {row['worst_seconds'] * 1e3:.1f} ms",
                flush=True,
            )
    return found


def queries(by: str) -> list[str]:
    """What is asked, one more than is timed warm."""
    if by == "similar":
        return [f"{number % LAYERS}/{977 * number}" for number in range(QUERIES + 1)]
    return [f"w{777 + 31 * number}" for number in range(QUERIES + 1)]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    begun, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - used


def spent(call: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def passes(name: str, model: ReplacementModel, batches: int) -> dict[str, Any]:
    """CPU seconds of a build's pass and of forward and encoding alone, batch by batch in turns."""
    settings = default_settings(model, batch=ROWS)
    vocabulary, shape = model.host.vocabulary, (ROWS, settings.context)
    generator = torch.Generator().manual_seed(0)
    running = Running.empty(model, settings)

    def bare(rows: Tensor) -> None:
        encode_rows(model, rows, settings.skip_positions, lambda layer, active: None)

    def build(rows: Tensor) -> None:
        running.add(model, rows, settings, 0.05)

    pairs = []
    with torch.no_grad():
        bare(torch.randint(5, vocabulary, shape, generator=generator))
        for _ in range(batches):
            rows = torch.randint(5, vocabulary, shape, generator=generator)
            pairs.append((spent(partial(bare, rows)), spent(partial(build, rows))))
    forward, whole = (sum(column) for column in zip(*pairs, strict=True))
    tokens = batches * ROWS * settings.context
    found = {
        "model": name,
        "features": sum(len(one.W_enc) for one in model.transcoder.layers),
        "tokens": tokens,
        "forward_and_encoding_cpu_seconds": forward,
        "build_cpu_seconds": whole,
        "ratio": whole / forward,
        "ratios": [build / bare for bare, build in pairs],
        "tokens_per_cpu_second": tokens / whole,
    }
    print(
        f"{name}: {found['tokens_per_cpu_second']:,.0f} tokens a CPU second, "
        f"{found['ratio']:.2f} times forward and encoding",
        flush=True,
    )
    return found


def builds(model: str | None, quick: bool) -> list[dict[str, Any]]:
    """The pass on every model, from its first batch on."""
    found = [passes("embedded default", ReplacementModel.load(), 1 if quick else BATCHES)]
    few = 1 if quick else BATCHES_OF_LARGE
    with tempfile.TemporaryDirectory() as folder:
        tokens = list(range(5, 21))
        write_case(Path(folder), ("gpt2", 4), "per_layer", tokens, 40, 8192)
        shape = ReplacementModel.load(Path(folder) / "model", Path(folder) / "transcoders")
        found.append(passes("GPT-2, 4 layers of 8,192 features", shape, few))
    if model is not None:
        bare = ReplacementModel.load(model, "neurons")
        found.append(passes(f"neurons of {Path(model).name}", bare, few))
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 features, one turn")
    parser.add_argument("--model", help="folder of a model whose neurons are passed over too")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "features.json")
    options = parser.parse_args()
    sizes = (100_000,) if options.quick else (100_000, 1_000_000)
    result = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "build": builds(options.model, options.quick),
        "search": [row for size in sizes for row in searches(size)],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Saved {options.output}")


if __name__ == "__main__":
    main()
