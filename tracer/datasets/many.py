"""Trace many prompts to a dataset of graphs, each of them exactly once.

Prompts are traced one after the other, and shards of them written: what a shard holds is its
prompts in order, whoever traced them and however often the work was cut short. Graphs are pruned
before they get the labels of a feature store, which only what is left needs.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from graphs.collections import shards
from graphs.collections.dataset import GraphDataset, schemas
from replacement_models import ReplacementModel
from replacement_models.one_writer import one_writer
from replacement_models.process import one_call
from tracer.datasets.on_ray import check_ray, trace_on_ray
from tracer.datasets.one import done
from tracer.datasets.plan import Plan, begin, plan
from tracer.datasets.products import Products
from tracer.datasets.prompt_files import read_prompts
from tracer.datasets.prompts import Prompt, prompts_of
from tracer.datasets.shard import Shard
from tracer.errors import TraceError
from tracer.interrupts import stopped_once

SHARD = 64
"""Prompts a shard."""
Progress = Callable[[int, int], None]
"""Called with prompts done, earlier runs' included, and prompts in all."""


@one_call()
@torch.no_grad()
def trace_many(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    prompts: str | Path | Iterable[Any],
    out: str | Path,
    *,
    nodes: float = 0.8,
    edges: float = 0.98,
    shard: int = SHARD,
    ray: str | None = None,
    workers: int | None = None,
    retry: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> GraphDataset:
    """Graphs of many prompts, pruned, in one folder of Parquet.

    A prompt that cannot be traced is a row with its reason. Interrupted, even by kill -9, the same
    call goes on with the prompts that have no row, and ends with the same bytes
    (tests/test_tracer_datasets.py).

    Args:
        model: what to trace.
        prompts: a file (text with a prompt a line, .jsonl, .csv, .parquet), or texts, lists of
            token ids and mappings with `prompt` or `tokens`, `targets` (or `target` and `minus`)
            and columns of the caller's own.
        out: folder to write, or to go on with.
        nodes: share of node influence that graphs keep, in (0, 1]; with `edges` 1, they are whole.
        edges: share of edge influence, in (0, 1].
        shard: prompts a file.
        ray: "local", or the address of a cluster of Ray, over whose processes shards are spread:
            the same bytes; None traces in this process.
        workers: processes of Ray with a model; None: one a processor, or a GPU.
        retry: trace prompts anew that failed before; those that fail again are rows again.
        progress: called after every prompt; with `ray` after every shard.
        settings: as for `tracer.trace`; `targets` are those of prompts that have none of their own.

    Returns:
        The dataset: `nodes`, `edges` and `prompts` for pyarrow, `graph(number)` for one graph.

    Raises:
        TraceError: the prompts, a setting, or what stands at `out` cannot be used, or Ray cannot.
        ModelError: another process is writing there.
        GraphError: the place cannot be written, or holds torn files.
        TypeError: `trace` has no such setting.
    """
    given = _read(prompts)
    asked = plan(model, given, Path(out), shard, (nodes, edges), settings)
    if workers is not None and (ray is None or workers < 1):
        raise TraceError(f"workers is {workers}: expected 1 or more, and ray with it")
    if ray is not None:
        check_ray(model, ray)
    tell = progress or (lambda done, total: None)
    with one_writer(asked.out, "prompts"), stopped_once():
        begin(asked)
        if retry:
            known = schemas(dict(asked.about))
            for number in range(asked.shards):
                shards.forget_failed(asked.out, number, known)
        if ray is None:
            _one_by_one(model, asked, tell)
        else:
            trace_on_ray(model, asked, ray, workers, tell)
    return GraphDataset.load(asked.out)


def _read(prompts: str | Path | Iterable[Any]) -> list[Prompt]:
    """Prompts of a file, of values, or as they were read before."""
    return read_prompts(prompts) if isinstance(prompts, str | Path) else prompts_of(prompts)


def _one_by_one(model: ReplacementModel, asked: Plan, progress: Progress) -> None:
    products = Products(asked.out)
    count = [shards.count(asked.out, number) for number in range(asked.shards)]
    finished = sum(count)
    progress(finished, len(asked.prompts))
    for number in range(asked.shards):
        if count[number] == len(asked.numbers(number)):
            continue
        working = Shard(asked, number)
        try:
            for one in working.missing:
                found = done(model, asked.how, one, asked.prompts[one], products.known)
                products.add(found.products)
                working.add(found)
                finished += 1
                progress(finished, len(asked.prompts))
        except KeyboardInterrupt:
            working.keep()
            raise
        working.keep()
