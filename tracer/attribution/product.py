"""Matrix products of the sweep.

On CPUs, large float32 products go where they are fastest. MKL, torch's default, takes a slow path
on other makers' processors; there oneDNN's linear operator, which torch ships too, does the same in
half the time. It compiles a kernel for every new shape, which small products do not earn back.
Few rows by a large weight go through blocks of it (speed/few_rows.py in replacement_models), as
rows do that have just joined. benchmarks/products.py measures all of them. Everything else is
torch's own product, unless the user asks for the kernel in native/.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

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
from tracer.attribution import native

kernel: ContextVar[native.Kernel | None] = ContextVar("kernel", default=None)
"""Takes the products that it fits, while `split_products` is entered: in this context alone."""
EARNS_A_KERNEL = 100e6
"""Floating-point operations from which a product is worth compiling for."""
ONEDNN_IS_FASTER = ONEDNN and not INTEL


def product(
    x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]
) -> Float[Tensor, "rows columns"]:
    """`x @ weight.T`."""
    taker = kernel.get()
    if taker is not None and taker.fits(x, weight):
        return taker.add(x, weight)
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
    taker = kernel.get()
    if taker is not None and taker.fits(x, weight):
        return taker.add(x, weight, base)
    if _fits_onednn(x, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, base, weight, None, "add")
        return found
    return base.addmm_(x, weight.T)


def split_products() -> AbstractContextManager[None]:
    """While entered, large products go through the kernel.

    Raises:
        TraceError: it cannot be had, at once.
    """
    return _taking_products(native.kernel())


@contextmanager
def _taking_products(taker: native.Kernel) -> Iterator[None]:
    token = kernel.set(taker)
    try:
        yield
    finally:
        kernel.reset(token)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What the results of products of this type add up in: bfloat16 would lose too much."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return ONEDNN_IS_FASTER and on_cpu and 2 * len(x) * weight.numel() > EARNS_A_KERNEL
