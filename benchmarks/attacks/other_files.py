"""Graphs of other tools, training runs, lenses, directions, feature stores."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.attacks.graph_files import sample, use
from benchmarks.attacks.model_files import restored, spoil_folder, spoil_tensors
from benchmarks.attacks.trial import Attack, mutated_bytes, mutated_json, require
from graphs import AttributionGraph
from graphs.exchange.attribution_json import OWN, About
from replacement_models.replacement import EMBEDDED
from replacement_models.sites import Site
from replacement_models.training import checkpoint
from replacement_models.training.config import TrainConfig
from replacement_models.training.config_file import read_config
from tests.training_runs import settings
from tracer.features.store import FeatureStore
from tracer.lenses.affine import AffineLens
from tracer.lenses.directions import Directions


def pt_graph(rng: np.random.Generator) -> dict[str, Any]:
    """circuit-tracer's graph of two layers, a part of it odd."""
    matrix = torch.zeros(10, 10)
    matrix[0, 6], matrix[1, 0], matrix[8, 1], matrix[9, 1] = 1, 2, 4, -5
    said: dict[str, Any] = {
        "input_string": "a b",
        "adjacency_matrix": matrix,
        "cfg": {"n_layers": 2, "tokenizer_name": "some/model"},
        "active_features": torch.tensor([[0, 1, 7], [0, 1, 8], [1, 1, 9]]),
        "logit_targets": torch.tensor([77, 78]),
        "logit_probabilities": torch.tensor([0.7, 0.2]),
        "vocab_size": 100,
        "input_tokens": torch.tensor([5, 6]),
        "selected_features": torch.tensor([0, 2]),
        "activation_values": torch.tensor([1.5, 9.0, 2.5]),
        "scan": "org/repo",
    }
    name = list(said)[int(rng.integers(len(said)))]
    pool: tuple[Any, ...] = (
        *(None, [], {}, "x", -1, 2**40, torch.zeros(0), torch.zeros(2, 2), torch.tensor([-1, 1])),
        *(torch.tensor([float("nan")] * 3), torch.full((10, 10), float("inf"))),
        torch.tensor([[9, 9, 9], [0, 0, 0], [2**40, 1, 1]]),
    )
    return said | {name: pool[int(rng.integers(len(pool)))]}


def saved(value: Any) -> bytes:
    """What torch writes of a value."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def spoiled_json(rng: np.random.Generator, content: bytes) -> bytes:
    """The JSON of a graph with something changed; half of them without what is ours in it."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, content)
    if rng.random() < 0.02:
        return b'{"metadata":' + b"[" * 100_000
    said = json.loads(content)
    if rng.random() < 0.5:
        said.pop(OWN, None)
        said["metadata"].pop(OWN, None)
    for _ in range(int(rng.integers(1, 3))):
        said = mutated_json(rng, said)
    return json.dumps(said).encode()


def spoiled_imports(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """JSON of the web tools and .pt files with something changed: refused, or usable graphs."""
    graph = sample().prune(0.9, 0.9)
    made = [
        graph.to_attribution_json(profile, About("a-name", source_set="a-set"))
        for profile in ("neuronpedia", "circuit-tracer")
    ]
    plain = saved(pt_graph(np.random.default_rng(0)) | {"logit_targets": torch.tensor([77, 78])})

    def json_attack() -> None:
        content = spoiled_json(rng, made[int(rng.integers(len(made)))])
        use(AttributionGraph.from_attribution_json(content)[0])

    def pt_attack() -> None:
        content = mutated_bytes(rng, plain) if rng.random() < 0.5 else saved(pt_graph(rng))
        use(AttributionGraph.from_circuit_tracer_pt(content)[0])

    def attack() -> None:
        pt_attack() if rng.random() < 0.4 else json_attack()

    while True:
        yield attack


def spoiled_configurations(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """A run's YAML with fields changed: refused, or fields of the types they should have."""
    good = settings(place / "run")
    path = place / "run.yaml"
    text = yaml.safe_dump(good)

    def attack() -> None:
        kind = rng.random()
        if kind < 0.25:
            path.write_bytes(mutated_bytes(rng, text.encode()))
        elif kind < 0.28:
            path.write_text("[" * 5000 if kind < 0.265 else "a: &a [*a]\n")
        else:
            said = good
            for _ in range(int(rng.integers(1, 3))):
                said = mutated_json(rng, said)
            path.write_text(
                json.dumps(said), "utf-8", "backslashreplace"
            )  # as JSON: yaml's writer recurses
        found = read_config(path)
        require(isinstance(found, TrainConfig), "no configuration")
        repr(found)

    while True:
        yield attack


def spoiled_checkpoints(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Checkpoints with files changed: refused, or the tensors that were saved."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(4, 3, generator=generator),
        "b": torch.randn(5, generator=generator),
    }
    checkpoint.save(place / "whole", 3, tensors, {"step": 3, "tokens": 10})

    def attack() -> None:
        folder = restored(place / "whole", place / "copy")
        spoil_folder(rng, folder)
        path = checkpoint.newest(folder)
        if path is None:
            return
        checkpoint.read_state(path)
        found = {name: torch.zeros_like(one) for name, one in tensors.items()}
        checkpoint.load(path, found)
        for one in found.values():
            require(one.isfinite().all(), "numbers that are none were accepted")

    while True:
        yield attack


def spoiled_lenses(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Files of lenses and directions with something changed: refused, or finite tensors."""
    whole = place / "whole"
    whole.mkdir()
    AffineLens("tuned", torch.zeros(2, 3, 3), torch.zeros(2, 3), {"model": "m"}).save(
        whole / "lens.safetensors"
    )
    site = Site.parse("resid_pre.1")
    Directions(torch.ones(2, 3), ("a", "b"), site, {"model": "m"}).save(
        whole / "direction.safetensors"
    )

    def said(path: Path) -> None:
        """Change what the header says."""
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(path, "pt") as file:
            [(name, text)] = (file.metadata() or {}).items()
        save_file(load_file(path), path, {name: json.dumps(mutated_json(rng, json.loads(text)))})

    def attack() -> None:
        folder = restored(whole, place / "copy")
        path = folder / str(rng.choice(["lens.safetensors", "direction.safetensors"]))
        kind = rng.random()
        if kind < 0.4:
            path.write_bytes(mutated_bytes(rng, path.read_bytes()))
        elif kind < 0.7:
            said(path)
        else:
            spoil_tensors(rng, path)
        if path.stem == "lens":
            lens = AffineLens.load(path)
            require(lens.maps.isfinite().all() and lens.offsets.isfinite().all(), "no numbers")
            repr(lens)
        else:
            found = Directions.load(path)
            require(found.vectors.isfinite().all(), "no numbers")
            found.targets()
            repr(found)

    while True:
        yield attack


def spoiled_stores(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """A feature store with a file changed: refused, or features can be read and searched."""
    whole = EMBEDDED / "plt.features"

    def attack() -> None:
        folder = restored(whole, place / "store")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = files[int(rng.integers(len(files)))]
        if path.suffix == ".json" and rng.random() < 0.7:
            path.write_text(json.dumps(mutated_json(rng, json.loads(path.read_text()))))
        elif rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(mutated_bytes(rng, path.read_bytes()))
        store = FeatureStore.load(folder)
        layer = int(rng.integers(4))
        feature = store[layer, int(rng.integers(20))]
        require(isinstance(feature.label, str | None), "a label that is no text")
        if rng.random() < 0.1:
            store.search("capital", limit=3)

    while True:
        yield attack
