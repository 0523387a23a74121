"""Linear maps of a few positions by large weights, where torch's default takes up to twice as long.

A prompt of 8 to 64 tokens is bound by how fast weights are read, and MKL first copies those of a
large product into an order of its own. Two ways around that come with torch: small blocks of
outputs, which MKL multiplies in place (on the processors it is made for), and oneDNN. The sums are
float32 in all of them. benchmarks/products.py measures them. Maps of fewer or many positions, of
small or transposed weights, of other types and devices are left alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from replacement_models.speed.threads import one_thread, threads

FEWEST, MOST = 4, 128
"""Positions."""
LARGE = 1 << 19
"""Numbers in a weight from which on a way of its own earns what choosing it costs."""
BLOCK = 16
"""Outputs in one small product."""
MOST_IN_BLOCKS = 48
"""Positions up to which blocks are the faster way."""
WEIGHTS_LAST = 12_288
"""Numbers read below which small products are faster with the weights second, not first."""

ALONE = 32
"""Positions up to which everything but linear maps stays on one thread."""
MAPS = (nn.functional.linear, torch.addmm)

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch brings oneDNN's linear operator here."""


def _is_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        return "GenuineIntel" in cpuinfo.read_text()
    except OSError:
        return False


INTEL = _is_intel()
"""Whether the processor is one that MKL is made for."""
MKL_AT_HOME = torch.backends.mkl.is_available() and INTEL
"""Whether MKL runs on a processor that it is made for."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` of float32 on the CPU by oneDNN, where `ONEDNN`; no gradient."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return found


def linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, a product for every `BLOCK` outputs, whose number they divide."""
    rows = x.reshape(-1, x.shape[-1])
    blocks = weight.view(-1, BLOCK, weight.shape[1])
    if rows.numel() < WEIGHTS_LAST:
        found = torch.bmm(rows.expand(len(blocks), -1, -1), blocks.mT).transpose(0, 1).flatten(1)
    else:
        inputs = rows.T.contiguous().expand(len(blocks), -1, -1)
        found = torch.bmm(blocks, inputs).flatten(0, 1).T.contiguous()
    if bias is not None:
        found += bias
    return found.view(*x.shape[:-1], len(weight))


def fits_blocks(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear_in_blocks` is the fastest way to `x @ weight.T`."""
    return _fits(x, weight) and _are_fewest(x, weight)


@contextmanager
def fast_maps(rows: int) -> Iterator[None]:
    """Inside, linear maps of `rows` rows take their fastest way.

    With very few rows only maps are shared out among threads: waking those costs all else more
    than it saves. No gradient passes them: enter it under `torch.no_grad`.
    """
    maps = FewRows(torch.get_num_threads())
    with one_thread(rows <= ALONE), maps:
        yield


class FewRows(TorchFunctionMode):
    """The linear maps inside, made on so many threads."""

    def __init__(self, count: int) -> None:
        """For `fast_maps`."""
        super().__init__()
        self._threads = count

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func not in MAPS:
            return func(*args, **(kwargs or {}))
        with threads(self._threads):
            given = None if kwargs else _as_linear(func, *args)
            if given is None or not _fits(*given):
                return func(*args, **(kwargs or {}))
            return (linear_in_blocks if _are_fewest(*given) else onednn_linear)(*given)


def _as_linear(func: Callable[..., Any], *args: Any) -> tuple[Any, ...] | None:
    """Input, weight and bias that one of `MAPS` is called with; None where it maps otherwise."""
    if func is nn.functional.linear:
        return args
    bias, x, weight = args
    return (x, weight.T, bias) if bias.ndim == 1 else None


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if not ONEDNN or weight.numel() < LARGE or x.device.type != "cpu":
        return False
    plain = all(t.dtype == torch.float32 for t in (x, weight, bias) if t is not None)
    return plain and weight.is_contiguous() and FEWEST <= _rows(x) <= MOST


def _are_fewest(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return MKL_AT_HOME and _rows(x) <= MOST_IN_BLOCKS and len(weight) % BLOCK == 0


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
