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


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of one site, normalised: `share[row, column]` of what drives the row."""

    share: sparse.csr_array
    column: Int[np.ndarray, " rows"]
    """Column of the row's own node; -1 for logits."""
    weight: Float[np.ndarray, " rows"]
    """What enters at the row itself; 0 for features."""


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
        site: Int[np.ndarray, " rows"],
        column: Int[np.ndarray, " rows"],
        weight: Float[np.ndarray, " rows"],
    ) -> None:
        """Learn some rows: their effects, sites, own columns (-1 for logits) and weights."""
        self.taken[column[column >= 0]] = True
        total = abs(effects).sum(axis=1)
        scale = sparse.diags_array(1 / np.where(total == 0, 1, total))
        share = sparse.csr_array(scale @ abs(effects))
        for here in np.unique(site):
            rows = np.flatnonzero(site == here)
            piece = Piece(share[rows], column[rows], weight[rows])
            self.pieces.setdefault(int(here), []).append(piece)

    def influence(self) -> Float[np.ndarray, " columns"]:
        """Influence of every column through the rows known so far."""
        reached: np.ndarray | None = None
        for site in sorted(self.pieces, reverse=True):
            for piece in self.pieces[site]:
                if reached is None:
                    reached = np.zeros(piece.share.shape[1])
                own = np.where(piece.column >= 0, reached[piece.column], 0.0)
                reached += (own + piece.weight) @ piece.share
        assert reached is not None
        return reached

    def next(self, count: int) -> Int[np.ndarray, " chosen"]:
        """The `count` most influential features not yet taken; ties go to the lower index."""
        reached = self.influence()[self.order]
        ranked = self.order[np.argsort(-reached, kind="stable")]
        return ranked[~self.taken[ranked]][:count]
