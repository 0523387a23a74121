"""What a dataset is made of: written down before the first prompt, compared before going on.

Two runs that agree in it write the same bytes, on one machine with one number of threads.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from graphs.collections.columns import ABOUT, NAME, VERSION
from graphs.collections.dataset import read_about
from graphs.exchange.files import is_passing, writing
from replacement_models import ReplacementModel
from replacement_models.replacement import public_name
from tracer.attribution.assemble import names, versions
from tracer.attribution.targets import Direction
from tracer.attribution.trace import trace
from tracer.datasets.prompts import Prompt, column_types, digest, target_names
from tracer.errors import TraceError
from tracer.features.store import FeatureStore

SAMPLED = 256
"""Numbers of every tensor that tell two models of one name apart."""
CALLBACKS = ("on_recording", "on_estimate", "on_graph", "progress", "keep_partial")
NOT_COMPARED = ("memory_limit", "spill_above", "products")
"""Settings that change where a trace runs, not what it gives; products are kept beside."""


@dataclass(frozen=True)
class How:
    """How every prompt is traced."""

    nodes: float
    edges: float
    """Shares of influence kept, as `AttributionGraph.prune` takes them."""
    settings: Mapping[str, Any]
    """Arguments of `trace`."""
    weight: pa.DataType
    """Type of the weights of edges."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: the prompts, and how."""

    prompts: Sequence[Prompt]
    out: Path
    shard: int
    """Prompts a shard."""
    how: How
    about: Mapping[str, Any]
    """What settings.json says."""

    @property
    def shards(self) -> int:
        """How many."""
        return -(-len(self.prompts) // self.shard)

    def numbers(self, shard: int) -> range:
        """Numbers of the prompts of a shard."""
        begin = shard * self.shard
        return range(begin, min(begin + self.shard, len(self.prompts)))


def plan(
    model: ReplacementModel,
    prompts: Sequence[Prompt],
    out: Path,
    shard: int,
    kept: tuple[float, float],
    settings: Mapping[str, Any],
) -> Plan:
    """Settle what is to be done.

    Args:
        model: what to trace.
        prompts: checked.
        out: folder of the dataset.
        shard: prompts a shard.
        kept: shares of node and edge influence.
        settings: arguments of `trace` that were given.

    Raises:
        TraceError: a number out of range.
        TypeError: `trace` has no such argument.
    """
    known = inspect.signature(trace).parameters
    allowed = {name: at.default for name, at in known.items() if name not in CALLBACKS}
    if unknown := sorted(set(settings) - set(allowed)):
        raise TypeError(f"trace_many() got an unexpected keyword argument {unknown[0]!r}")
    for name, share in zip(("nodes", "edges"), kept, strict=True):
        if not 0 < share <= 1:
            raise TraceError(f"{name} is {share}, expected a share above 0 and at most 1")
    if not 1 <= shard <= 1 << 20:
        raise TraceError(f"shard is {shard}, expected 1 to {1 << 20} prompts")
    whole = {name: default for name, default in allowed.items() if default is not inspect._empty}
    whole |= settings
    about = {
        "format": NAME,
        "version": VERSION,
        "prompts": len(prompts),
        "shard": shard,
        "prompts_digest": digest(prompts),
        "columns": column_types(prompts),
        "weight": "double" if model.dtype == torch.float64 else "float",
        "pruned": dict(zip(("nodes", "edges"), kept, strict=True)),
        **_model(model),
        "settings": _described(model, whole),
    }
    how = How(*kept, whole, pa.type_for_alias(about["weight"]))
    return Plan(prompts, out, shard, how, about)


def _model(model: ReplacementModel) -> dict[str, Any]:
    """Names, digests and versions."""
    return {**names(model), "weights_digest": weights_digest(model), "versions": versions()}


def weights_digest(model: ReplacementModel) -> str:
    """SHA-256 of some numbers of every tensor of a model and its dictionary.

    Returns:
        64 hexadecimal digits, the same wherever and from whatever place the weights were loaded.
    """
    found = sha256()
    for name, tensor in model.host.model.named_parameters():
        _add(found, name, tensor)
    for layer in model.transcoder.present:
        weights = model.transcoder.layers[layer]
        _add(found, f"encoder {layer}", weights.W_enc)
        _add(found, f"bias {layer}", weights.b_enc)
    return found.hexdigest()


def _add(found: Any, name: str, tensor: torch.Tensor) -> None:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // SAMPLED)
    held = flat[::step].to("cpu", torch.float64).numpy()
    found.update(f"{name} {tuple(tensor.shape)}".encode())
    found.update(np.ascontiguousarray(held).tobytes())


def _described(model: ReplacementModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the traces as JSON."""
    held = {name: value for name, value in settings.items() if name not in NOT_COMPARED}
    store, targets = held["store"], held["targets"]
    if store is not None:
        store = public_name(store.path if isinstance(store, FeatureStore) else store)
    return held | {
        "store": store,
        "targets": target_names(targets),
        "directions": [_vector(one) for one in targets or () if isinstance(one, Direction)],
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _vector(direction: Direction) -> str:
    """SHA-256 of what a direction is, beside its name."""
    vector = torch.as_tensor(direction.vector, dtype=torch.float64, device="cpu")
    return sha256(np.ascontiguousarray(vector.numpy()).tobytes()).hexdigest()


def begin(plan: Plan) -> None:
    """Write down what a dataset is made of, or find that what stands there was made of the same.

    Raises:
        TraceError: something else stands there, or it was begun with something else.
        GraphError: the place cannot be written.
    """
    if not (plan.out / ABOUT).is_file():
        _refuse_others(plan.out)
        plan.out.mkdir(parents=True, exist_ok=True)
        with writing(plan.out / ABOUT) as partial:
            partial.write_text(_text(plan.about), encoding="utf-8")
        return
    before = read_about(plan.out)
    now = json.loads(_text(plan.about))
    if changed := _first_change(before, now):
        name, old, new = changed
        raise TraceError(
            f"{plan.out}: was begun with {name} {old!r:.80}, now it is {new!r:.80}; go on with the "
            "former, or name another folder"
        )


def _refuse_others(out: Path) -> None:
    """Refuse a place where something else stands."""
    if not out.exists():
        return
    if not out.is_dir():
        raise TraceError(f"{out}: a file stands there; name a folder for the dataset")
    if any(not is_passing(entry.name) for entry in out.iterdir()):
        raise TraceError(
            f"{out}: holds something that is no dataset of graphs; name another folder"
        )


def _text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first entry, of settings and versions too, in which two descriptions differ."""
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return _first_change(old, new)
        return name, old, new
    return None
