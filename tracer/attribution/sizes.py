"""What the memory of a trace depends on, known once the prompt is recorded."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

PATTERNS = 1 << 30
"""Bytes of attention patterns kept in memory; beyond, they are made anew layer by layer."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the memory of a trace depends on: P positions, L layers, width D."""

    features: Int[np.ndarray, "layers positions"]
    """Active features, those at skipped positions not counted."""
    used: Int[np.ndarray, " layers"]
    """Distinct ones among them."""
    targets: tuple[tuple[int, ...], ...]
    """Layers that the features of each layer write to."""
    heads: tuple[tuple[int, int, int, int], ...]
    """Of each layer: heads, their width together, key-value heads, their width together."""
    d_model: int
    vocabulary: int
    logits: int
    skip_positions: int
    itemsize: int
    """Bytes of a weight."""
    post_norm: bool
    """Whether what features write passes a norm."""
    skips: bool
    """Whether there is a linear skip."""
    lifted: bool
    """Whether the bottom attention layer carries every token (carry.py)."""
    lazy: bool
    """Whether decoder rows are read from disk."""
    patterns_kept: bool
    on_cpu: bool
    threads: int
    explained: int
    """Features that become rows."""
    rank_every: int
    """With a cap: rows between two rankings, which end a block."""
    edge_floor: float
    """Share of a row below which effects are dropped."""
    folded: float = 0.0
    """Bytes of weights that the model's first trace folds and keeps."""
    keep_attention: bool = False
    """Whether what steers attention is found out too."""
    on_disk: bool = False
    """Whether finished rows go to disk and are mapped from there (spill.py)."""
    ranked_there: bool = False
    """Whether a GPU that makes the rows keeps them to rank features under a cap."""
    around: tuple[tuple[int, int], ...] = ()
    """Of each layer: width of its values behind taps or factors, and of its heads' outputs behind
    factors; none where nothing stands around its pattern."""
    aside: bool = False
    """Whether some layer stands aside of the stream: whole gradients are kept beside each other."""

    @property
    def layers(self) -> int:
        """L."""
        return self.features.shape[0]

    @property
    def positions(self) -> int:
        """P."""
        return self.features.shape[1]

    @property
    def active(self) -> int:
        """Features that may be nodes."""
        return int(self.features.sum())

    @property
    def columns(self) -> int:
        """Sources of a row."""
        return self.active + (self.layers + 1) * self.positions

    @property
    def entry(self) -> int:
        """Bytes of an effect."""
        return max(self.itemsize, torch.float32.itemsize)
