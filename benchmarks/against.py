"""This checkout's engine against another one's: `python -m benchmarks.against CHECKOUT`.

Both trace the same random models and dictionaries, loaded once, each in a process of its own, in
turns, after one untimed trace; the least CPU seconds of each count. The cases are shapes of known
models and, beside them, shapes drawn at random anew in every run; `--seed` draws given ones. The
graphs must be the same up to rounding. Beside each ratio stands its bound: what share of a large
product's rate this checkout's sweep reaches (`stages.py`), and the ratio if it reached all of it.
`--long` adds a prompt of 512 tokens with 8,192 rows: `LONG_MINUTES` a trace, three in a run.
Prints a line a case and writes JSON.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

import tracer
from benchmarks.checkouts import checkout, revision
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import VOCABULARY, config, drawn_config, write_case
from benchmarks.stages import profile
from replacement_models import ReplacementModel
from replacement_models.speed.choice_file import processor_name

HERE = Path(__file__).parents[1]
KINDS = ("per_layer", "cross_layer")
RANK_EVERY = 512
SAME = 1e-4
"""Largest difference of an effect, as a share of the largest, that rounding makes."""


@dataclass(frozen=True)
class Case:
    """What is traced."""

    kind: str
    positions: int
    rows: int
    active: int
    features: int
    shape: str
    layers: int
    drawn: bool = False


NAMED = [
    Case(kind, positions, rows, 40, 4096, "gpt2", 12)
    for kind, positions, rows in (
        ("per_layer", 16, 256),
        ("per_layer", 32, 512),
        ("cross_layer", 8, 256),
        ("cross_layer", 16, 256),
    )
]
PROFILED = 3
"""Traces of which the quickest says where the time goes."""
LONG = Case("per_layer", 512, 8192, 40, 4096, "gpt2", 12)
LONG_MINUTES = 3
"""Of one trace on one core."""


def drawn(random: np.random.Generator, kind: str) -> tuple[Case, Any]:
    """A case and its configuration, drawn at random."""
    settings = drawn_config(random)
    case = Case(
        kind=kind,
        positions=int(random.integers(6, 49)),
        rows=int(random.integers(100, 601)),
        active=int(random.integers(8, 61)),
        features=int(random.choice([1024, 2048, 3000])),
        shape=_said(settings),
        layers=settings.num_hidden_layers,
        drawn=True,
    )
    return case, settings


def _said(settings: Any) -> str:
    heads = f"{settings.num_attention_heads} heads"
    if shared := getattr(settings, "num_key_value_heads", None):
        heads += f" on {shared}"
    return f"{settings.model_type} {settings.hidden_size} wide, {heads}"


@contextmanager
def side(folder: Path, case: Case, root: Path) -> Iterator[subprocess.Popen[str]]:
    """One checkout's process, loaded and warm."""
    script = str(Path(__file__).with_name("traced_in_turns.py"))
    call = [sys.executable, script, str(folder), str(case.rows), str(RANK_EVERY)]
    with subprocess.Popen(
        call,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            answer(process)
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str], word: str | None = None) -> str:
    """What a side says to a word."""
    assert process.stdin is not None
    assert process.stdout is not None
    if word is not None:
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a side ended before it was done; its error stands above")
    return line


def effects(path: Path) -> tuple[list[str], sparse.csr_array]:
    """Ids and effects that a side wrote."""
    with np.load(path) as found:
        ids = found["ids"].tolist()
        where = (found["value"], (found["row"], found["column"]))
        return ids, sparse.coo_array(where, shape=(len(ids), len(ids))).tocsr()


def difference(one: Path, other: Path) -> float:
    """Largest difference of effects, relative to the largest; inf where the nodes differ."""
    (ids, ours), (their_ids, theirs) = effects(one), effects(other)
    if sorted(ids) != sorted(their_ids):
        return float("inf")
    place = {name: at for at, name in enumerate(their_ids)}
    order = [place[name] for name in ids]
    return float(abs(ours - theirs[order][:, order]).max() / abs(ours).max())


