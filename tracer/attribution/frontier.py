"""Which features to explain next when there is a cap: the most influential ones reached so far.

Every `rank_every` rows the features are ranked by the influence that the rows known so far pass to
them, rows normalised over all columns, unselected features included (Ameisen et al. 2025, "Circuit
Tracing", appendix on graph construction). Nodes above feed nodes below, so one pass
from the top site down is exact.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from tracer.attribution.targets import runs


@dataclass(frozen=True, eq=False)
class Piece:
    """Neighbouring rows of one site; a view, because the rows fill the memory already."""

    effects: sparse.csr_array
    scale: Float[np.ndarray, " rows"]
    """One over the absolute sum of each row, so that what drives it adds up to one."""
    column: Int[np.ndarray, " rows"]
    """Column of the row's own node; -1 for logits."""
    weight: Float[np.ndarray, " rows"]
    """What enters at the row itself; 0 for features."""

    def passed_on(self, reached: Float[np.ndarray, " columns"]) -> Float[np.ndarray, " columns"]:
        """What the rows pass to every column of what has reached them."""
        own = np.where(self.column >= 0, reached[self.column], 0.0)
        size = sparse.csr_array(
            (np.abs(self.effects.data), self.effects.indices, self.effects.indptr),
            shape=self.effects.shape,
        )
        passed: np.ndarray = ((own + self.weight) * self.scale) @ size
        return passed


@dataclass
class Frontier:
    """The rows known so far and the features not yet among them."""

    order: Int[np.ndarray, " features"]
    """Feature columns in the order (layer, position, feature), in which ties are broken."""
    taken: np.ndarray
    pieces: dict[int, list[Piece]] = field(default_factory=dict)

    @classmethod
    def over(cls, order: Int[np.ndarray, " features"]) -> "Frontier":
        """Nothing known, nothing taken."""
        return cls(order, np.zeros(len(order), dtype=bool))

    def add(
        self,
        effects: sparse.csr_array,
        total: Float[np.ndarray, " rows"],
        own: tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]],
        weight: Float[np.ndarray, " rows"],
    ) -> None:
        """Learn some rows, quickest when rows of a site stand together.

        Args:
            effects: (rows, columns); kept, not copied.
            total: absolute sum of each row, with what an edge floor dropped.
            own: the rows' sites and own columns (-1 for logits).
            weight: what enters at the rows themselves.
        """
        site, column = own
        self.taken[column[column >= 0]] = True
        scale = 1 / np.where(total == 0, 1, total)
        for rows in runs(site):
            piece = Piece(_rows(effects, rows), scale[rows], column[rows], weight[rows])
            self.pieces.setdefault(int(site[rows.start]), []).append(piece)

    def influence(self) -> Float[np.ndarray, " columns"]:
        """Influence of every column through the rows known so far."""
        reached: np.ndarray | None = None
        for site in sorted(self.pieces, reverse=True):
            for piece in self.pieces[site]:
                if reached is None:
                    reached = np.zeros(piece.effects.shape[1])
                reached += piece.passed_on(reached)
        assert reached is not None
        return reached

    def next(self, count: int) -> Int[np.ndarray, " chosen"]:
        """The `count` most influential features not yet taken; ties go to the lower index."""
        reached = self.influence()[self.order]
        ranked = self.order[np.argsort(-reached, kind="stable")]
        return ranked[~self.taken[ranked]][:count]


def _rows(effects: sparse.csr_array, rows: slice) -> sparse.csr_array:
    """Some neighbouring rows, on the same memory."""
    start = effects.indptr[rows.start : rows.stop + 1]
    inside = slice(start[0], start[-1])
    return sparse.csr_array(
        (effects.data[inside], effects.indices[inside], start - start[0]),
        shape=(rows.stop - rows.start, effects.shape[1]),
    )
