"""Patterns of linear layers: what their own kernel makes of values that are the identity.

With gates, keys and queries held, a gated delta net, a Mamba 2 and a linear attention layer are
linear in their values: o_t = Σ_s A_ts v_s, one number for each head, query and key. The kernel is
called once more with what it was given, but for the values: those of position s are the s-th unit
vector, so its output at t is row t of A. Units are taken in slices as wide as a head, which is what
the kernel is made for.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement_models.around import Kernel
from replacement_models.errors import ModelError
from replacement_models.hooks import forward_pre_hooks
from replacement_models.host import Block, Host
from replacement_models.one_line import one_line
from replacement_models.process import one_call


@dataclass(frozen=True, eq=False)
class KernelPattern:
    """One layer's kernel with what it was given on one prompt; called, it gives the pattern."""

    function: Callable[..., Any]
    given: inspect.BoundArguments
    kernel: Kernel

    __repr__ = one_line

    @one_call()
    @torch.no_grad()
    def __call__(self) -> Float[Tensor, "heads queries keys"]:
        """(heads, queries, keys), in the dtype of the values."""
        own: Tensor = self.given.arguments[self.kernel.values]
        if self.kernel.channels:
            return self._of_channels(own)
        _, positions, heads, width = own.shape
        pattern = own.new_empty(heads, positions, positions)
        for begin in range(0, positions, width):
            mixed = self._of_units(own, begin)[0, :, :, : positions - begin]
            pattern[:, :, begin : begin + width] = mixed.transpose(0, 1)
        return pattern

    def _of_units(self, own: Tensor, begin: int) -> Float[Tensor, "1 queries heads width"]:
        """Outputs where positions from `begin` on have a unit vector each for their value."""
        units = torch.zeros_like(own)
        width = min(own.shape[-1], own.shape[1] - begin)
        every = torch.arange(width, device=own.device)
        units[0, begin + every, :, every] = 1
        return self._mixed(units).view(own.shape)

    def _of_channels(
        self, own: Float[Tensor, "1 channels positions"]
    ) -> Float[Tensor, "channels queries keys"]:
        """Every channel has its own pattern: one position after the other holds the unit."""
        _, channels, positions = own.shape
        pattern = own.new_empty(channels, positions, positions)
        for position in range(positions):
            units = torch.zeros_like(own)
            units[..., position] = 1
            pattern[:, :, position] = self._mixed(units)[0]
        return pattern

    def _mixed(self, units: Tensor) -> Tensor:
        """What the kernel makes of other values."""
        kernel, arguments = self.kernel, {**self.given.arguments, self.kernel.values: units}
        if kernel.without is not None:
            arguments[kernel.without] = None
        bound = inspect.BoundArguments(self.given.signature, arguments)
        found = self.function(*bound.args, **bound.kwargs)
        mixed: Tensor = found[0] if isinstance(found, tuple) else found
        return mixed


@dataclass(frozen=True, eq=False)
class InTurns:
    """The patterns of one layer whose kernel is called for some of its heads after the others."""

    calls: tuple[KernelPattern, ...]

    def __call__(self) -> Float[Tensor, "heads queries keys"]:
        """(heads, queries, keys)."""
        return torch.cat([call() for call in self.calls])


@contextmanager
def kernel_patterns(host: Host, into: dict[int, Any], make: bool) -> Iterator[None]:
    """Keep the patterns of layers whose kernel makes them, while the block lasts.

    Args:
        host: the model.
        into: takes them, by layer.
        make: make them at once; otherwise keep what makes them.

    Raises:
        ModelError: a kernel is not where this release of transformers should have it, or is not
            called.
    """
    entered: list[int] = []
    heard: dict[int, tuple[KernelPattern, ...]] = {}
    known = {layer: block for layer, block in enumerate(host.blocks) if block.by_kernel}

    def keep(found: KernelPattern) -> None:
        layer = entered[-1]
        heard[layer] = (*heard.get(layer, ()), found)
        if len(heard[layer]) == 1:
            into[layer] = found() if make else found
        else:  # Zamba calls it for some heads at a time
            into[layer] = torch.cat([into[layer], found()]) if make else InTurns(heard[layer])

    with ExitStack() as stack:
        hooks = [(_mixer(block), _entering(entered, layer)) for layer, block in known.items()]
        stack.enter_context(forward_pre_hooks(hooks))
        mixers = [_mixer(block) for block in known.values()]
        for place, kernel in dict.fromkeys(_place(block) for block in known.values()):
            stack.enter_context(_watched(place, kernel, mixers, keep))
        yield
    for layer in sorted(known.keys() - heard):
        place, kernel = _place(known[layer])
        raise ModelError(
            f"layer {layer} did not call {place}.{kernel.name}, whose pattern is traced; another "
            "kernel stands in its place: leave out what brings it (fla, causal-conv1d, mamba-ssm)"
        )


def _entering(entered: list[int], layer: int) -> Callable[..., None]:
    return lambda args, kwargs: entered.append(layer)


def _mixer(block: Block) -> nn.Module:
    """What calls a block's kernel."""
    beside = None if block.watch is None else block.watch.mixer
    return block.attention if beside is None else beside


def _place(block: Block) -> tuple[str, Kernel]:
    """The module that a block's kernel stands in, and the kernel."""
    assert block.watch is not None
    assert block.watch.kernel is not None
    return type(_mixer(block)).__module__, block.watch.kernel


@contextmanager
def _watched(
    place: str, kernel: Kernel, mixers: Sequence[nn.Module], keep: Callable[[KernelPattern], None]
) -> Iterator[None]:
    """Hear of every call of a function of a module, which is put back afterwards.

    In transformers 4.57 layers hold the function themselves.
    """
    module: Any = sys.modules[place]
    name = kernel.name
    function = getattr(module, name, None)
    if function is None:
        raise ModelError(
            f"{place} has no function {name}; this release of transformers is not supported"
        )
    signature = inspect.signature(function)

    def watched(*args: Any, **kwargs: Any) -> Any:
        keep(KernelPattern(function, signature.bind(*args, **kwargs), kernel))
        return function(*args, **kwargs)

    held = [(one, at) for one in mixers for at, value in vars(one).items() if value is function]
    for owner, at in [(module, name), *held]:
        setattr(owner, at, watched)
    try:
        yield
    finally:
        for owner, at in [(module, name), *held]:
            setattr(owner, at, function)
