"""Weights that are no numbers, refused by file and tensor as they are read.

One NaN in an encoder makes a layer silently dead: nothing is above its threshold.
"""

from pathlib import Path

import torch
from torch import Tensor

from replacement_models.errors import ModelError


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; takes no memory beside the tensor, unless it is of 8 bits."""
    if tensor.numel() == 0:
        return True
    wide = tensor.float() if tensor.itemsize == 1 else tensor
    return bool(torch.stack(torch.aminmax(wide)).isfinite().all())


def finite(tensor: Tensor, path: Path | str, key: str) -> Tensor:
    """The tensor, if every number in it is finite.

    Raises:
        ModelError: naming file and tensor.
    """
    if is_finite(tensor):
        return tensor
    bad = (~tensor.float().isfinite()).nonzero()[0].tolist()
    raise ModelError(
        f"{path}: {key} holds {tensor[tuple(bad)].item()} at {bad}, expected finite weights; copy "
        "or download it again"
    )
