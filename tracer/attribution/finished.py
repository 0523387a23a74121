"""Finished rows, kept until the graph is built.

Rows that read at one site and position know the same columns, which lie together in a few slices:
their effects are kept as a plain rectangle, four bytes an entry in float32, and no column's number
is written down. With an edge floor every row keeps other columns, and their numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from graphs.influence import input_absolute, row_sums
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.targets import TargetRows, runs

INDEX = np.dtype(np.int32)
"""Of a column's number in rows with an edge floor."""
PART = 64
"""Most rows finished at once, and the fewest a block is cut down to."""
SUMMED = 1 << 21
"""Numbers summed at once, in float64."""
TILE = 1 << 18
"""Numbers whose sizes are passed on at once: they stay in the cache."""


class RowRun(Protocol):
    """Neighbouring rows that read at one site and position."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def nbytes(self) -> int:
        """Bytes of their effects."""

    def pass_on(
        self, weight: Float[np.ndarray, " rows"], into: Float[np.ndarray, " columns"]
    ) -> None:
        """Add to every column the sizes of its effects, each row's times its weight."""

    def dense(self, columns: int) -> Float[np.ndarray, "rows columns"]:
        """The effects of all columns, zero where nothing is kept."""

    def among(self, node: Int[np.ndarray, " columns"], nodes: int) -> "NodeRows":
        """The effects of columns that are nodes; `node` has each column's, or -1."""


@dataclass(frozen=True, eq=False)
class NodeRows:
    """Some rows with nodes for columns, ascending in each."""

    effects: sparse.csr_array
    """(rows, nodes)."""
    signed: Float[np.ndarray, " rows"]
    absolute: Float[np.ndarray, " rows"]
    """Sums over the nodes."""
    whole: bool
    """Whether every effect of the rows is among them."""

    @classmethod
    def of(
        cls,
        data: Float[np.ndarray, " entries"],
        index: Int[np.ndarray, " entries"],
        counts: Int[np.ndarray, " rows"],
        nodes: int,
        whole: bool,
    ) -> "NodeRows":
        """Row after row, nodes in any order; uses up what it is given."""
        start = np.concatenate([[0], counts.cumsum()]).astype(index.dtype)
        effects = sparse.csr_array((data, index, start), shape=(len(counts), nodes))
        signed, absolute = row_sums(effects), input_absolute(effects)
        effects.sort_indices()
        return cls(effects, signed, absolute, whole)


@dataclass(frozen=True, eq=False)
class WholeRun:
    """Rows of which every effect is kept."""

    reach: Reach
    values: Float[np.ndarray, "rows reaching"]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of their effects."""
        return self.values.nbytes

    def pass_on(
        self, weight: Float[np.ndarray, " rows"], into: Float[np.ndarray, " columns"]
    ) -> None:
        """As `RowRun.pass_on`."""
        for columns, values in self._by_slice():
            wide = max(1, TILE // len(values))
            for begin in range(0, values.shape[1], wide):
                tile = np.abs(values[:, begin : begin + wide], dtype=np.float64)
                at = columns.start + begin
                into[at : at + tile.shape[1]] += weight @ tile

    def dense(self, columns: int) -> Float[np.ndarray, "rows columns"]:
        """As `RowRun.dense`."""
        found = np.zeros((self.rows, columns), dtype=self.values.dtype)
        for place, values in self._by_slice():
            found[:, place] = values
        return found

    def among(self, node: Int[np.ndarray, " columns"], nodes: int) -> NodeRows:
        """As `RowRun.among`."""
        found = node[self.reach.columns()]
        inside = np.flatnonzero(found >= 0)
        data, counts = self.values[:, inside].ravel(), np.full(self.rows, len(inside))
        index = np.tile(found[inside], self.rows)
        return NodeRows.of(data, index, counts, nodes, len(inside) == len(found))

    def _by_slice(self) -> Iterator[tuple[slice, np.ndarray]]:
        begin = 0
        for columns in self.reach.slices:
            end = begin + columns.stop - columns.start
            yield columns, self.values[:, begin:end]
            begin = end


@dataclass(frozen=True, eq=False)
class FlooredRun:
    """Rows less what lay below the edge floor."""

    effects: sparse.csr_array
    """(rows, columns)."""

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.effects.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of their effects."""
        return int(self.effects.data.nbytes + self.effects.indices.nbytes)

    def pass_on(
        self, weight: Float[np.ndarray, " rows"], into: Float[np.ndarray, " columns"]
    ) -> None:
        """As `RowRun.pass_on`."""
        into += weight @ abs(self.effects)

    def dense(self, columns: int) -> Float[np.ndarray, "rows columns"]:
        """As `RowRun.dense`."""
        found: Float[np.ndarray, "rows columns"] = self.effects.toarray()
        return found

    def among(self, node: Int[np.ndarray, " columns"], nodes: int) -> NodeRows:
        """As `RowRun.among`."""
        index = node[self.effects.indices]
        inside = np.flatnonzero(index >= 0)
        counts = np.diff(np.searchsorted(inside, self.effects.indptr))
        whole = len(inside) == len(index)
        return NodeRows.of(self.effects.data[inside], index[inside], counts, nodes, whole)


