"""Chunks of activations: made by the model, or read from a cache it was written to before."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.formats.storage.appearing import appearing
from replacement_models.replacement import ReplacementModel
from replacement_models.training.config import TrainConfig
from replacement_models.training.harvest import Harvester, joined
from replacement_models.training.pool import Rows
from replacement_models.training.trainee import Batch

MANIFEST = "manifest.json"
SAMPLED = 4096
"""Entries of each parameter that a model's fingerprint is of, beside its shape."""


@dataclass(eq=False)
class Source:
    """Where chunks come from."""

    harvester: Harvester
    tokens: Int[np.ndarray, "rows context"]
    rows: Rows
    cache: "Cache | None" = None
    harvested: int = 0
    """Tokens that the model has run over."""
    _last: tuple[int, Batch] | None = None

    def __call__(self, number: int) -> Batch:
        """Activations of one chunk; the last one is kept at hand."""
        if self._last is None or self._last[0] != number:
            self._last = None  # let go before another is made
            self._last = number, self._chunk(number)
        return self._last[1]

    def _chunk(self, number: int) -> Batch:
        if self.cache is not None:
            found = self.cache.read(number)
            if found is not None:
                return found
        made = self.of_rows(self.rows.rows_of(number))
        if self.cache is None:
            return made
        self.cache.write(number, made)
        found = self.cache.read(number)  # as it will be read later, rounded as the cache rounds
        assert found is not None
        return found

    def of_rows(self, numbers: Int[np.ndarray, " rows"], most: int | None = None) -> Batch:
        """Activations of rows, row by row, until there are `most` tokens.

        The model runs over groups of `data.rows`. Without `most` these are of rows of like length,
        so that little of them is fill.
        """
        size, parts, count = self.harvester.config.data.rows, [], 0
        lengths = (self.tokens[numbers] >= 0).sum(1)
        sort = most is None and len(set(lengths.tolist())) > 1
        order = np.argsort(lengths, kind="stable") if sort else np.arange(len(numbers))
        for at in range(0, len(numbers), size):
            if most is not None and count >= most:
                break
            some = trimmed(self.tokens[numbers[order[at : at + size]]])
            parts.append(self.harvester(some))
            count += len(parts[-1])
            self.harvested += int((some >= 0).sum())
        found = joined(parts)
        parts.clear()
        if sort:
            return found.rows(self._in_order(numbers, order))
        return found if most is None else found.rows(slice(0, most))

    def _in_order(
        self, numbers: Int[np.ndarray, " rows"], order: Int[np.ndarray, " rows"]
    ) -> Int[Tensor, " tokens"]:
        """Where the tokens of rows stand among those of the same rows in another order."""
        ids = torch.from_numpy(self.tokens[numbers[order]])
        row, position = self.harvester.counted(ids).nonzero(as_tuple=True)
        return torch.from_numpy(order)[row].mul(ids.shape[1]).add(position).argsort()


def trimmed(rows: Int[np.ndarray, "rows context"]) -> Int[np.ndarray, "rows positions"]:
    """Rows less the positions at the end where none holds a token."""
    used = np.flatnonzero((rows >= 0).any(0))
    return rows[:, : int(used[-1]) + 1] if len(used) else rows[:, :1]


@dataclass(frozen=True)
class Cache:
    """A folder of shards, one a chunk, layer by layer, and a manifest of what they are of."""

    folder: Path
    layers: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def open(cls, folder: Path, about: dict[str, Any], source: Harvester) -> "Cache":
        """A new cache, or one of the same model, text and places.

        Raises:
            ModelError: it is of others, or cannot be read or written.
        """
        path = folder / MANIFEST
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ModelError(f"{path}: cannot be read ({error}); remove {folder}") from error
            for name, value in about.items():
                got = found.get(name) if isinstance(found, dict) else None
                if got != value:
                    raise ModelError(
                        f"data.cache: {path} is of {name} {got!r:.60}, expected {value!r:.60}; "
                        "name another folder, or remove it"
                    )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ModelError(f"data.cache: {folder} is no cache (it has no {MANIFEST})")
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with appearing(folder) as whole:
                (whole / MANIFEST).write_text(json.dumps(about, indent=2) + "\n")
        kind = getattr(torch, about["numbers"])
        return cls(folder, source.layers, kind, source.model.device)

    def has(self, number: int) -> bool:
        """Whether a chunk has been written."""
        return self._shard(number).is_file()

    def read(self, number: int) -> Batch | None:
        """A chunk, float32, or None where it has not been written.

        Raises:
            ModelError: it is torn.
        """
        path = self._shard(number)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), "pt", str(self.device)) as file:
                sides = [
                    [file.get_tensor(f"{side}.{layer}").float() for layer in self.layers]
                    for side in ("in", "out")
                ]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); remove it") from error
        shapes = {tensor.shape for side in sides for tensor in side}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ModelError(f"{path}: shapes differ, {sorted(map(tuple, shapes))}; remove it")
        return Batch(*sides)

    def write(self, number: int, batch: Batch) -> None:
        """Write a chunk, whole or not at all."""
        path = self._shard(number)
        partial = path.with_suffix(".partial")
        found = {
            f"{side}.{layer}": tensor.to(self.dtype).cpu().contiguous()
            for side, tensors in (("in", batch.inputs), ("out", batch.outputs))
            for layer, tensor in zip(self.layers, tensors, strict=True)
        }
        if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            raise ModelError(
                f"data.cache_type: expected numbers that hold these activations (bfloat16 or "
                f"float32), got {str(self.dtype).removeprefix('torch.')}"
            )
        try:
            save_file(found, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise ModelError(f"data.cache: {path} cannot be written ({error})") from error

    def _shard(self, number: int) -> Path:
        return self.folder / f"chunk_{number:06d}.safetensors"


def manifest(
    config: TrainConfig, model: ReplacementModel, fingerprint: str, rows: Rows
) -> dict[str, Any]:
    """What a cache is of."""
    chosen, data = config.dictionary, config.data
    places = [chosen.site] if chosen.kind == "sae" else [chosen.read, chosen.write]
    layers = range(len(model.host.blocks)) if chosen.layers is None else chosen.layers
    return {
        "format": "tracer-activations",
        "version": 1,
        "model": model_fingerprint(model),
        "corpus": fingerprint,
        "places": places,
        "layers": sorted(layers),
        "skip_positions": data.skip_positions,
        "numbers": data.cache_type,
        "rows": [len(rows.order), rows.chunk, data.rows],
        "seed": config.run.seed,
    }


def model_fingerprint(model: ReplacementModel) -> str:
    """SHA-256 over names, shapes and a sample of the entries of a model's weights."""
    digest = sha256()
    for name, weight in model.host.model.state_dict().items():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(some.astype("<f4").tobytes())
    return digest.hexdigest()
