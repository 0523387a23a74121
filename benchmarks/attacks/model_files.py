"""Dictionaries in every format, models, names of features: refused, or of use."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import tracer
from benchmarks.attacks.trial import Attack, mutated_bytes, mutated_json, require
from replacement_models import ReplacementModel, Transcoder, load_transcoder, save_transcoder
from replacement_models.formats.labels import read_labels
from tests.random_models import transcoder

GOLDEN = Path(__file__).parents[2] / "tests" / "data" / "golden"
MODELS = ("llama_gqa_clt", "gpt2_plt", "gemma2_plt")
TOKENS = [1, 7, 12, 30, 5]


def spoiled_tensor(rng: np.random.Generator, tensor: Tensor) -> Tensor:
    """Another shape or type, or numbers that are none."""
    kind = int(rng.integers(8))
    if kind < 3 and tensor.is_floating_point() and tensor.numel():
        flat = tensor.clone().reshape(-1)
        flat[int(rng.integers(len(flat)))] = (float("nan"), float("inf"), -float("inf"))[kind]
        return flat.reshape(tensor.shape)
    changes: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor[:-1] if tensor.ndim else tensor,
        lambda: tensor[None],
        lambda: tensor.reshape(-1),
        lambda: tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor,
        lambda: tensor.to(torch.int32),
        lambda: tensor.to(torch.float16),
        lambda: tensor.new_zeros(0),
    )
    return changes[int(rng.integers(len(changes)))]().contiguous()


def spoil_tensors(rng: np.random.Generator, path: Path) -> None:
    """Change, drop, rename or add a tensor of a safetensors file."""
    tensors = load_file(path)
    names = list(tensors)
    name = names[int(rng.integers(len(names)))]
    kind = rng.random()
    if kind < 0.15:
        tensors.pop(name)
    elif kind < 0.25:
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind < 0.3:
        tensors["another"] = torch.zeros(2)
    else:
        tensors[name] = spoiled_tensor(rng, tensors[name])
    save_file(tensors, path)


def spoil_text(rng: np.random.Generator, path: Path) -> None:
    """Change a configuration, as JSON or YAML, or its bytes."""
    content = path.read_bytes()
    if rng.random() < 0.2:
        path.write_bytes(mutated_bytes(rng, content))
        return
    if rng.random() < 0.03:
        path.write_bytes(b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' + b"9" * 5000 + b"}")
        return
    if path.suffix == ".yaml":
        said = mutated_json(rng, yaml.safe_load(content))
        path.write_text(json.dumps(said, default=str))  # which is YAML too
        return
    path.write_text(
        json.dumps(mutated_json(rng, json.loads(content))), encoding="utf-8", errors="replace"
    )


def spoil_folder(rng: np.random.Generator, folder: Path) -> None:
    """Change one file of a folder, its bytes, or which files there are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    kind = rng.random()
    if kind < 0.06:
        path.unlink()
    elif kind < 0.09:
        path.unlink()
        path.mkdir()
    elif kind < 0.12:
        path.unlink()
        path.symlink_to(path.name)
    elif kind < 0.15:
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
    elif path.suffix == ".safetensors" and kind < 0.85:
        spoil_tensors(rng, path)
    elif path.suffix in (".json", ".yaml"):
        spoil_text(rng, path)
    else:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))


def restored(whole: Path, place: Path) -> Path:
    """A fresh copy of a folder."""
    if place.exists():
        shutil.rmtree(place)
    return Path(shutil.copytree(whole, place))


def finite_throughout(found: Transcoder) -> None:
    """Fail where a dictionary computes something that is no number."""
    x = [torch.ones(2, found.d_model, dtype=torch.float32) for _ in found.layers]
    held = found.to("cpu", torch.float32)
    active = [held.encode(layer, one)[1] for layer, one in enumerate(x)]
    for one in (*active, *held.decode(active, x)):
        require(one.isfinite().all(), "a dictionary of numbers that are none was accepted")


def peers(place: Path) -> list[Path]:
    """A folder in every format, some in several variants."""
    from tests.test_replacement_models_foreign import CASES

    made = []
    for number, (name, peer) in enumerate(CASES.items()):
        folder = place / f"{number}_{name.replace(' ', '_')}"
        folder.mkdir(parents=True)
        peer().save(folder)
        made.append(folder)
    for name, kind in (
        ("tracer", "cross_layer"),
        ("circuit-tracer", "cross_layer"),
        ("circuit-tracer", "per_layer"),
        ("tracer", "per_layer"),
    ):
        folder = place / f"{name}_{kind}"
        save_transcoder(transcoder(kind), folder, name)
        made.append(folder)
    return made


def spoiled_dictionaries(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Dictionaries with one thing changed: refused, or finite in all they compute."""
    whole = peers(place / "whole")

    def attack() -> None:
        folder = restored(whole[int(rng.integers(len(whole)))], place / "set")
        spoil_folder(rng, folder)
        finite_throughout(load_transcoder(folder, lazy=bool(rng.random() < 0.3)))

    while True:
        yield attack


def spoiled_models(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Models with one thing changed: refused, or traced with the conservation law kept."""

    def attack() -> None:
        golden = GOLDEN / MODELS[int(rng.integers(len(MODELS)))]
        folder = restored(golden / "model", place / "model")
        spoil_folder(rng, folder)
        model = ReplacementModel.load(folder, golden / "transcoders")
        graph = tracer.trace(model, TOKENS, max_features=4, max_logits=1)
        law: dict[str, Any] = graph.metadata["conservation"]
        require(law["relative"] < 1e-3, f"conservation broken by {law['relative']:.1e}")

    while True:
        yield attack


def spoiled_labels(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Names of features: refused, or texts by layer and feature."""
    place.mkdir(exist_ok=True)
    path = place / "labels.json"
    said = {"format": "tracer-labels", "version": 1, "labels": {"0/311": "a city", "1/2": "x"}}
    whole = json.dumps(said).encode()

    def attack() -> None:
        if rng.random() < 0.4:
            path.write_bytes(mutated_bytes(rng, whole))
        else:
            path.write_text(json.dumps(mutated_json(rng, said)), encoding="utf-8")
        for (layer, feature), name in read_labels(place).items():
            require(layer >= 0 and feature >= 0 and isinstance(name, str), "a label that is none")

    while True:
        yield attack
