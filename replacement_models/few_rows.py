"""Linear maps of a few positions by large weights, where torch's default takes up to twice as long.

A prompt of 8 to 64 tokens is bound by how fast weights are read. MKL reads (out, in) weights at
down to half the speed of oneDNN there, which torch ships too; the sums are float32 in both.
benchmarks/products.py measures it. Maps of many positions, of small or transposed weights, of
other types and devices are left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FEWEST, MOST = 2, 128
"""Positions."""
LARGE = 1 << 21
"""Numbers in a weight from which on a kernel of its own earns what compiling it costs."""

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch brings oneDNN's linear operator here."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` of float32 on the CPU by oneDNN, where `ONEDNN`; no gradient."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return found


class FewRows(TorchFunctionMode):
    """While entered, `torch.nn.functional.linear` takes the faster way for a few rows.

    There is no gradient through it: enter it under `torch.no_grad`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func is nn.functional.linear and not kwargs and _fits(*args):
            return onednn_linear(*args)
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if not ONEDNN or weight.numel() < LARGE or x.device.type != "cpu":
        return False
    plain = all(t.dtype == torch.float32 for t in (x, weight, bias) if t is not None)
    rows = x.numel() // x.shape[-1]
    return plain and weight.is_contiguous() and FEWEST <= rows <= MOST
