"""Which features to explain next when there is a cap: the most influential ones reached so far.

Every `rank_every` rows the features are ranked by the influence that the rows known so far pass to
them, rows normalised over all columns, unselected features included (Ameisen et al. 2025, "Circuit
Tracing", appendix on graph construction). Nodes above feed nodes below, so one pass
from the top site down is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from tracer.attribution.finished import RowRun


@dataclass(frozen=True, eq=False)
class Piece:
    """Neighbouring rows that read at one site and position."""

    run: RowRun
    scale: Float[np.ndarray, " rows"]
    """One over the absolute sum of each row, so that what drives it adds up to one."""
    column: Int[np.ndarray, " rows"]
    """Column of the row's own node; -1 for logits."""
    weight: Float[np.ndarray, " rows"]
    """What enters at the row itself; 0 for features."""

    def pass_on(self, reached: Float[np.ndarray, " columns"]) -> None:
        """Add to every column what the rows pass on of what has reached them."""
        own = np.where(self.column >= 0, reached[self.column], 0.0)
        self.run.pass_on((own + self.weight) * self.scale, reached)


@dataclass
class Frontier:
    """The rows known so far and the features not yet among them."""

    order: Int[np.ndarray, " features"]
    """Feature columns in the order (layer, position, feature), in which ties are broken."""
    taken: np.ndarray
    columns: int
    """Sources of a row, of which features are the first."""
    pieces: dict[int, list[Piece]] = field(default_factory=dict)

    @classmethod
    def over(cls, order: Int[np.ndarray, " features"], columns: int) -> "Frontier":
        """Nothing known, nothing taken."""
        return cls(order, np.zeros(len(order), dtype=bool), columns)

    def add(
        self,
        effects: Sequence[RowRun],
        total: Float[np.ndarray, " rows"],
        own: tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]],
        weight: Float[np.ndarray, " rows"],
    ) -> None:
        """Learn some rows.

        Args:
            effects: the rows, in runs; kept, not copied.
            total: absolute sum of each row, with what an edge floor dropped.
            own: the rows' sites and own columns (-1 for logits).
            weight: what enters at the rows themselves.
        """
        site, column = own
        self.taken[column[column >= 0]] = True
        scale = 1 / np.where(total == 0, 1, total)
        begin = 0
        for run in effects:
            rows = slice(begin, begin + run.rows)
            piece = Piece(run, scale[rows], column[rows], weight[rows])
            self.pieces.setdefault(int(site[begin]), []).append(piece)
            begin = rows.stop

    def influence(self) -> Float[np.ndarray, " columns"]:
        """Influence of every column through the rows known so far."""
        reached = np.zeros(self.columns)
        for site in sorted(self.pieces, reverse=True):
            for piece in self.pieces[site]:
                piece.pass_on(reached)
        return reached

    def next(self, count: int) -> Int[np.ndarray, " chosen"]:
        """The `count` most influential features not yet taken; ties go to the lower index."""
        reached = self.influence()[self.order]
        ranked = self.order[np.argsort(-reached, kind="stable")]
        return ranked[~self.taken[ranked]][:count]
