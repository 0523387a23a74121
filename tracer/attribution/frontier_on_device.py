"""Which features to explain next, worked out where a GPU made the rows.

The same influence as in `frontier.py`, added up in float64 in another order. Only the numbers of
the chosen rows come to the host, once a ranking.

The rows stay there as they were swept, dense. At the sizes of benchmarks/gpu.py a row has 41,000
to 126,000 sources, of which a quarter (features spread evenly) to a half (at the last position)
reach it. Dense that is 4 bytes a source; sparse it is 8 (effect and column; 12 with torch's usual
64-bit columns) for those that reach it, 2 to 6 bytes a source. Sparse rows save nothing, and their
transposed product adds atomically, so that the same trace could choose other rows, or needs a
second copy. A ranking reads every row once, 20 bytes a source with what is float64 on the way: 0.8
GB and 80 million operations for 1,000 rows of 41,000 sources. Counted, not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tracer.attribution.finished import RowRun
from tracer.attribution.indices import on_device
from tracer.attribution.landing import fetched
from tracer.attribution.sizes import Sizes
from tracer.attribution.targets import runs

TILE = 1 << 23
"""Sizes of effects turned to float64 at once."""
RANKED = 64.0
"""Bytes a source while features are brought into order."""


@dataclass
class FrontierOnDevice:
    """The rows known so far, on their device, and the features not yet among them."""

    order: Int[Tensor, " features"]
    """Feature columns in the order (layer, position, feature), in which ties are broken."""
    sizes: Float[Tensor, "room columns"]
    """Absolute effects, as the rows come."""
    scale: Float[Tensor, " room"]
    """One over the absolute sum of each row, so that what drives it adds up to one."""
    column: Int[Tensor, " room"]
    """Column of the row's own node; of logits that behind the last."""
    weight: Float[Tensor, " room"]
    """What enters at the row itself; 0 for features."""
    taken: Bool[Tensor, " columns_and_one"]
    pieces: dict[int, list[slice]] = field(default_factory=dict)
    """Of every site, the rows that read there."""
    known: int = 0
    """Rows so far."""

    @classmethod
    def over(
        cls, order: Int[np.ndarray, " features"], columns: int, rows: int, like: Tensor
    ) -> "FrontierOnDevice":
        """Nothing known, nothing taken.

        Args:
            order: feature columns in the order in which ties are broken.
            columns: sources of a row, of which features are the first.
            rows: how many there will be.
            like: effects, on the device.
        """
        numbers = like.new_empty(2, rows, dtype=torch.float64)
        return cls(
            order=on_device(order, like.device),
            sizes=like.new_empty(rows, columns),
            scale=numbers[0],
            column=like.new_empty(rows, dtype=torch.int64),
            weight=numbers[1],
            taken=like.new_zeros(columns + 1, dtype=torch.bool),
        )

    def take(
        self,
        effects: Float[Tensor, "rows columns"],
        total: Float[Tensor, " rows"],
        own: tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]],
        weight: Float[np.ndarray, " rows"],
    ) -> None:
        """Learn some rows that are on the device.

        Args:
            effects: those that are kept, the rest zero; copied.
            total: absolute sum of each row, with what an edge floor dropped.
            own: the rows' sites and own columns (-1 for logits).
            weight: what enters at the rows themselves.
        """
        (site, column), device = own, effects.device
        here = slice(self.known, self.known + len(effects))
        torch.abs(effects, out=self.sizes[here])
        self.scale[here] = total.masked_fill(total == 0, 1).reciprocal_()
        columns = self.sizes.shape[1]
        self.column[here] = on_device(np.where(column < 0, columns, column), device)
        self.weight[here] = on_device(np.asarray(weight, dtype=np.float64), device)
        self.taken.index_fill_(0, self.column[here], True)
        for run in runs(site):
            rows = slice(here.start + run.start, here.start + run.stop)
            self.pieces.setdefault(int(site[run.start]), []).append(rows)
        self.known = here.stop

    def add(
        self,
        effects: Sequence[RowRun],
        total: Float[np.ndarray, " rows"],
        own: tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]],
        weight: Float[np.ndarray, " rows"],
    ) -> None:
        """Learn finished rows, as `Frontier.add` does: those that an earlier run left on a disk."""
        begin, columns = 0, self.sizes.shape[1]
        for run in effects:
            rows = slice(begin, begin + run.rows)
            dense = torch.from_numpy(run.dense(columns)).to(self.sizes)
            there = on_device(total[rows], self.sizes.device)
            self.take(dense, there, (own[0][rows], own[1][rows]), weight[rows])
            begin = rows.stop

    def influence(self) -> Float[Tensor, " columns"]:
        """Influence of every column through the rows known so far."""
        columns = self.sizes.shape[1]
        reached = self.scale.new_zeros(columns + 1)
        into, step = reached[:columns], max(1, TILE // columns)
        for site in sorted(self.pieces, reverse=True):
            for rows in self.pieces[site]:
                flow = (reached[self.column[rows]] + self.weight[rows]) * self.scale[rows]
                tiles = zip(self.sizes[rows].split(step), flow.split(step), strict=True)
                for sizes, enters in tiles:
                    into.addmv_(sizes.to(torch.float64).T, enters)
        return into

    def next(self, count: int) -> Int[np.ndarray, " chosen"]:
        """The `count` most influential features not yet taken; ties go to the lower index."""
        reached = self.influence()[self.order].masked_fill_(self.taken[self.order], -1)
        ranked = reached.sort(descending=True, stable=True).indices[:count]
        chosen: Int[np.ndarray, " chosen"] = fetched(self.order[ranked]).numpy()
        return chosen


def ranking_bytes(sizes: Sizes) -> float:
    """Bytes that the rows of a trace take on the device, where they stay there to be ranked."""
    if sizes.on_cpu or not sizes.ranked_there or sizes.explained >= sizes.active:
        return 0.0
    rows = (sizes.explained + sizes.logits) * (sizes.columns * sizes.entry + 24.0)
    return rows + 8.0 * max(TILE, sizes.columns) + RANKED * sizes.columns
