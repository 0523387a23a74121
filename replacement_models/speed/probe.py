"""A short probe: which way makes products like a given one in the least time, here and now.

Time is CPU time, since others may work on the machine: of the calling thread where it multiplies
alone, beside others that do the same, and else of the process. All ways share their work out.
"""

import math
import time
from collections.abc import Iterable
from itertools import cycle

import torch
from torch import Tensor

from replacement_models.speed.ways import COMPILED, WAYS, gathered, layout

ROUNDS, MOST_ROUNDS = 4, 16
"""Most rounds of calls, and of short ones, which something else disturbs more."""
FIRST_SLOW, SLOW = 4.0, 1.3
"""Ways that took so many times the best, of the first calls and later, are called no more."""
BETTER = 0.97
"""Share of torch's own time that another way must stay below."""
TURNED = 1.05
"""What is added to turned ways: amid other work their transposed results cost more than here."""
COMPILES = 0.0015
"""Seconds that compiling is taken to cost at most: it is seen once, and may have been disturbed."""
LIMIT, SHORT = 0.03, 0.012
"""Seconds after which no round after the second begins, and none beyond `ROUNDS`. Twice the former
ends the first calls: where copies are slow the last ways on offer are not looked at."""
SAMPLE, FEW_SAMPLE = 128e6, 112e6
"""Floating-point operations of what is timed in place of a larger product; of one of few rows or
columns, which waits for memory."""
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
    some, parts = _sample(x, weight)
    scale, turn = len(x) * len(weight) / (len(some) * len(parts[0])), cycle(parts)
    begin = time.thread_time()
    first: dict[str, float] = {}
    for way in ways:
        if time.thread_time() - begin < 2 * LIMIT:
            first[way] = _seconds(way, some, next(turn))
    best, slow = dict(first), FIRST_SLOW
    for count in range(MOST_ROUNDS):
        if count > 1 and time.thread_time() - begin > (LIMIT if count < ROUNDS else SHORT):
            break
        keep = slow * min(best.values())
        for way in [way for way in best if best[way] <= keep]:
            best[way] = min(best[way], _seconds(way, some, next(turn)))
        slow = SLOW
    whole = {
        way: seconds * scale * (TURNED if "turned" in way else 1.0)
        + min(COMPILES, first[way] - seconds) / uses * (way in COMPILED)
        for way, seconds in best.items()
    }
    quickest = min(whole, key=lambda way: whole[way])
    return quickest if whole[quickest] < BETTER * whole["torch"] else "torch"


def _seconds(way: str, x: Tensor, weight: Tensor) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.process_time
    begin = clock()
    WAYS[way](x, weight).contiguous()
    return clock() - begin


def _sample(x: Tensor, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Rows of both, laid out as they are, enough of them to tell the ways apart.

    Of a large weight all parts that are so large: taken in turn, they come from memory, as it does.
    """
    few = min(len(x), len(weight)) < FEW
    most = (FEW_SAMPLE if few else SAMPLE) / (2 * x.shape[1])
    columns = _some(len(weight), max(COLUMNS, most / min(len(x), ROWS)))
    starts = range(0, len(weight) - columns + 1, columns)
    if layout(weight) not in ("plain", "rows"):  # parts of others are copies
        starts = starts[:1]
    parts = [_cut(weight[start:], columns) for start in starts]
    return _cut(x, _some(len(x), max(LEAST, most / columns))), parts


def _some(count: int, wanted: float) -> int:
    """About so many rows: all, a half, a quarter, which keeps what powers of two do to caches."""
    return max(1, count >> max(0, round(math.log2(count / wanted))))


def _cut(matrix: Tensor, rows: int) -> Tensor:
    part = gathered(matrix[:rows])
    return part.T.contiguous().T if layout(matrix) == "transposed" else part
