"""Finished rows on disk: a killed trace goes on where it was, and memory need not hold them.

Blocks of rows are written as they are made, a safetensors file each, and read back mapped. They
stand in the user's cache folder under a hash of all that they depend on: what the forward pass
recorded, what is explained, how. The same trace again finds them; one that ends removes them. Rows
come out in the same bytes as without a disk (`tests/test_tracer_spill.py`).
"""

import contextlib
import json
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import save_file
from scipy import sparse
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.one_writer import locked
from tracer.attribution.finished import (
    FinishedRows,
    FlooredRun,
    NodeRows,
    RowRun,
    Sums,
    WholeRun,
)
from tracer.attribution.local_model import LocalModel, Reach
from tracer.attribution.targets import TargetRows

KEPT_DAYS = 7
"""After which rows of a trace that nobody took up again are removed."""
SPARE = 1.2
"""Times the size of the rows that must be free on the disk."""
LOCK = "lock"
NUMPY = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}
"""Types as safetensors names them."""


def unfinished() -> Path:
    """The folder of all traces that are not finished."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tracer" / "unfinished"


def fits_on_disk(size: float) -> bool:
    """Whether the cache folder's disk has room for rows of so many bytes."""
    folder = unfinished()
    with contextlib.suppress(OSError):
        there = next(one for one in (folder, *folder.parents) if one.is_dir())
        return shutil.disk_usage(there).free >= SPARE * size
    return False


