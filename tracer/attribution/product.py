"""Matrix products of the sweep.

On CPUs, large float32 products go whichever way is fastest here (speed/choices.py in
replacement_models): through MKL, torch's default, or oneDNN, in either order, rows by a large
weight in blocks of it too. oneDNN compiles a kernel for every new shape, which small products do
not earn back; these are torch's own. benchmarks/products.py measures all of them. So is everything
of other types and on other devices, unless the user asks for the kernel in native/.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.speed.choices import chosen, noted, refused
from replacement_models.speed.few_rows import few_rows_fit
from replacement_models.speed.ways import WAYS, gathered, onednn_add
from tracer.attribution import native
from tracer.errors import TraceError


class Taker(Protocol):
    """Makes some products in a way of its own."""

    def fits(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a product is one for it."""

    def add(
        self,
        x: Float[Tensor, "rows inner"],
        weight: Float[Tensor, "columns inner"],
        base: Float[Tensor, "rows columns"] | None = None,
    ) -> Float[Tensor, "rows columns"]:
        """`x @ weight.T`, added to `base`, in place, where there is one."""


kernel: ContextVar[Taker | None] = ContextVar("kernel", default=None)
"""Takes the products that it fits, while `taking_products` is entered: in this context alone."""
EARNS_A_KERNEL = 100e6
"""Floating-point operations from which a product is worth compiling for."""
EARNS_A_CHOICE = 1e6
"""Those from which it is worth measuring which way around a small product of scores goes."""


def product(
    x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]
) -> Float[Tensor, "rows columns"]:
    """`x @ weight.T`."""
    taker = kernel.get()
    if taker is not None and taker.fits(x, weight):
        return taker.add(x, weight)
    way = _way(x, weight)
    if way is None:
        return x @ weight.T
    return WAYS[way](gathered(x), gathered(weight)).contiguous()


def scores_product(
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
    small: str = "torch",
    room: Float[Tensor, " numbers"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """`x @ weight.T`, in memory as it was made: transposed where that is faster.

    Args:
        x: (rows, inner).
        weight: (columns, inner).
        small: the way of a product that earns no kernel, as `scores_way` says.
        room: rows * columns numbers that hold anything, which such a product is made in.
    """
    taker = kernel.get()
    if taker is not None and taker.fits(x, weight):
        return taker.add(x, weight)
    if _earns_a_kernel(x, weight):
        return WAYS[chosen("product", x, weight)](gathered(x), gathered(weight))
    turned = small != "torch"
    first, second = (weight, x) if turned else (x, weight)
    into = None if room is None else room.view(first.shape[0], second.shape[0])
    found = torch.mm(first, second.T, out=into)
    return found.T if turned else found


def scores_way(x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]) -> str:
    """The way of small products of scores like `x @ weight.T`: torch's own, or turned."""
    operations = 2 * x.shape[0] * weight.numel()
    if not _on_cpu(x) or not EARNS_A_CHOICE < operations <= EARNS_A_KERNEL:
        return "torch"
    return chosen("score", x, weight)


def add_product(
    base: Float[Tensor, "rows columns"],
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
) -> Float[Tensor, "rows columns"]:
    """`base + x @ weight.T`; `base` may be overwritten."""
    taker = kernel.get()
    if taker is not None and taker.fits(x, weight):
        return taker.add(x, weight, base)
    way = _way(x, weight)
    if way is None:
        return base.addmm_(x, weight.T)
    x, weight = gathered(x), gathered(weight)
    if way == "onednn":
        return onednn_add(base, x, weight)
    return base.addmm_(x, weight.T) if way == "torch" else base.add_(WAYS[way](x, weight))


def noted_products(given: Mapping[str, str] | None) -> AbstractContextManager[dict[str, str]]:
    """Inside, note which way large products go; `given` ways, as noted before, come first.

    Raises:
        TraceError: one of those cannot be had, at once.
    """
    if given is not None and (lack := refused(given)):
        raise TraceError(f"products: {lack}; leave it out to measure what is fastest here")
    return noted(given)


def split_products() -> AbstractContextManager[None]:
    """While entered, large products go through the kernel.

    Raises:
        TraceError: it cannot be had, at once.
    """
    return taking_products(native.kernel())


@contextmanager
def taking_products(taker: Taker) -> Iterator[None]:
    """While entered, `taker` makes the products that it fits."""
    token = kernel.set(taker)
    try:
        yield
    finally:
        kernel.reset(token)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What the results of products of this type add up in: bfloat16 would lose too much."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _way(x: Tensor, weight: Tensor) -> str | None:
    """The name of the way for a product; None for one that earns no choice."""
    large = _earns_a_kernel(x, weight)
    if not large and not few_rows_fit(x, weight):
        return None
    return chosen("product" if large else "few", x, weight)


def _earns_a_kernel(x: Tensor, weight: Tensor) -> bool:
    return _on_cpu(x) and 2 * x.shape[0] * weight.numel() > EARNS_A_KERNEL


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32
