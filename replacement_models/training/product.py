"""The encoder's dense product, in the numbers that are fast on the machine at hand.

bfloat16 is taken only where a probe finds it faster: processors without units for it emulate it,
ten times slower than float32. What it found is kept for the process and, in the user's cache
folder, for the next one, so that a run made again makes the same weights.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from replacement_models.speed.choice_file import ChoiceFile

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(bias, x, weight) to x @ weight.T + bias, in float32."""
WORTH = 1.3
"""Times faster that bfloat16 must be."""
ROUNDS = 3


def product_of(precision: str) -> Product:
    """The product in "float32" or "bfloat16"."""
    return _float32 if precision == "float32" else _bfloat16


def _float32(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight.t())


def _bfloat16(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    half = torch.bfloat16
    return (x.to(half) @ weight.to(half).t()).to(x.dtype).add_(bias)


_settled: dict[str, str] = {}
"""What was found in this process, by `_named`."""


def chosen(precision: str, tokens: int, features: int, like: Tensor) -> str:
    """Numbers to multiply in, float32 or bfloat16; of "auto" what a probe finds or found faster.

    Args:
        precision: as asked for.
        tokens: of a batch.
        features: of a layer.
        like: a vector (D) of the run's device.
    """
    if precision != "auto":
        return precision
    sizes, file = (min(tokens, 1024), min(features, 2048)), ChoiceFile()
    name = _named(*sizes, like)
    if name not in _settled:
        kept = file.read().get(name, "")
        _settled[name] = kept if kept in ("float32", "bfloat16") else _faster(*sizes, like)
        if _settled[name] != kept:
            file.add(name, _settled[name])
    return _settled[name]


def _named(tokens: int, features: int, like: Tensor) -> str:
    device = torch.cuda.get_device_name(like.device) if like.is_cuda else like.device.type
    threads = torch.get_num_threads()
    return f"encoder {tokens} x {len(like)} by {features}, {device}, threads {threads}"


@torch.no_grad()
def _faster(tokens: int, features: int, like: Tensor) -> str:
    x = like.new_ones(tokens, len(like))
    weight, bias = like.new_ones(features, len(like)), like.new_zeros(1)
    slow, fast = (_seconds(way, bias, x, weight) for way in (_float32, _bfloat16))
    return "bfloat16" if fast * WORTH < slow else "float32"


def _seconds(way: Product, bias: Tensor, x: Tensor, weight: Tensor) -> float:
    """Of the fastest of some calls: CPU seconds, on another device those that pass."""
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(ROUNDS + 1):
        begin = clock()
        way(bias, x, weight).sum().item()
        times.append(clock() - begin)
    return min(times[1:])
