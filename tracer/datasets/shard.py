"""A shard while its prompts are traced: what is done, and how it is kept."""

from collections.abc import Iterable
from time import monotonic

import numpy as np
import pyarrow as pa

from graphs.collections import shards
from graphs.collections.columns import TIME_COLUMNS, TIMES, shard_file
from graphs.collections.dataset import schemas
from graphs.collections.rows import Rows, in_order, joined
from tracer.datasets.one import Done
from tracer.datasets.plan import Plan

KEEP_EVERY = 30.0
"""Seconds of work that a killed run loses at most, beside the prompt it was at."""


class Shard:
    """Prompts that follow each other, done one by one and written together."""

    def __init__(self, plan: Plan, number: int) -> None:
        """Take up what an earlier run did of it."""
        self.plan, self.number = plan, number
        self.schemas = schemas(dict(plan.about))
        before = shards.read(plan.out, number, self.schemas)
        self._rows: list[Rows] = [] if before is None else [before]
        finished = () if before is None else before.prompts["prompt"].to_pylist()
        self.missing = [one for one in plan.numbers(number) if one not in set(finished)]
        self._times = self._earlier_times(finished)
        self._kept_at, self._new = monotonic(), 0

    def add(self, done: Done) -> None:
        """Take the next of `missing`; what was taken for a while is written."""
        self._times.append((done.number, done.seconds, done.cpu_seconds))
        self._rows.append(done.rows)
        self._new += 1
        if monotonic() - self._kept_at > KEEP_EVERY:
            self.keep()

    def keep(self) -> None:
        """Write what is done.

        Raises:
            GraphError: it cannot be written.
        """
        if not self._new:
            return
        self._rows = [in_order(joined(self._rows))]
        self._write_times()
        shards.write(self.plan.out, self.number, self._rows[0], self.schemas)
        self._kept_at, self._new = monotonic(), 0

    def _write_times(self) -> None:
        columns = zip(*sorted(self._times), strict=True)
        arrays = [pa.array(held, kind) for held, kind in zip(columns, _KINDS, strict=True)]
        held = pa.table(dict(zip(TIME_COLUMNS, arrays, strict=True)))
        shards.write_part(shard_file(self.plan.out, TIMES, self.number), held)

    def _earlier_times(self, finished: Iterable[int]) -> list[tuple[int, float, float]]:
        """Those of prompts that earlier runs did, as far as they are known."""
        known = shards.read_times(self.plan.out, self.number)
        return [(one, *known.get(one, (np.nan, np.nan))) for one in finished]


_KINDS = tuple(TIME_COLUMNS.values())
