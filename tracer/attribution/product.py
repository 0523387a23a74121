"""Matrix products of the sweep.

On CPUs, large float32 products go where they are fastest. MKL, torch's default, takes a slow path
on other makers' processors; there oneDNN's linear operator, which torch ships too, does the same in
half the time. It compiles a kernel for every new shape, which small products do not earn back.
Few rows by a large weight go through blocks of it (replacement_models/few_rows.py), as rows do that
have just joined. benchmarks/products.py measures all of them. Everything else is torch's own
product, unless the user asks for the kernel in tracer/native.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.speed.few_rows import (
    INTEL,
    ONEDNN,
    fits_blocks,
    linear_in_blocks,
    onednn_linear,
)

if TYPE_CHECKING:
    from tracer.attribution.native import Kernel

kernel: "Kernel | None" = None
"""Takes the products that it fits, while `tracer.native.split_products` is entered."""
EARNS_A_KERNEL = 100e6
"""Floating-point operations from which a product is worth compiling for."""
ONEDNN_IS_FASTER = ONEDNN and not INTEL


def product(
    x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]
) -> Float[Tensor, "rows columns"]:
    """`x @ weight.T`."""
    if kernel is not None and kernel.fits(x, weight):
        return kernel.add(x, weight)
    if _fits_onednn(x, weight):
        return onednn_linear(x, weight)
    if fits_blocks(x, weight):
        return linear_in_blocks(x, weight)
    return x @ weight.T


def add_product(
    base: Float[Tensor, "rows columns"],
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
) -> Float[Tensor, "rows columns"]:
    """`base + x @ weight.T`; `base` may be overwritten."""
    if kernel is not None and kernel.fits(x, weight):
        return kernel.add(x, weight, base)
    if _fits_onednn(x, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, base, weight, None, "add")
        return found
    return base.addmm_(x, weight.T)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What the results of products of this type add up in: bfloat16 would lose too much."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return ONEDNN_IS_FASTER and on_cpu and 2 * len(x) * weight.numel() > EARNS_A_KERNEL
