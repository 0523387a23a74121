"""Where the parts of a model come to stand: on one device, or each where a `device_map` says."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replacement_models.errors import ModelError

DeviceMap = str | Mapping[str, int | str]
"""A way of spreading layers over the devices there are, or part of the model to device."""
WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Of accelerate, which asks how much memory each device has free."""
DISK = "disk"
"""Stands for a device in a map: weights stay in their files until they are called for."""


def device_named(name: str) -> torch.device:
    """A device that computes here.

    Raises:
        ModelError: it does not.
    """
    try:
        device = torch.device(name)
        (torch.ones(1, device=device) + 1).tolist()
    except Exception as error:  # backends that are not built in fail in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used here ({reason})") from error
    return device


def checked_map(place: object, device: str, given: Any) -> DeviceMap | None:
    """A `device_map` as transformers takes it.

    Args:
        place: what names the model.
        device: asked for beside it.
        given: what the user gave.

    Returns:
        The same; None where none is given.

    Raises:
        ModelError: it is no way, no mapping, names a device that cannot be used here, stands beside
            another device, or accelerate is missing.
    """
    if given is None:
        return None
    if device != "cpu":
        raise ModelError(f"device is {device!r} and device_map is given; give one of the two")
    if find_spec("accelerate") is None:
        raise ModelError("device_map needs accelerate: pip install accelerate")
    if Path(str(place)).is_file():
        raise ModelError(
            f"{place}: a GGUF file is loaded onto one device; leave device_map out, or give a "
            "safetensors folder"
        )
    if not (given in WAYS if isinstance(given, str) else isinstance(given, Mapping) and given):
        raise ModelError(
            f"device_map is {given!r:.80}, expected one of {', '.join(WAYS)}, or a map of modules "
            "to devices"
        )
    return given if isinstance(given, str) else _usable(given)


def check_covered(place: Path, given: DeviceMap | None, model: nn.Module) -> None:
    """Refuse a map that leaves parameters out: nothing would bring them what they read.

    Raises:
        ModelError: names the first.
    """
    if not isinstance(given, Mapping):
        return
    left = [
        name
        for name, _ in model.named_parameters()
        if not any(not part or f"{name}.".startswith(f"{part}.") for part in given)
    ]
    if left:
        more = f" and {len(left) - 1} more parameters" if len(left) > 1 else ""
        raise ModelError(
            f"{place}: device_map has no place for {left[0]}{more}; name every part of the model, "
            'or "" for all that is left'
        )


def _usable(given: Mapping[str, Any]) -> dict[str, int | str]:
    """The same map, all of whose devices compute here; numbers are those of GPUs."""
    for one in {str(one) for one in given.values()} - {DISK}:
        device_named(f"cuda:{one}" if one.isdecimal() else one)
    return dict(given)