@dataclass(frozen=True, eq=False)
class Sums:
    """Of some rows, over all that reaches them."""

    signed: Float[np.ndarray, " rows"]
    absolute: Float[np.ndarray, " rows"]
    floored: Float[np.ndarray, "rows 2"]
    """What lay below the edge floor: the sum, and the sum of sizes."""

    @classmethod
    def joined(cls, parts: list["Sums"]) -> "Sums":
        """Those of rows that follow each other."""
        return cls(
            np.concatenate([part.signed for part in parts]),
            np.concatenate([part.absolute for part in parts]),
            np.concatenate([part.floored for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """Some finished rows."""

    columns: Int[np.ndarray, " rows"]
    """Columns of the rows' own nodes; empty for logits."""
    effects: list[RowRun]
    """All of them, in order."""
    constant: Float[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]
    sums: Sums
    places: list[tuple[int, int]]
    """Site and position that each of `effects` reads at."""


def parts_of(local: LocalModel, rows: TargetRows) -> list[tuple[slice, Reach]]:
    """Neighbouring rows that read at one site and position, at most `PART`; what reaches them."""
    found = []
    for run in runs(rows.site * local.positions + rows.position):
        reach = local.reach(int(rows.site[run.start]), int(rows.position[run.start]))
        cuts = [*range(run.start, run.stop, PART), run.stop]
        found += [(slice(*ends), reach) for ends in pairwise(cuts)]
    return found


def places_of(rows: TargetRows, parts: Sequence[tuple[slice, Reach]]) -> list[tuple[int, int]]:
    """Site and position that each part of some rows reads at."""
    first = [part.start for part, _ in parts]
    return list(zip(rows.site[first].tolist(), rows.position[first].tolist(), strict=True))


def finished(
    dense: Float[Tensor, "rows columns"], reach: Reach, floor: float, scratch: Tensor
) -> tuple[RowRun, Sums]:
    """Keep some rows that are in main memory, and add them up; `packing.py` does on a device.

    Args:
        dense: effects of all columns, of which those outside `reach` do not count.
        reach: columns that reach the rows.
        floor: share of a row's absolute sum below which effects are dropped.
        scratch: float64 numbers, at least `scratch_numbers(reach.count)`.
    """
    values = np.empty((len(dense), reach.count), dtype=str(dense.dtype).removeprefix("torch."))
    parts = [dense[:, columns] for columns in reach.slices]
    torch.cat(parts, dim=1, out=torch.from_numpy(values))
    signed, absolute = _sums(values, scratch)
    if not floor:
        return WholeRun(reach, values), Sums(signed, absolute, np.zeros((len(values), 2)))
    kept = np.abs(values) >= floor * absolute[:, None]
    lost = [np.where(kept, 0, what).sum(1, dtype=np.float64) for what in (values, np.abs(values))]
    index = np.broadcast_to(reach.columns(), values.shape)[kept]
    start = np.concatenate([[0], kept.sum(1).cumsum()]).astype(INDEX)
    effects = sparse.csr_array((values[kept], index, start), shape=tuple(dense.shape))
    return FlooredRun(effects), Sums(signed, absolute, np.stack(lost, axis=1))


def scratch_numbers(columns: int) -> int:
    """How many numbers are summed at once at most: of three rows at least, or of one more row."""
    return max(SUMMED + columns, 3 * columns)


def _sums(
    values: Float[np.ndarray, "rows reaching"], scratch: Tensor
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Sums of rows, signed and absolute, in float64.

    A row alone is summed in two halves, rows together each in one go: a last one joins the others.
    """
    rows, columns = values.shape
    signed, absolute = np.zeros(rows), np.zeros(rows)
    step = max(2, SUMMED // max(1, columns))
    begin = 0
    while begin < rows:
        end = rows if rows - begin <= step + 1 else begin + step
        wide = scratch[: (end - begin) * columns].view(end - begin, columns)
        wide.copy_(torch.from_numpy(values[begin:end]))
        torch.sum(wide, 1, out=torch.from_numpy(signed[begin:end]))
        torch.sum(wide.abs_(), 1, out=torch.from_numpy(absolute[begin:end]))
        begin = end
    return signed, absolute
