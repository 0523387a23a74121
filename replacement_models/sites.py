"""Places in a forward pass, as values: where dictionaries read and write, where targets stand.

A block of a transformer is passed in four stages: the residual stream entering it, what attention
adds, the stream between attention and MLP, what the MLP adds (TransformerLens calls them
`hook_resid_pre`, `hook_attn_out`, `hook_resid_mid`, `hook_mlp_out`). Sites compare in the order in
which the pass reaches them, and nodes of a graph stand in it. In a parallel block nothing lies
between: its MLP reads the stream entering the block.
"""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TypeVar

import numpy as np

from replacement_models.errors import ModelError


class ReadPoint(StrEnum):
    """Where, on the way into an MLP, a dictionary takes its input."""

    RESIDUAL = "residual"
    """The residual stream before the MLP's norm."""
    NORMED_UNWEIGHTED = "normed_unweighted"
    """After the norm's division, before its weight and bias."""
    NORMED = "normed"
    """What the MLP itself reads."""


class WritePoint(StrEnum):
    """Which vector a dictionary reconstructs. They differ only where a norm follows the MLP."""

    MLP_OUTPUT = "mlp_output"
    """What the MLP returns, before a post-norm."""
    POST_NORM = "post_norm"
    """What the block adds to the residual stream."""


class Stage(IntEnum):
    """Stages of a block, and the two ends of the model, in the order they are passed."""

    EMBED = -1
    RESID_PRE = 0
    ATTN_OUT = 1
    RESID_MID = 2
    MLP_OUT = 3
    LOGITS = 4


STAGES = 4
"""Of one block."""
STREAM = (Stage.RESID_PRE, Stage.RESID_MID)
"""Where the residual stream can be read; a model of L layers has `resid_pre.L` too, which enters
the final norm."""
_Layers = TypeVar("_Layers", int, np.ndarray)
_NAME = re.compile(r"(resid_pre|attn_out|resid_mid|mlp_out)\.(\d{1,6})")


@dataclass(frozen=True, order=True)
class Site:
    """One stage of one layer. `str(site)` is its name in files: `mlp_out.3`, `embed`, `logits`."""

    layer: int
    stage: Stage

    @property
    def number(self) -> int:
        """Rank among all sites of a model, -1 for the embedding."""
        return STAGES * self.layer + self.stage

    @classmethod
    def embed(cls) -> "Site":
        """What tokens write, below layer 0."""
        return cls(0, Stage.EMBED)

    @classmethod
    def logits(cls, layers: int) -> "Site":
        """What is read after the final norm of a model of so many layers."""
        return cls(layers, Stage.LOGITS)

    @classmethod
    def parse(cls, name: str) -> "Site":
        """The site of a name such as `resid_mid.3`.

        Raises:
            ModelError: it is no such name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            stages = ", ".join(
                f"{stage.name.lower()}.L" for stage in Stage if stage in range(STAGES)
            )
            raise ModelError(f"site {name!r} is not known, expected one of {stages}")
        return cls(int(match[2]), Stage[match[1].upper()])

    def __str__(self) -> str:
        name = self.stage.name.lower()
        return name if self.stage in (Stage.EMBED, Stage.LOGITS) else f"{name}.{self.layer}"


def stream_number(layer: _Layers, between: bool = False) -> _Layers:
    """Number of the site where the stream enters a layer, or where it lies between its parts."""
    return STAGES * layer + (Stage.RESID_MID if between else Stage.RESID_PRE).value


def top_layer(number: _Layers) -> _Layers:
    """The uppermost layer of which some part lies below a site of the stream, by its number."""
    return (number - 1) // STAGES
