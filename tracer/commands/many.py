"""`tracer trace --prompts`: a dataset of graphs, one of each prompt of a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.group import Interrupted
from tracer.commands.models import load_model
from tracer.commands.options import EXISTING, POSITIVE, SHARE, together
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import GraphDataset

MOST_REASONS = 5
"""Reasons of failed prompts that are printed."""
ONLY_WITH_PROMPTS = ("nodes", "edges", "shard", "ray", "workers", "retry")

many_options = together(
    click.option(
        "--prompts",
        type=EXISTING,
        metavar="FILE",
        help="Trace every prompt of a file to a dataset of pruned graphs: text with a prompt a "
        "line, .jsonl, .csv or .parquet.",
        show_default="PROMPT alone",
    ),
    click.option(
        "--nodes",
        type=SHARE,
        default=0.8,
        help="With --prompts: share of the node influence to keep.",
    ),
    click.option(
        "--edges",
        type=SHARE,
        default=0.98,
        help="With --prompts: share of the edge influence to keep.",
    ),
    click.option(
        "--shard", type=POSITIVE, default=64, help="With --prompts: prompts a file of the dataset."
    ),
    click.option(
        "--ray",
        metavar="local|ADDRESS",
        help="With --prompts: spread shards over this machine's processors, or a cluster of Ray.",
        show_default="this process alone",
    ),
    click.option(
        "--workers",
        type=POSITIVE,
        help="With --ray: processes with a model.",
        show_default="one a processor, or a GPU",
    ),
    click.option(
        "--retry",
        is_flag=True,
        help="With --prompts: trace prompts anew that failed before.",
        show_default="they stay",
    ),
)


def refuse_without_prompts(context: click.Context) -> None:
    """Refuse options that mean nothing for a single prompt.

    Raises:
        UsageError: one of them is given.
    """
    for name in ONLY_WITH_PROMPTS:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} needs --prompts", context)


def trace_prompts(prompts: Path, output: Path | None, options: dict[str, Any]) -> None:
    """Trace a file of prompts, or go on with it, and say what came of it."""
    from tracer.datasets.prompt_files import read_prompts

    out = output or Path(f"{prompts.stem}.graphs")
    given = read_prompts(prompts)  # before a model is loaded: what is wrong is said at once
    model = load_model(options)
    options["progress"] = None
    with rated_progress() as advance:
        options["progress"] = advance
        try:
            dataset = tracer.trace_many(model, given, out, **options)
        except KeyboardInterrupt as error:
            said = f"interrupted; {out} holds what was finished, the same command goes on from it"
            raise Interrupted(said, getattr(error, "exit_code", 130)) from error
    print_dataset(dataset)


@contextmanager
def rated_progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many prompts are done, how many a second, and how long the rest will take."""
    what = "Tracing prompts"
    with progress(what) as advance:
        start: list[tuple[int, float]] = []

        def show(done: int, total: int) -> None:
            start.append((done, monotonic())) if not start else None
            first, began = start[0]
            spent = monotonic() - began
            rate = f", {(done - first) / spent:.3g} graphs a second" if done > first else ""
            advance(done, total, f"{what} ({done} of {total}{rate})")

        yield show


def print_dataset(dataset: "GraphDataset") -> None:
    """Print how many prompts were traced, what failed, and how good the graphs are."""
    import numpy as np
    from pyarrow import compute

    columns = ["prompt", "status", "reason", "replacement", "completeness", "uncovered"]
    held = dataset.prompts.to_table(columns=columns)
    failed = held.filter(compute.equal(held["status"], "failed"))
    rows = [("prompts", f"{held.num_rows - failed.num_rows} traced, {failed.num_rows} failed")]
    for name in columns[3:]:
        values = held[name].drop_null().to_numpy()
        if len(values):
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
            spread = f"{middle:.4f} at the median, {low:.4f} to {high:.4f} in the middle 80 %"
            rows.append((name, spread))
    print_table((), rows)
    shown = failed.slice(0, MOST_REASONS).select(["prompt", "reason"]).to_pylist()
    if shown:
        print_table(("prompt", "failed because"), [(r["prompt"], r["reason"]) for r in shown])
    say(f"Saved {dataset.path}. In Python: tracer.GraphDataset.load({str(dataset.path)!r})")
