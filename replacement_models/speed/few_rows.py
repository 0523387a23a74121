"""Linear maps of a few positions by large weights, where torch's default takes up to twice as long.

A prompt of 8 to 64 tokens is bound by how fast weights are read, and MKL first copies those of a
large product into an order of its own. ways.py has what else there is, choices.py picks.
benchmarks/products.py measures them. Maps of fewer or many positions, of small or transposed
weights, of other types and devices are left alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from replacement_models.speed.choices import chosen
from replacement_models.speed.threads import one_thread, threads
from replacement_models.speed.ways import WAYS, linear_in_blocks, onednn_linear

FEWEST, MOST = 4, 128
"""Positions."""
LARGE = 1 << 19
"""Numbers in a weight from which on a way of its own earns what choosing it costs."""

ALONE = 32
"""Positions up to which everything but linear maps stays on one thread."""
MAPS = (nn.functional.linear, torch.addmm)


def few_rows_fit(x: Tensor, weight: Tensor) -> bool:
    """Whether `x @ weight.T` is one for a way of its own: a few rows by a large weight."""
    return FEWEST <= len(x) <= MOST and weight.numel() >= LARGE and _plain(x, weight)


@contextmanager
def fast_maps(rows: int, device: torch.device) -> Iterator[None]:
    """Inside, linear maps of `rows` rows take their fastest way; on a GPU nothing is watched.

    With very few rows only maps are shared out among threads: waking those costs all else more
    than it saves. No gradient passes them: enter it under `torch.no_grad`.
    """
    if device.type != "cpu":
        yield
        return
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
            found = None if given is None or not _fits(*given) else _mapped(*given)
            return func(*args, **(kwargs or {})) if found is None else found


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The map by the way chosen for it; None where that is torch's own."""
    rows = x.reshape(-1, x.shape[-1])
    way = chosen("map", rows, weight)
    if way == "torch":
        return None
    if way == "onednn":
        return onednn_linear(x, weight, bias)
    if way == "blocks":
        return linear_in_blocks(x, weight, bias)
    found = WAYS[way](rows, weight).contiguous()
    if bias is not None:
        found += bias
    return found.view(*x.shape[:-1], len(weight))


def _as_linear(func: Callable[..., Any], *args: Any) -> tuple[Any, ...] | None:
    """Input, weight and bias that one of `MAPS` is called with; None where it maps otherwise."""
    if func is nn.functional.linear:
        return args
    bias, x, weight = args
    return (x, weight.T, bias) if bias.ndim == 1 else None


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if weight.numel() < LARGE or not _plain(x, weight, bias):
        return False
    return weight.is_contiguous() and FEWEST <= _rows(x) <= MOST


def _plain(*given: Tensor | None) -> bool:
    return all(t.dtype == torch.float32 and t.is_cpu for t in given if t is not None)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
