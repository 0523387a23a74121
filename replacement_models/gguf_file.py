"""Models in GGUF files: transformers reads them, with weights unpacked to ordinary tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replacement_models.errors import ModelError
from replacement_models.hub import local_path

SUFFIX = ".gguf"
NEEDED = ("gguf", "accelerate")
"""Packages that transformers reads such files with."""
PLAIN = {"F64", "F32", "F16", "BF16"}
"""Types that are numbers as they stand, not quantised blocks."""


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a model's name means, or None where it means something else.

    Raises:
        ModelError: there is no such file, or a package that reads it is missing.
    """
    path = local_path(name)
    if path.suffix.lower() != SUFFIX or path.is_dir():
        return None
    if not path.is_file():
        raise ModelError(f"{name}: no such file")
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"{name}: reading GGUF files needs the package {' and '.join(missing)}; "
            "pip install 'tracer[gguf]'"
        )
    return path


def from_pretrained_options(place: Path) -> tuple[Path, dict[str, Any]]:
    """The folder that transformers is to load from, and how it is told of a GGUF file there.

    Args:
        place: a folder, or a GGUF file.

    Returns:
        The folder, and keyword arguments for `from_pretrained`, none for a folder.
    """
    return (place.parent, {"gguf_file": place.name}) if place.is_file() else (place, {})


def unpacked() -> dict[str, Any]:
    """What asks transformers for ordinary tensors; before version 5 it made nothing else."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def quantised_types(path: Path) -> list[str]:
    """Names of the quantised types in a file, none where it holds plain numbers."""
    from gguf import GGUFReader

    return sorted({tensor.tensor_type.name for tensor in GGUFReader(path).tensors} - PLAIN)


def unplaced_tensors(path: Path) -> list[str]:
    """Names of tensors that a file's own architecture and number of layers have no place for.

    transformers passes over them without a word.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    layers = int(reader.fields[f"{architecture}.block_count"].contents())
    [kind] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    places = {
        gguf.TENSOR_NAMES[tensor].format(bid=layer)
        for tensor in gguf.MODEL_TENSORS[kind]
        for layer in range(layers)
    }
    names = [tensor.name for tensor in reader.tensors]
    return [name for name in names if name.rpartition(".")[0] not in places and name not in places]


def note(path: Path, dtype: str) -> str | None:
    """What a user should know of the weights: one line, or None where they are as stored.

    Args:
        path: a GGUF file.
        dtype: what its weights became.
    """
    types = quantised_types(path)
    if not types:
        return None
    return (
        f"{path.name}: quantised weights ({', '.join(types)}) were dequantised to {dtype}; "
        "figures are of this model, not of the one it was quantised from"
    )


@contextmanager
def bar_hidden() -> Iterator[None]:
    """Silence the bar that transformers draws past its own switch while it dequantises."""
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    drawn = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = drawn
