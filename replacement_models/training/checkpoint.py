"""Checkpoints through torch.distributed.checkpoint, as safetensors: no pickle, resharded on load.

A checkpoint is a folder that appears by one rename, tensors in it and `state.json` beside them; a
killed run leaves whole ones only. Of several ranks each writes its rows, of DTensors, and the first
one renames; however many, they load what however many wrote.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from replacement_models.errors import ModelError
from replacement_models.formats.storage.appearing import appearing
from replacement_models.training.ranks import ALONE, Ranks

STATE = "state.json"
NAME = re.compile(r"step_(\d{9})")
KEPT = 2
"""Checkpoints that stay."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:
    """Write a checkpoint and remove old ones.

    Args:
        folder: of all checkpoints.
        step: steps done.
        tensors: by name.
        state: everything else, as JSON holds it.
        ranks: that write it together.

    Returns:
        Its folder.

    Raises:
        ModelError: it cannot be written.
    """
    path = folder / f"step_{step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if ranks.by_the_first(path.exists):
            return path
        with _appearing(path, ranks) as whole:
            writer = _storage("HuggingFaceStorageWriter")(str(whole), save_distributed=True)
            with _one_process():
                save_state(dict(tensors), storage_writer=writer, no_dist=ranks.count == 1)
            if ranks.first:
                (whole / STATE).write_text(json.dumps(dict(state)) + "\n")
        for old in sorted(_saved(folder))[:-KEPT] if ranks.first else []:
            shutil.rmtree(folder / f"step_{old:09d}", ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error})") from error
    except CheckpointException as error:  # of some rank
        why = next(iter(error.failures.values()))[0]
        raise ModelError(f"{path}: cannot be written ({' '.join(str(why).split())})") from error
    return path


@contextmanager
def _appearing(path: Path, ranks: Ranks) -> Iterator[Path]:
    """A new folder that all ranks fill; the first one lets it appear when all have."""
    if ranks.first:
        with appearing(path) as whole:
            ranks.by_the_first(lambda: str(whole))
            yield whole
            ranks.wait()
    else:
        yield Path(ranks.by_the_first(str))
        ranks.wait()


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written, None where there is none."""
    steps = _saved(folder)
    return folder / f"step_{max(steps):09d}" if steps else None


def read_state(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint's tensors.

    Raises:
        ModelError: it is missing or torn.
    """
    try:
        found = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path / STATE}: cannot be read ({error}); remove {path}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path / STATE}: expected an object, got {type(found).__name__}")
    return found


def load(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Fill tensors from a checkpoint, in place.

    Raises:
        ModelError: a tensor is missing, torn, of another shape or type, or no number throughout.
    """
    reader = _storage("HuggingFaceStorageReader")(str(path))
    try:
        known = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            found = known.get(name)
            shape = None if found is None else tuple(found.size)
            if found is None or shape != tuple(tensor.shape):
                raise ModelError(
                    f"{path}: tensor {name} has shape {shape}, expected {tuple(tensor.shape)}; it "
                    "is of another run, or torn: remove it"
                )
            if found.properties.dtype != tensor.dtype:
                raise ModelError(
                    f"{path}: tensor {name} is {found.properties.dtype}, expected {tensor.dtype}"
                )
        with _one_process():
            load_state(
                dict(tensors),
                storage_reader=_storage("HuggingFaceStorageReader")(str(path)),
                no_dist=ranks.count == 1,
            )
        for name, tensor in tensors.items():
            _check_numbers(path, name, tensor)
    except ModelError:
        raise
    except Exception as error:  # whatever a torn file makes of its readers
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path}: cannot be read ({reason}); remove it") from error


def _check_numbers(path: Path, name: str, tensor: Tensor) -> None:
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    # A feature that a narrower layer has no room for was heard of last an infinite time ahead.
    fine = (own < torch.inf) & ((own > -torch.inf) | (name == "weights.silent"))
    if own.is_floating_point() and not bool(fine.all()):
        raise ModelError(f"{path}: tensor {name} holds what is no finite number; remove {path}")


def _saved(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return [int(match[1]) for match in found if match]


def _storage(name: str) -> Any:
    if not hasattr(distributed, name):
        raise ModelError(
            f"training needs a torch whose checkpoints are safetensors ({name}, torch 2.9 or "
            f"newer), this is {torch.__version__}"
        )
    return getattr(distributed, name)


class _one_process(warnings.catch_warnings):  # noqa: N801 - a `with`, named as one
    """Torch warns that there is no process group, which is meant."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
