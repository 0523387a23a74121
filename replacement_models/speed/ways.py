"""Ways to one and the same product: float32 matrices on the CPU, `x @ weight.T`.

MKL, torch's default, first copies a large weight into an order of its own. Two ways around that
come with torch: small blocks of outputs, multiplied in place, and oneDNN's linear operator. Both it
and MKL can make the transpose of the product instead. The sums are float32 in all of them. Which is
fastest depends on the processor, the shape and the strides: choices.py measures.

oneDNN takes `x` with any strides, and a weight that is contiguous or the transpose of what is. Any
other weight it leaves to reference code, a thousand times slower; `onednn_linear` copies it first
(benchmarks/products.py walks the layouts).
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 16
"""Outputs in one small product."""
WEIGHTS_LAST = 12_288
"""Numbers read below which small products are faster with the weights second, not first."""
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch brings oneDNN's linear operator here."""
LAYOUTS = ("plain", "transposed", "rows", "columns")


def layout(matrix: Tensor) -> str | None:
    """How a matrix lies in memory, one of `LAYOUTS`; None where it is scattered.

    Plain is contiguous, transposed the transpose of that; of rows and columns only the numbers in
    one stand together. The rest is scattered: steps inside rows, expanded rows.
    """
    if matrix.is_contiguous():
        return "plain"
    if matrix.T.is_contiguous():
        return "transposed"
    (rows, columns), (down, along) = matrix.shape, matrix.stride()
    if along == 1 and down >= columns:
        return "rows"
    return "columns" if down == 1 and along >= rows else None


def gathered(matrix: Tensor) -> Tensor:
    """The matrix, copied if it is scattered: MKL would copy it too, more slowly."""
    return matrix.contiguous() if layout(matrix) is None else matrix


def by_torch(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` as torch makes it."""
    return x @ weight.T


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` of float32 on the CPU by oneDNN, where `ONEDNN`; no gradient."""
    return _onednn(x, _taken(weight), bias)


def onednn_add(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`base + x @ weight.T`, as `onednn_linear`."""
    return _onednn_add(base, x, _taken(weight))


def linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, a product for every `BLOCK` outputs; torch's own for what is over."""
    rows, whole = x.reshape(-1, x.shape[-1]), len(weight) // BLOCK * BLOCK
    blocks = weight[:whole].unflatten(0, (-1, BLOCK))
    if rows.numel() < WEIGHTS_LAST:
        found = torch.bmm(rows.expand(len(blocks), -1, -1), blocks.mT).transpose(0, 1).flatten(1)
    else:
        inputs = rows.T.contiguous().expand(len(blocks), -1, -1)
        found = torch.bmm(blocks, inputs).flatten(0, 1).T.contiguous()
    if whole < len(weight):
        found = torch.cat([found, rows @ weight[whole:].T], dim=1)
    if bias is not None:
        found += bias
    return found.view(*x.shape[:-1], len(weight))


def _torch_turned(x: Tensor, weight: Tensor) -> Tensor:
    return (weight @ x.T).T


def _onednn_turned(x: Tensor, weight: Tensor) -> Tensor:
    return onednn_linear(weight, x).T


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": by_torch,
    "torch turned": _torch_turned,
    "onednn": onednn_linear,
    "onednn turned": _onednn_turned,
    "blocks": linear_in_blocks,
}
"""Turned ones give a matrix that is transposed in memory."""
COMPILED = {"onednn", "onednn turned"}
"""Ways that compile something for every new shape."""


def available() -> list[str]:
    """Names of the ways that there are here."""
    return [name for name in WAYS if ONEDNN or name not in COMPILED]


def _taken(weight: Tensor) -> Tensor:
    return weight if layout(weight) in ("plain", "transposed") else weight.contiguous()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return found


def _onednn_add(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, base, weight, None, "add")
    return found
