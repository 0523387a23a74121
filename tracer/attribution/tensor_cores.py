"""Options for NVIDIA GPUs: float32 products of the sweep on the tensor cores, in TF32.

TF32 has float32's range and ten bits of fraction, so that effects differ in the fourth digit. Three
products of halves come near float32's own accuracy; those made in batches, of patterns and scores,
stay float32 then. Both are off by default; a trace says how far they change its targets' effects.
No GPU was at hand when this was written: `python -m benchmarks.gpu` measures both.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.attribution.local_model import LocalModel
from tracer.attribution.product import taking_products
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import TargetRows
from tracer.errors import TraceError

CHOICES = ("tf32", "3xtf32")
CUT = 13
"""Bits of a float32's fraction that TF32 lacks."""


def on_tensor_cores(
    which: str | None, device: torch.device, dtype: torch.dtype
) -> AbstractContextManager[None]:
    """While entered, float32 products on the GPU go through its tensor cores; None changes nothing.

    Raises:
        TraceError: there is no such option, no GPU, or another number format, at once.
    """
    if which is None:
        return nullcontext()
    if which not in CHOICES:
        raise TraceError(f"tensor_cores is {which!r}, expected one of {', '.join(CHOICES)}")
    if device.type != "cuda":
        raise TraceError(
            f"tensor_cores: the model is on {device.type}, expected cuda; leave the option out, or "
            "load the model on a GPU"
        )
    if dtype != torch.float32:
        given = str(dtype).removeprefix("torch.")
        raise TraceError(f"tensor_cores: the model is in {given}, expected float32; leave it out")
    return in_tf32() if which == "tf32" else taking_products(ThreeProducts())


@contextmanager
def in_tf32() -> Iterator[None]:
    """Products of float32 on a GPU, with ten bits of their operands' fractions."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class ThreeProducts:
    """A product of float32 matrices as three in TF32, the smallest first."""

    def fits(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a product is one for this."""
        return x.dtype == weight.dtype == torch.float32

    def add(
        self,
        x: Float[Tensor, "rows inner"],
        weight: Float[Tensor, "columns inner"],
        base: Float[Tensor, "rows columns"] | None = None,
    ) -> Float[Tensor, "rows columns"]:
        """`x @ weight.T`, added to `base`, in place, where there is one."""
        (large, small), (heavy, light) = halves(x), halves(weight)
        with in_tf32():
            found = large @ light.T
            found.addmm_(small, heavy.T).addmm_(large, heavy.T)
        return found if base is None else base.add_(found)


def halves(x: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """The nearest numbers that TF32 has, and what is over, exactly."""
    bits = x.contiguous().view(torch.int32)
    large = ((bits + (1 << (CUT - 1))) & -(1 << CUT)).view(torch.float32)
    return large, x - large


def said_of_cores(which: str | None, local: LocalModel, rows: TargetRows) -> dict[str, Any]:
    """For the metadata: `tensor_cores`, how products were made and how far that changed some rows.

    Args:
        which: as of `on_tensor_cores`.
        local: the local model.
        rows: which are swept twice more.

    Returns:
        `products`, and `deviation`: how far effects on the rows differ from float32's, as a share
        of the largest; None where there are none. Nothing at all where no option was taken.
    """
    if which is None:
        return {}
    expected = sweep(local, rows).sources
    with on_tensor_cores(which, expected.device, expected.dtype):
        found = sweep(local, rows).sources
    largest = float(expected.abs().max())
    off = float((found - expected).abs().max()) / largest if largest else None
    return {"tensor_cores": {"products": which, "deviation": off}}