def measure(case: Case, settings: Any, other: Path, runs: int) -> dict[str, Any]:
    """Both sides of a case, in turns."""
    random = np.random.default_rng(case.positions)
    tokens = [0, *random.integers(1, VOCABULARY, case.positions - 1).tolist()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_case(folder, settings, case.kind, tokens, case.active, case.features)
        files = [folder / "new.npz", folder / "old.npz"]
        with side(folder, case, HERE) as new, side(folder, case, other) as old:
            times: list[list[float]] = [[], []]
            for _ in range(runs):
                for found, process in zip(times, (old, new), strict=True):
                    found.append(float(answer(process, "trace").split()[0]))
            for process, file in zip((new, old), files, strict=True):
                answer(process, str(file))
        far = difference(*files)
        before, after = (min(found) for found in times)
        limits = bound(folder, case, before / after)
    return {
        **asdict(case),
        "before": times[0],
        "after": times[1],
        "ratio": before / after,
        "difference": far,
        **limits,
    }


def bound(folder: Path, case: Case, ratio: float) -> dict[str, Any]:
    """Shares of the peak that this checkout reaches, and the ratio if its sweep reached all of it.

    Args:
        folder: the case's files.
        case: what is traced.
        ratio: of the other checkout's CPU seconds to this one's.
    """
    model = ReplacementModel.load(folder / "model", folder / "transcoders")
    tokens = json.loads((folder / "case.json").read_text())["tokens"]

    def trace() -> Any:
        return tracer.trace(model, tokens, max_features=case.rows, rank_every=RANK_EVERY)

    if case != LONG:
        trace()
    traces = (profile(trace) for _ in range(1 if case == LONG else PROFILED))
    found = min(traces, key=lambda one: float(one["whole"]))
    share = found["seconds"]["sweep"] / found["whole"]
    return {
        "of_peak": found["of_peak"],
        "sweep_share": share,
        "ratio_at_peak": ratio / (1 - share * (1 - min(1.0, found["of_peak"]["sweep"]))),
    }


def means(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean and least ratio, a kind each."""
    found = {}
    for kind in KINDS:
        ratios = [one["ratio"] for one in results if one["kind"] == kind]
        if ratios:
            mean = float(np.exp(np.log(ratios).mean()))
            found[kind] = {"geometric_mean": mean, "least": min(ratios), "cases": len(ratios)}
    return found


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=checkout, help="folder of the other checkout")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--random", type=int, default=2, help="shapes drawn for each kind")
    parser.add_argument("--seed", type=int, help="of the shapes; drawn and printed if left out")
    parser.add_argument("--limit", type=int, help="at most so many cases of known models")
    parser.add_argument("--long", action="store_true", help=f"one more: {LONG_MINUTES} min a trace")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "against.json")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    random = np.random.default_rng(seed)
    cases = [(case, config(case.shape, case.layers)) for case in NAMED[: options.limit]]
    cases += [(LONG, config(LONG.shape, LONG.layers))] * options.long
    cases += [drawn(random, kind) for _ in range(options.random) for kind in KINDS]
    result: dict[str, Any] = {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "against": revision(options.checkout),
        "revision": revision(HERE),
        "seed": seed,
        "results": [],
    }
    print(f"seed {seed}")
    for case, settings in cases:
        one = measure(case, settings, options.checkout, 1 if case == LONG else options.runs)
        result["results"].append(one)
        print(
            f"{case.kind:12}{case.shape}, {case.layers} layers, {case.positions} tokens, "
            f"{case.rows} rows: {min(one['before']):.3f} -> {min(one['after']):.3f} s, "
            f"{one['ratio']:.2f} times; sweep at {one['of_peak']['sweep']:.0%} of the peak, "
            f"{one['ratio_at_peak']:.2f} times if at all of it; difference {one['difference']:.0e}",
            flush=True,
        )
        result["means"] = means(result["results"])
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(result["means"])
    worst = max(one["difference"] for one in result["results"])
    if worst > SAME:
        raise SystemExit(f"effects differ by {worst:.1e} of the largest, expected {SAME}")


if __name__ == "__main__":
    main()
