"""How mixed a feature is: whether what it fires at has anything in common.

The context of a firing is what stands among the last few tokens and what the model says next, rare
words counting more (tf-idf). Firings are alike where the cosine of their contexts is large.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage

from tracer.features.labels.families import Family
from tracer.features.labels.names import Names
from tracer.features.labels.scoring import Families

ALIKE = 0.25
"""Cosine from which two groups of firings are of one kind."""
SHARE = 0.2
"""Of the firings, that each of two unrelated kinds must hold for a feature to be polysemantic."""
SEVERAL = 1.9
"""Effective number of kinds from which it is so too, however small each of them."""
LOOKED_AT = 64
"""Firings, spread evenly over the text, that are compared one by one."""


class Contexts:
    """Contexts of all counted tokens of one text."""

    def __init__(self, families: Families, names: Names) -> None:
        """Weigh every word by how rare it is."""
        parts = [_weighted(families[kind], names) for kind in ("near", "says")]
        self.matrix = sparse.csr_array(sparse.hstack(parts, format="csr"))

    def groups(self, firings: Sequence[Int[np.ndarray, " firing"]]) -> Int[np.ndarray, " parts"]:
        """Which of several sets of firings are of one kind, by number of the kind."""
        means = np.stack([np.asarray(self.matrix[one].mean(0)).ravel() for one in firings])
        return _clusters(means)

    def kinds(self, firing: Int[np.ndarray, " firing"]) -> Float[np.ndarray, " kinds"]:
        """Shares of the kinds among some of the firings, the largest first."""
        picked = np.linspace(0, len(firing) - 1, min(LOOKED_AT, len(firing))).astype(int)
        numbers = _clusters(self.matrix[firing[picked]].toarray())
        return np.sort(np.bincount(numbers)[1:])[::-1] / len(picked)


def effective(shares: Float[np.ndarray, " kinds"]) -> float:
    """Exponential of the entropy: as many kinds, were they equally large."""
    part = shares[shares > 0] / shares.sum()
    return float(np.exp(-(part * np.log(part)).sum()))


def _weighted(family: Family, names: Names) -> sparse.csr_array:
    plain = np.flatnonzero(names.exact)
    counts = family.totals[plain]
    rarity = np.log(family.by_token.shape[0] / np.maximum(counts, 1)).clip(min=0)
    found = family.by_token[:, plain] @ sparse.diags_array(rarity)
    length = np.sqrt(found.multiply(found).sum(1))
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(length, 1e-9)) @ found)


def _clusters(vectors: Float[np.ndarray, "some words"]) -> Int[np.ndarray, " some"]:
    """Average linkage on cosines; numbers from 1."""
    if len(vectors) < 2:
        return np.ones(len(vectors), dtype=int)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(length, 1e-9)
    far = 1 - unit @ unit.T
    upper = far[np.triu_indices(len(unit), 1)].clip(min=0)
    return fcluster(linkage(upper, "average"), 1 - ALIKE, "distance")
