"""Hooks that live inside a `with` and are gone afterwards, also after an exception."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[Any, Any], Any]
"""(inputs, output) of a module's forward pass to the output to use instead, or None to keep it."""


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Attach forward hooks for the duration of a block.

    Args:
        hooks: module and hook; a hook gets (positional and keyword inputs as one tuple, output).
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_hook(_adapted(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def forward_pre_hooks(
    hooks: Iterable[tuple[nn.Module, Callable[[tuple[Any, ...], dict[str, Any]], None]]],
) -> Iterator[None]:
    """Attach hooks that see a module's positional and keyword inputs, for the duration of a block.

    Args:
        hooks: module and hook.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_pre_hook(_watching(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def first_tensor(inputs: tuple[Any, ...]) -> Tensor:
    """The hidden states among a module's inputs: the first tensor there is."""
    return next(value for value in inputs if isinstance(value, Tensor))


def in_rows(tensor: Tensor, rows: int) -> Tensor:
    """(rows, positions, width), also of what a layer flattened into rows · positions (OPT)."""
    return tensor if tensor.ndim == 3 else tensor.unflatten(0, (rows, -1))


def first_of(output: Any) -> Tensor:
    """The hidden states that a module returns, alone or first in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def copied(output: Any) -> Any:
    """A module's output with hidden states of their own."""
    return replaced_first(output, first_of(output).clone())


def replaced_first(output: Any, tensor: Tensor) -> Any:
    """`output` with its first part, the hidden states, replaced."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _watching(hook: Callable[..., None]) -> Callable[..., None]:
    def watching(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hook(args, kwargs)

    return watching


def _adapted(hook: Hook) -> Callable[..., Any]:
    def adapted(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return hook((*args, *kwargs.values()), output)

    return adapted


def on_last(calls: int, hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` at the last of so many calls that one forward pass makes to a module."""
    if calls == 1:
        return hook
    seen = 0

    def counted(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        return None if seen % calls else hook(*args)

    return counted


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let attention layers return their patterns, then restore the implementation.

    Parts of a multimodal model may each have their own.
    """
    config = model.config
    before = {"": config._attn_implementation}
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            before[name] = part._attn_implementation
    if set(before.values()) == {"eager"}:
        yield
        return
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def recorders_removed(model: nn.Module) -> Iterator[None]:
    """Take off what transformers 5 puts on a model, and leaves, when it is asked for patterns."""
    flag = "_output_capturing_hooks_installed"
    before = {module: set(module._forward_hooks) for module in model.modules()}
    flagged = {module for module in before if getattr(module, flag, False)}
    try:
        yield
    finally:
        for module, known in before.items():
            for key in set(module._forward_hooks) - known:
                del module._forward_hooks[key]
            if module not in flagged and getattr(module, flag, False):
                setattr(module, flag, False)


@contextmanager
def float64_experts(model: Any) -> Iterator[None]:
    """Let experts run in float64, which the fused kernels of transformers 5 refuse."""
    if model.dtype != torch.float64 or not hasattr(model, "set_experts_implementation"):
        yield
        return
    before = model.config._experts_implementation
    try:
        model.set_experts_implementation("eager")
        yield
    finally:
        model.set_experts_implementation(before)
