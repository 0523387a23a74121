"""Graphs and interventions against circuit-tracer's beyond the golden seven: families and targets.

The files are what `benchmarks/peer_cases.py` had circuit-tracer write.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tracer
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from tracer import Direction, Intervention

FOLDER = Path(__file__).parent / "data" / "peer"
CASES = ("gpt2_clt", "gemma2_clt", "gemma3_skip_plt", "llama_skip_clt", "llama_targets_plt")
TOLERANCE = 2e-5
every_case = pytest.mark.parametrize("name", CASES)


def asked(name: str) -> dict[str, Any]:
    """What circuit-tracer was asked."""
    found: dict[str, Any] = json.loads((FOLDER / name / "meta.json").read_text())
    return found


def answered(name: str) -> dict[str, torch.Tensor]:
    """What circuit-tracer said."""
    return load_file(FOLDER / name / "peer.safetensors")


def loaded(name: str, dtype: str = "float64") -> ReplacementModel:
    return ReplacementModel.load(
        FOLDER / name / "model", FOLDER / name / "transcoders", dtype=dtype
    )


def traced(name: str, model: ReplacementModel) -> AttributionGraph:
    weights, targets = asked(name)["own_targets"], None
    if weights is not None:
        pairs = zip(answered(name)["targets"], weights, strict=True)
        targets = [Direction(vector, str(i), weight) for i, (vector, weight) in enumerate(pairs)]
    return tracer.trace(model, asked(name)["tokens"], targets=targets)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_effects_are_the_peers(name: str, dtype: str):
    meta, peer = asked(name), answered(name)
    graph = traced(name, loaded(name, dtype))
    layers, last = len(loaded(name).host.blocks), len(meta["tokens"]) - 1
    ids = [
        *(
            f"{layer}_{feature}_{position}"
            for layer, position, feature in peer["features"].tolist()
        ),
        *(f"{layer}_-1_{position}" for layer in range(layers) for position in range(last + 1)),
        *(f"E_{token}_{position}" for position, token in enumerate(meta["tokens"])),
        *(f"{layers + 1}_{token}_{last}" for token in meta["logits"]),
    ]
    row = {node: index for index, node in enumerate(graph.nodes["id"].to_pylist())}
    ours = [index for index, node in enumerate(ids) if node in row]
    assert set(row) <= set(ids)
    assert [node for node in ids if node not in row] == [f"{layer}_-1_0" for layer in range(layers)]
    at = [row[ids[index]] for index in ours]
    effect = torch.from_numpy(graph.effect.toarray()[at][:, at]).float()
    expected = peer["adjacency"][ours][:, ours]
    torch.testing.assert_close(
        effect, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
    )
    weights = [
        graph.nodes["probability"][row[node]].as_py() for node in ids[-len(meta["logits"]) :]
    ]
    torch.testing.assert_close(
        torch.tensor(weights, dtype=torch.float64), peer["probabilities"], rtol=0, atol=TOLERANCE
    )


@every_case
@pytest.mark.parametrize("mode", ["direct", "free"])
def test_interventions_are_the_peers(name: str, mode: str):
    changes = [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for layer, position, feature, value in asked(name)["interventions"]
    ]
    change = tracer.intervene(loaded(name), asked(name)["tokens"], changes, mode)
    found = change.pre_activations if mode == "direct" else change.activations
    peer = answered(name)
    for got, expected in (
        (found[:, 1:], peer[f"{mode}.activations"][:, 1:]),
        (change.logits, peer[f"{mode}.logits"]),
    ):
        limit = TOLERANCE * float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=limit)
