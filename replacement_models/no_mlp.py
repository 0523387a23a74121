"""Blocks without an MLP, as Mamba's: to everything else they end in one that writes nothing."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from replacement_models.hooks import first_of, replaced_first


class NoMLP(nn.Module):
    """What stands for the MLP of a block that has none: it reads the block's end and writes zeros.

    Nobody calls it. Hooks on it are put on the block, where they hear of the stream as what an MLP
    would read, of zeros as what it writes; what they return instead is added to the stream.
    """

    _block: nn.Module

    def __init__(self, block: nn.Module) -> None:
        """At the end of `block`, which returns the stream, alone or first in a tuple."""
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a module of this one

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the same shape."""
        return torch.zeros_like(x)

    def register_forward_hook(self, hook: Any, **options: Any) -> RemovableHandle:
        """As of any module, given (module, args, kwargs, output)."""

        def at_end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            stream = first_of(output)
            written = hook(self, (stream,), {}, torch.zeros_like(stream))
            return None if written is None else replaced_first(output, stream + first_of(written))

        handle: RemovableHandle = self._block.register_forward_hook(at_end, **options)
        return handle

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> RemovableHandle:
        """As of any module, given (module, args, kwargs); it may look and change nothing."""

        def at_end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            hook(self, (first_of(output),), {})

        handle: RemovableHandle = self._block.register_forward_hook(at_end, **options)
        return handle
