"""A short probe: which way makes products like a given one in the least time, here and now.

Time is that of the calling thread, since others may work on the machine; a thread that waits for
its helpers spins.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from replacement_models.speed.ways import COMPILED, WAYS, gathered, layout

ROUNDS = 3
SLOW = 1.3
"""Ways that took so many times the best of the first round take part in no other."""
BETTER = 0.97
"""Share of torch's own time that another way must stay below."""
LIMIT = 0.03
"""Seconds after which no other round begins."""
SAMPLE, FEW_SAMPLE = 128e6, 48e6
"""Floating-point operations of what is timed in place of a larger product; with few rows."""
FEW = 64
ROWS, COLUMNS, LEAST = 256, 64, 16


@torch.no_grad()
def fastest(ways: Iterable[str], x: Tensor, weight: Tensor, uses: int) -> str:
    """The name of the fastest of `ways`, of which torch's own is one.

    Args:
        ways: their names.
        x: (rows, inner).
        weight: (columns, inner).
        uses: products of one shape that share what compiling for it takes.
    """
    some = _sample(x, weight)
    scale = len(x) * len(weight) / (len(some[0]) * len(some[1]))
    begin = time.thread_time()
    first = {way: _seconds(way, *some) for way in ways}
    best = {way: _seconds(way, *some) for way in first}
    for _ in range(1, ROUNDS):
        if time.thread_time() - begin > LIMIT:
            break
        keep = SLOW * min(best.values())
        for way in [way for way in best if best[way] <= keep]:
            best[way] = min(best[way], _seconds(way, *some))
    whole = {
        way: seconds * scale + max(0.0, first[way] - seconds) / uses * (way in COMPILED)
        for way, seconds in best.items()
    }
    quickest = min(whole, key=lambda way: whole[way])
    return quickest if whole[quickest] < BETTER * whole["torch"] else "torch"


def _seconds(way: str, x: Tensor, weight: Tensor) -> float:
    begin = time.thread_time()
    WAYS[way](x, weight).contiguous()
    return time.thread_time() - begin


def _sample(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first rows of both, laid out as they are, enough of them to tell the ways apart."""
    most = (FEW_SAMPLE if len(x) < FEW else SAMPLE) / (2 * x.shape[1])
    columns = min(len(weight), max(COLUMNS, int(most / min(len(x), ROWS))))
    return _cut(x, max(LEAST, int(most / columns))), _cut(weight, columns)


def _cut(matrix: Tensor, rows: int) -> Tensor:
    part = gathered(matrix[:rows])
    return part.T.contiguous().T if layout(matrix) == "transposed" else part
