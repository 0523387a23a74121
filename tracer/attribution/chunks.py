"""Rows swept together: cut so that gradients stay in the cache and every core has as much to do."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int

from replacement_models.speed.threads import one_thread, side_by_side
from tracer.attribution.sizes import Sizes
from tracer.attribution.targets import TargetRows

CHUNK, CHUNK_ON_GPU = 4096, 65536
"""Row-positions swept together: gradients of one chunk take CHUNK x d_model numbers. On CPUs they
should stay in the cache; a GPU needs more to be busy."""
SMALL = 256
"""Row-positions below which sharing work out among cores costs more than it saves."""
ROWS, ROWS_PER_PATTERN = 16, 32
"""A chunk holds so many rows even when their positions exceed it: matrix products need them, and
more so patterns that have to be made anew for every chunk."""


def each(call: Callable[[Int[np.ndarray, " chunk"]], None], rows: TargetRows, remade: bool) -> None:
    """Call with every chunk of some rows: one a core where there are several.

    Args:
        call: sweeps rows of the given numbers, sorted by site from the top.
        rows: all of them.
        remade: whether patterns are made anew for every chunk, which should then hold more rows.
    """
    threads, on_cpu = torch.get_num_threads(), rows.vector.device.type == "cpu"
    chunks = list(_chunks(rows, ROWS_PER_PATTERN if remade else ROWS))
    small = int(rows.position.sum()) < SMALL
    if on_cpu and 1 < threads <= len(chunks) and not small:
        side_by_side(call, chunks)
        return
    with one_thread(small):
        for chunk in chunks:
            call(chunk)


def _chunks(rows: TargetRows, least: int) -> Iterator[Int[np.ndarray, " chunk"]]:
    """Row numbers by position, then site from the top, cut so that a chunk fills its budget.

    Or a core's share of the work, where chunks are few: rows from the top pass more layers than the
    rest.
    """
    budget, threads = CHUNK_ON_GPU, 1
    if rows.vector.device.type == "cpu":
        budget, threads = CHUNK, torch.get_num_threads()
    order = (rows.position * (2**20) - rows.site).argsort(kind="stable")
    positions, sites = rows.position[order].tolist(), rows.site[order].tolist()
    work = [(position + 1) * site for position, site in zip(positions, sites, strict=True)]
    share = sum(work) / threads if threads > 1 else math.inf
    begin, done = 0, 0
    for end, position in enumerate(positions):
        full = (end - begin + 1) * (position + 1) > budget or done >= share
        if full and end - begin >= least:
            yield _by_site(rows, order[begin:end])
            begin, done = end, 0
        done += work[end]
    if positions:
        yield _by_site(rows, order[begin:])


def _by_site(rows: TargetRows, chunk: np.ndarray) -> np.ndarray:
    found: np.ndarray = chunk[np.argsort(-rows.site[chunk], kind="stable")]
    return found


def side_by_side_sizes(sizes: Sizes, rows: int) -> tuple[int, int, int]:
    """How a block is cut: chunks swept at once, row-positions and rows of the largest."""
    budget = CHUNK if sizes.on_cpu else CHUNK_ON_GPU
    least = ROWS if sizes.patterns_kept else ROWS_PER_PATTERN
    whole, threads = rows * sizes.positions, sizes.threads if sizes.on_cpu else 1
    budget = min(budget, whole // threads)
    chunk = min(whole, max(budget, least * sizes.positions))
    most = min(rows, max(least, budget // sizes.positions))
    return min(threads, whole // chunk), chunk, most
