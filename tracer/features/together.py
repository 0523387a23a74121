"""Which features fire together, from a sample of tokens.

Tokens are drawn by a hash of their place, about as many as the settings say, the same ones every
time. Of each the strongest features of every layer are kept, so memory is bounded whatever the
dictionary; a feature so rare that no sampled token has it gets no partners.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from tracer.features.strongest import LOW, mixed

A_TOKEN = 128
"""Features kept of a sampled token, in all layers together; at least LEAST of each layer."""
LEAST = 4
NOTHING = -1
SEED = 0x27D4EB2F


def drawn(first: int, count: int, share: float, device: torch.device) -> Int[Tensor, " sampled"]:
    """Which of `count` tokens from number `first` on are in the sample, counted from `first`."""
    numbers = torch.arange(first, first + count, device=device)
    return (mixed(numbers * 0x9E3779B1 + SEED) < share * (LOW + 1)).nonzero()[:, 0]


def strongest(
    active: Float[Tensor, "sampled features"], count: int
) -> Int[Tensor, "sampled count"]:
    """The features most active at each sampled token, NOTHING where fewer are active."""
    width = min(count, active.shape[1])
    best = active.abs().topk(width, dim=1)
    found = best.indices.where(best.values > 0, NOTHING).int()
    return torch.nn.functional.pad(found, (0, count - width), value=NOTHING)


@dataclass(frozen=True)
class Partners:
    """What fires with the features of one layer, the closest partners first."""

    layer: Int[np.ndarray, " pairs"]
    feature: Int[np.ndarray, " pairs"]
    share: Float[np.ndarray, " pairs"]
    """Of the sampled tokens of the feature asked about, those of the partner."""
    starts: Int[np.ndarray, " features_and_one"]
    """Where each feature's pairs begin."""


class Sample:
    """Features of sampled tokens as a matrix, tokens down and features of all layers across."""

    def __init__(
        self, found: dict[int, Int[np.ndarray, "sampled kept"]], features: dict[int, int]
    ) -> None:
        """Take what `strongest` found, by layer, and how many features each layer has."""
        self.layers = sorted(found)
        sizes = [features[layer] for layer in self.layers]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        parts = [_matrix(found[layer], features[layer]) for layer in self.layers]
        self.matrix = sparse.csr_array(sparse.hstack(parts, format="csr"))
        self.counts = np.asarray(self.matrix.sum(0)).ravel()

    def partners(self, layer: int, count: int, least: int = 2) -> Partners:
        """Of every feature of a layer those it fires with, by tokens shared over the root of both.

        Args:
            layer: one that was sampled.
            count: at most so many a feature.
            least: tokens that a pair must share.
        """
        at = self.layers.index(layer)
        first, end = self.starts[at], self.starts[at + 1]
        own = self.counts[first:end]
        pairs = sparse.coo_array(self.matrix[:, first:end].T @ self.matrix)
        row, column = pairs.coords
        fit = (pairs.data >= least) & (column != row + first)
        row, column, shared = row[fit], column[fit], pairs.data[fit]
        close = shared / np.sqrt(own[row] * self.counts[column])
        order = np.lexsort((column, -close, row))
        order = order[_rank(row[order]) < count]
        row, column, shared = row[order], column[order], shared[order]
        of = np.searchsorted(self.starts, column, side="right") - 1
        return Partners(
            layer=np.asarray(self.layers)[of],
            feature=column - self.starts[of],
            share=shared / own[row],
            starts=np.searchsorted(row, np.arange(end - first + 1)),
        )


def _matrix(found: Int[np.ndarray, "sampled kept"], features: int) -> sparse.csr_array:
    token, place = np.nonzero(found != NOTHING)
    ones = np.ones(len(token), dtype=np.int64)
    return sparse.csr_array((ones, (token, found[token, place])), shape=(len(found), features))


def _rank(groups: Int[np.ndarray, " sorted"]) -> Int[np.ndarray, " sorted"]:
    """How many equal entries stand before each."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def most(layers: Sequence[int]) -> int:
    """Features kept of a token, a layer."""
    return max(LEAST, A_TOKEN // max(1, len(layers)))
