"""Matrix products of the sweep.

On CPUs, large float32 products go through oneDNN's linear operator, which torch ships: plain
float32 like torch's default, and where that takes a slow path (MKL on other makers' processors)
about twice as fast. oneDNN compiles a kernel for every new shape, which small products do not earn
back. benchmarks/products.py measures both. Everything else is torch's own product.
"""

import torch
from jaxtyping import Float
from torch import Tensor

EARNS_A_KERNEL = 100e6
"""Floating-point operations from which a product is worth compiling for."""

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]
) -> Float[Tensor, "rows columns"]:
    """`x @ weight.T`."""
    if _fits_onednn(x, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
        return found
    return x @ weight.T


def add_product(
    base: Float[Tensor, "rows columns"],
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
) -> Float[Tensor, "rows columns"]:
    """`base + x @ weight.T`; `base` may be overwritten."""
    if _fits_onednn(x, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, base, weight, None, "add")
        return found
    return base.addmm_(x, weight.T)


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return _ONEDNN and on_cpu and 2 * len(x) * weight.numel() > EARNS_A_KERNEL
