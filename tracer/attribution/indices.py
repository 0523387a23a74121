"""Numbers of rows and columns, worked out on the host, as indices on the model's device."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def on_device(
    numbers: Int[np.ndarray, " numbers"], device: torch.device
) -> Int[Tensor, " numbers"]:
    """Row or column numbers as an index, without waiting for the device: pinned for a GPU."""
    here = torch.from_numpy(numbers)
    if device.type == "cuda":
        here = here.pin_memory()  # from pageable memory the host would wait for the copy
    return here.to(device, non_blocking=True)
