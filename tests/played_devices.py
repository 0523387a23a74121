"""Devices that are played: tensors on them hold real numbers and refuse to meet those of another.

No GPU is needed to see where a model's tensors stand. A tensor on a played device ("lazy:0",
"lazy:1": a type that torch knows and nothing here starts) wraps one in main memory. Every operator
that meets tensors of two devices raises, as CUDA's do; numbers cross in `to` and `copy_` alone,
which are counted.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "lazy"
FIRST, SECOND = (torch.device(KIND, index) for index in range(2))
CPU = torch.device("cpu")
MOVES = ("_to_copy", "copy_", "copy")


class Played(Tensor):
    """A tensor on a played device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Played":
        made: Played = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
            requires_grad=False,
        )
        made.held = held
        return made

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Played({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside `played_devices`")


def indexed(device: Any) -> torch.device:
    device = torch.device(device)
    return FIRST if device.type == KIND and device.index is None else device


class PlayedDevices(TorchDispatchMode):
    """Carries out operators on played devices, and counts what moves between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, leaves = func.overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        places = {t.device for t in tensors if t.ndim or t.device.type == KIND}
        asked = kwargs.get("device")
        if asked is None and not any(place.type == KIND for place in places):
            return func(*args, **kwargs)
        source = tensors[0].device if tensors else None
        target = indexed(asked) if asked is not None else source
        if name in MOVES:
            start = tensors[1].device if name == "copy_" else source
            if start != target and tensors[0].numel() > 0:
                self.moves[str(start), str(target)] += 1
        elif (strangers := _strangers(name, tensors, places)) is not None:
            raise RuntimeError(f"{name} meets tensors on {strangers}")
        if asked is not None:
            kwargs["device"] = CPU if target.type == KIND else target
        if target is None or target.type != KIND:
            place = next((p for p in places if p.type == KIND), None)
            target = target if asked is not None or name == "copy_" else place
        kwargs.pop("pin_memory", None)
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        return _given_back(func, found, target, args, kwargs)


def _strangers(name: str, tensors: list[Tensor], places: set[torch.device]) -> str | None:
    """Devices that should not meet; indices in main memory may be used anywhere, as with CUDA."""
    if name in ("index", "index_put", "index_put_", "_unsafe_index_put"):
        first = tensors[0].device
        places = {place for place in places if place not in (first, CPU)} | {first}
    return ", ".join(sorted(map(str, places))) if len(places) > 1 else None


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Played) else value


def _given_back(func: Any, found: Any, target: Any, args: Any, kwargs: Any) -> Any:
    """What an operator gives, on its device; what it wrote to is given back as it came."""
    wrote = [
        value
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for value in [args[index] if index < len(args) else kwargs.get(argument.name)]
        if isinstance(value, Tensor)
    ]
    known = {id(_held(value)): value for value in wrote}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return Played(value, target) if target is not None and target.type == KIND else value

    return tree_map(back, found)


@contextmanager
def played_devices() -> Iterator[PlayedDevices]:
    """Inside, tensors can stand on `FIRST` and `SECOND`."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` then makes in main memory, and moves
    try:
        with torch.no_grad(), PlayedDevices() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