@dataclass
class Spill:
    """The rows of one trace on disk, as far as they are finished."""

    folder: Path
    local: LocalModel
    made: int = 0
    """Blocks so far."""
    writes: bool = field(default=True)
    """Until the disk is full."""

    def block(
        self,
        columns: Int[np.ndarray, " rows"],
        sweep: Callable[[], Callable[[], FinishedRows]],
        known: Callable[[FinishedRows], object],
    ) -> Callable[[], FinishedRows]:
        """The next block of rows: from the disk where an earlier run left it there, else swept.

        Args:
            columns: of the rows' own nodes.
            sweep: begins the block; what it returns finishes it.
            known: told of a block that the disk had.

        Returns:
            What finishes the block and has its rows, mapped from the disk unless that is full.
        """
        path = self.folder / f"{self.made:06}.safetensors"
        self.made += 1
        if (found := _read(path, self.local)) and np.array_equal(found.columns, columns):
            known(found)
            return lambda: found
        finish = sweep()
        return lambda: self._written(path, finish())

    def _written(self, path: Path, block: FinishedRows) -> FinishedRows:
        """A block, mapped from the disk unless that is full."""
        if not self.writes:
            return block
        try:
            _write(path, block)
        except OSError:
            self.writes = False
            path.unlink(missing_ok=True)
            return block
        return _read(path, self.local, checked=False) or block

    def done(self) -> None:
        """Remove the files; what is mapped of them stays readable."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def spilled(
    model: ReplacementModel,
    recording: Recording,
    local: LocalModel,
    what: tuple[TargetRows, object],
    size: float,
) -> Iterator[Spill | None]:
    """Where the rows of a trace go on disk; removed if nothing is raised and `done` was called.

    Args:
        model: what is traced.
        recording: its forward pass.
        local: its local model.
        what: the targets, and all else that the rows depend on.
        size: bytes that they will take.

    Yields:
        The place; None where there is no room, no such folder can be made, or another process is
        at the same trace.
    """
    folder = unfinished() / _key(model, recording, what)
    with contextlib.ExitStack() as stack:
        found = None
        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_old(folder.parent)
            if fits_on_disk(size):
                folder.mkdir(exist_ok=True)
                if stack.enter_context(locked(folder / LOCK)):
                    os.utime(folder)
                    found = Spill(folder, local)
        yield found


def _key(model: ReplacementModel, recording: Recording, what: tuple[TargetRows, object]) -> str:
    """A hash of all that the rows of a trace depend on."""
    found = sha256()
    threads, (targets, settings) = torch.get_num_threads(), what
    names = (model.name, model.revision, model.transcoder_name, model.transcoder_hash)
    places = ", ".join(map(str, model.host.devices))
    about = [*names, recording.tokens, places, torch.__version__, threads, settings]
    found.update(json.dumps(about, default=str).encode())
    features = recording.features
    for tensor in (
        *recording.residuals,
        *recording.between,
        *recording.inputs,
        *recording.outputs,
        *(features.layer, features.position, features.feature, features.activation),
        *(recording.logits_before_cap, targets.vector, targets.bias, targets.value),
    ):
        found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _remove_old(folder: Path) -> None:
    """Remove rows that nobody took up again, unless somebody just does."""
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
                with locked(entry / LOCK) as mine:
                    if mine:
                        shutil.rmtree(entry)


def _write(path: Path, block: FinishedRows) -> None:
    """Write a block beside its place and rename it there."""
    arrays: dict[str, np.ndarray] = {
        "columns": block.columns.astype(np.int64),
        "constant": block.constant,
        "value": block.value,
        "signed": block.sums.signed,
        "absolute": block.sums.absolute,
        "floored": np.ascontiguousarray(block.sums.floored),
    }
    runs: list[dict[str, Any]] = []
    for at, run in enumerate(block.effects):
        parts, about = _parts(run)
        arrays |= {f"{at}.{name}": part for name, part in parts.items()}
        runs.append(about)
    about = {"runs": json.dumps(runs), "places": json.dumps(block.places)}
    check = str(_checksum(arrays))
    partial = path.with_suffix(".partial")
    save_file(arrays, partial, about | {"check": check})
    partial.replace(path)


def _parts(run: RowRun) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if isinstance(run, WholeRun):
        return {"values": run.values}, {"kind": "whole"}
    assert isinstance(run, FlooredRun)
    effects = run.effects
    parts = {"data": effects.data, "indices": effects.indices, "indptr": effects.indptr}
    return parts, {"kind": "floored", "shape": list(effects.shape)}


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    check = 0
    for name in sorted(arrays):
        flat = np.ascontiguousarray(arrays[name]).reshape(-1)
        check = zlib.crc32(flat.view(np.uint8).data, check)
    return check


def _read(path: Path, local: LocalModel, checked: bool = True) -> FinishedRows | None:
    """A block that `_write` wrote, mapped; None where there is none, or none that is whole."""
    try:
        file, arrays, about = _mapped(path)
        if checked and about["check"] != str(_checksum(arrays)):
            return None
        places = [(int(site), int(at)) for site, at in json.loads(about["places"])]
        runs = json.loads(about["runs"])
        effects: list[RowRun] = [
            MappedRun(_run(run, arrays, f"{at}.", local.reach(*place)), file)
            for at, (run, place) in enumerate(zip(runs, places, strict=True))
        ]
        sums = Sums(*(np.array(arrays[name]) for name in ("signed", "absolute", "floored")))
        first = (np.array(arrays[name]) for name in ("columns", "constant", "value"))
        columns, constant, value = first
        _let_go(file)
        return FinishedRows(columns, effects, constant, value, sums, places)
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True, eq=False)
class MappedRun:
    """A run of rows in a file, which take no memory but while they are read."""

    run: RowRun
    file: mmap.mmap

    @property
    def rows(self) -> int:
        """How many."""
        return self.run.rows

    @property
    def nbytes(self) -> int:
        """None: the file has them."""
        return 0

    def pass_on(
        self, weight: Float[np.ndarray, " rows"], into: Float[np.ndarray, " columns"]
    ) -> None:
        """As `RowRun.pass_on`."""
        self.run.pass_on(weight, into)
        _let_go(self.file)

    def dense(self, columns: int) -> Float[np.ndarray, "rows columns"]:
        """As `RowRun.dense`."""
        found = self.run.dense(columns)
        _let_go(self.file)
        return found

    def among(self, node: Int[np.ndarray, " columns"], nodes: int) -> NodeRows:
        """As `RowRun.among`."""
        found = self.run.among(node, nodes)
        _let_go(self.file)
        return found


def _let_go(file: mmap.mmap) -> None:
    """Give back the pages that were read; what the system keeps of the file counts for nobody."""
    if hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def _run(about: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str, reach: Reach) -> RowRun:
    if about["kind"] == "whole":
        return WholeRun(reach, arrays[prefix + "values"])
    parts = tuple(arrays[prefix + name] for name in ("data", "indices", "indptr"))
    return FlooredRun(sparse.csr_array(parts, shape=tuple(about["shape"]), copy=False))


def _mapped(path: Path) -> tuple[mmap.mmap, dict[str, np.ndarray], dict[str, str]]:
    """A safetensors file, its arrays in it, and its metadata."""
    with path.open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(held[:8], "little")
    header = json.loads(held[8 : 8 + length])
    about = header.pop("__metadata__")
    arrays = {}
    for name, one in header.items():
        begin, end = (8 + length + offset for offset in one["data_offsets"])
        kind = np.dtype(NUMPY[one["dtype"]])
        flat = np.frombuffer(held, kind, (end - begin) // kind.itemsize, begin)
        arrays[name] = flat.reshape(one["shape"])
    return held, arrays, about
