"""Texts of unequal lengths as rows of one: what a batch of prompts is encoded as."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models.text.packing import FILL


def padded(prompts: Sequence[Sequence[int]]) -> Int[Tensor, "prompts longest"]:
    """Token ids in rows, FILL behind the shorter ones: no token sees what comes after it."""
    longest = max(map(len, prompts))
    return torch.tensor([[*ids, *[FILL] * (longest - len(ids))] for ids in prompts])
