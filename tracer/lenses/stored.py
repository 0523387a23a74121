"""Tensors with a description in one safetensors file: how lenses and directions are stored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphs.exchange.files import writing
from tracer.errors import TraceError

SUFFIX, VERSION = ".safetensors", 1


def check_path(path: Path, what: str) -> None:
    """Refuse a place that `write_tensors` will not write to, before the work is done.

    Raises:
        TraceError: another suffix, or no folder to write into.
    """
    if path.suffix != SUFFIX:
        raise TraceError(f"cannot write the {what} {path}: expected a suffix of {SUFFIX}")
    if not path.absolute().parent.is_dir():
        raise TraceError(f"cannot write the {what} {path}: no such folder: {path.parent}")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], what: str, about: Mapping[str, Any]
) -> None:
    """Write tensors in float32 with what is to be known of them, whole or not at all.

    Args:
        path: ends in .safetensors.
        tensors: by name.
        what: "lens" or "direction", the header's one entry.
        about: said of them, as JSON there.

    Raises:
        TraceError: the path ends otherwise.
        GraphError: nothing can be written there.
    """
    check_path(path, what)
    held = {name: one.detach().float().contiguous().cpu() for name, one in tensors.items()}
    said = {"format": f"tracer-{what}", "version": VERSION, **about}
    with writing(path) as partial:
        save_file(held, partial, {what: json.dumps(said, ensure_ascii=False, sort_keys=True)})


def read_tensors(
    path: Path, what: str, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and what is said of them, less format and version.

    Args:
        path: as `write_tensors` wrote it.
        what: likewise.
        names: the tensors it must hold.

    Raises:
        TraceError: no such file, it is torn, or it holds something else.
    """
    if not path.is_file():
        raise TraceError(f"{path}: no such file; expected a {what} saved as {SUFFIX}")
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(what)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TraceError(f"{path}: cannot be read as safetensors ({error})") from error
    about = _parsed(path, what, said)
    if set(tensors) != set(names):
        raise TraceError(f"{path}: holds {sorted(tensors)}, expected {sorted(names)}")
    wrong = [name for name, one in tensors.items() if not torch.isfinite(one).all()]
    if wrong:
        raise TraceError(f"{path}: {wrong[0]} holds numbers that are not finite")
    return tensors, about


def _parsed(path: Path, what: str, said: str | None) -> dict[str, Any]:
    if said is None:
        raise TraceError(f"{path}: is no {what} (its header has no entry {what!r})")
    try:
        about = json.loads(said)
        found = about.pop("format"), about.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise TraceError(f"{path}: the entry {what!r} of its header is torn ({error})") from error
    if found != (f"tracer-{what}", VERSION):
        raise TraceError(
            f"{path}: is format {found[0]}, version {found[1]}; expected tracer-{what}, {VERSION}"
        )
    return dict(about)
