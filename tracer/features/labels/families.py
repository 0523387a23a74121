"""Every alternative of every kind of condition on a text, as sparse matrices that can be counted.

A family is one kind of condition. Its matrix has a row a counted token and a column an alternative,
with an entry where the condition with that alternative alone is met.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from scipy import sparse

from tracer.features.labels.names import Names
from tracer.features.labels.observed import Observed
from tracer.features.labels.predicates import NEAR, Kind, repeated


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of condition with all its alternatives."""

    kind: Kind
    by_token: sparse.csr_array
    """(counted tokens, alternatives)."""

    @cached_property
    def by_alternative(self) -> sparse.csc_array:
        """The same, for reading columns."""
        found = self.by_token.tocsc()
        found.sort_indices()
        return found

    @cached_property
    def totals(self) -> Int[np.ndarray, " alternatives"]:
        """Counted tokens at which each alternative holds."""
        return np.bincount(self.by_token.indices, minlength=self.by_token.shape[1])

    def counts(self, tokens: Int[np.ndarray, " some"]) -> Int[np.ndarray, " alternatives"]:
        """How often each alternative holds among some tokens."""
        every, some = self.by_token.shape[0], len(tokens)
        if 2 * some > every:
            rest = np.ones(every, dtype=bool)
            rest[tokens] = False
            return self.totals - self.counts(np.flatnonzero(rest))
        if 16 * some > every:  # faster than to gather that much
            chosen = np.zeros(every, dtype=np.int32)
            chosen[tokens] = 1
            return self._transposed @ chosen
        starts, ends = self.by_token.indptr[tokens], self.by_token.indptr[tokens + 1]
        lengths = ends - starts
        places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        places += np.arange(len(places), dtype=places.dtype)
        return np.bincount(self.by_token.indices[places], minlength=self.by_token.shape[1])

    @cached_property
    def _transposed(self) -> sparse.csc_array:
        return self.by_token.T

    def tokens(self, alternative: int) -> Int[np.ndarray, " some"]:
        """Counted tokens at which one alternative holds, ascending."""
        found = self.by_alternative
        return found.indices[found.indptr[alternative] : found.indptr[alternative + 1]]


def families(observed: Observed, names: Names) -> dict[Kind, Family]:
    """All families of one text."""
    text, counts = observed.text, observed.text.counts
    longest = text.longest
    back = [_one_hot(text.before(step)[counts], names) for step in range(1, longest)]
    near = _any(back[:NEAR])
    return {
        "on": Family("on", _one_hot(text.tokens[counts], names)),
        "says": Family("says", _one_hot(text.says[counts], names)),
        "after": Family("after", _any(back[:1])),
        "near": Family("near", near),
        "with": Family("with", _any(back)),
        "repeated": Family("repeated", _column(repeated(text)[counts])),
    }


def _one_hot(ids: Int[np.ndarray, " counted"], names: Names) -> sparse.csr_array:
    """Which alternatives each token is one of; none where there is no token."""
    there = np.flatnonzero(ids >= 0)
    shape = (len(ids), names.vocabulary)
    ones = np.ones(len(there), dtype=np.int32)
    return sparse.csr_array((ones, (there, ids[there])), shape=shape) @ names.members


def _any(parts: list[sparse.csr_array]) -> sparse.csr_array:
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part
    total.data[:] = 1
    return sparse.csr_array(total)


def _column(there: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(there[:, None].astype(np.int32))
