"""Graphs and interventions against the reference implementation's, on cases nobody here wrote."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tracer
from graphs import AttributionGraph
from replacement_models import FrozenLayer, Recording, ReplacementModel
from replacement_models.recording import encode, read_input
from tracer import Intervention

GOLDEN = Path(__file__).parent / "data" / "golden"
CASES = [
    "llama_gqa_plt",
    "llama_gqa_clt",
    "llama_topn_clt",
    "llama_skip_topk_plt",
    "gpt2_plt",
    "gemma2_plt",
    "qwen3_plt",
]
every_case = pytest.mark.parametrize("name", CASES)


@dataclass(frozen=True)
class Case:
    """One folder of the golden files."""

    name: str

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((GOLDEN / self.name / "meta.json").read_text())

    def tensors(self, file: str) -> dict[str, torch.Tensor]:
        return load_file(GOLDEN / self.name / f"{file}.safetensors")

    def model(self, dtype: str) -> ReplacementModel:
        folder = GOLDEN / self.name
        return ReplacementModel.load(folder / "model", folder / "transcoders", dtype=dtype)

    def trace(self, model: ReplacementModel) -> AttributionGraph:
        options = self.meta["attribute_kwargs"]
        return tracer.trace(
            model,
            self.meta["tokens"],
            max_features=options["max_feature_nodes"],
            rank_every=options["batch_size"] * options["update_interval"],
            max_logits=options["max_n_logits"],
            logit_mass=options["desired_logit_prob"],
        )

    def ids(self) -> list[str]:
        """Our ids in the reference's node order; it also has error nodes at position 0."""
        meta, graph = self.meta, self.tensors("graph")
        layers, positions = meta["n_layers"], meta["n_pos"]
        chosen = graph["active_features"][graph["selected_features"]].tolist()
        return [
            *(f"{layer}_{feature}_{position}" for layer, position, feature in chosen),
            *(f"{layer}_-1_{p}" for layer in range(layers) for p in range(positions)),
            *(f"E_{token}_{p}" for p, token in enumerate(meta["tokens"])),
            *(f"{layers + 1}_{token}_{positions - 1}" for _, token in meta["logit_targets"]),
        ]


def in_reference_order(graph: AttributionGraph, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Dense effects in the reference's order, and which of its nodes we have."""
    row = {name: index for index, name in enumerate(graph.nodes["id"].to_pylist())}
    assert set(row) <= set(ids)
    at = np.array([row.get(name, -1) for name in ids])
    dense = np.zeros((len(ids), len(ids)))
    have = at >= 0
    dense[np.ix_(have, have)] = graph.effect.toarray()[np.ix_(at[have], at[have])]
    return dense, have


def deviation(case: Case, graph: AttributionGraph) -> float:
    """Largest difference of effects, relative to the largest effect; nodes must be the same."""
    reference = case.tensors("graph")["adjacency_matrix"].numpy()
    dense, have = in_reference_order(graph, case.ids())
    missing = [name for name, there in zip(case.ids(), have, strict=True) if not there]
    assert all(name.endswith("_-1_0") for name in missing), missing
    return float(np.abs(dense - reference).max() / np.abs(reference).max())


@every_case
def test_effects_in_float32_through_the_hugging_face_model(name: str):
    case = Case(name)
    graph = case.trace(case.model("float32"))
    assert deviation(case, graph) < 2e-5
    assert graph.metadata["conservation"]["relative"] < 2e-5


@every_case
def test_logits_and_activations_are_the_references(name: str):
    case = Case(name)
    recording = case.model("float64").record(case.meta["tokens"])
    reference = case.tensors("graph")
    logits = case.tensors("frozen")["logits"]
    torch.testing.assert_close(recording.logits, logits, rtol=0, atol=2e-5)
    counted = recording.features[(recording.features.position > 0).nonzero()[:, 0]]
    found = torch.stack([counted.layer, counted.position, counted.feature], dim=1)
    assert torch.equal(found, reference["active_features"])
    torch.testing.assert_close(
        counted.activation, reference["activation_values"], rtol=2e-5, atol=2e-5
    )


@every_case
def test_effects_scores_and_masks_from_the_frozen_tensors_in_float64(name: str):
    case = Case(name)
    model = with_reference_weights(case)
    recording = from_frozen(case, model)
    model.__dict__["record"] = lambda prompt, **_: recording
    graph = case.trace(model)
    assert deviation(case, graph) < 1e-9
    meta, reference = case.meta, case.tensors("graph")
    assert graph.scores.among_nodes.replacement == pytest.approx(
        meta["replacement_score"], abs=1e-9
    )
    assert graph.scores.among_nodes.completeness == pytest.approx(
        meta["completeness_score"], abs=1e-9
    )
    _, have = in_reference_order(graph, case.ids())
    row = {node: index for index, node in enumerate(graph.nodes["id"].to_pylist())}
    influence = np.array(graph.nodes["influence"].to_pylist())
    ours = np.array([influence[row[i]] if i in row else 0.0 for i in case.ids()])
    np.testing.assert_allclose(ours, reference["node_influence"].numpy(), atol=1e-9)
    for nodes, edges, label in ((0.8, 0.98, "80_98"), (0.5, 0.8, "50_80")):
        small = graph.prune(nodes, edges)
        dense, kept = in_reference_order(small, case.ids())
        expected = reference[f"prune{label}_nodes"].numpy()
        assert np.array_equal(kept, expected & have)
        assert np.array_equal(dense != 0, reference[f"prune{label}_edges"].numpy())


@every_case
@pytest.mark.parametrize("mode", ["direct", "free"])
def test_interventions_are_the_references(name: str, mode: str):
    case = Case(name)
    wanted = next(one for one in case.meta["interventions"] if one["name"] == mode)
    interventions = [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for layer, position, feature, value in wanted["interventions"]
    ]
    change = tracer.intervene(case.model("float64"), case.meta["tokens"], interventions, mode)
    found = change.pre_activations if mode == "direct" else change.activations
    found[:, 0] = 0
    reference = case.tensors("interventions")
    torch.testing.assert_close(found, reference[f"{mode}.activations"], rtol=0, atol=2e-5)
    torch.testing.assert_close(change.logits, reference[f"{mode}.logits"], rtol=0, atol=2e-5)


def with_reference_weights(case: Case) -> ReplacementModel:
    """The Hugging Face model in float64 with the reference's own float64 weights."""
    model = case.model("float64")
    weights = case.tensors("tl_model")
    parameters = dict(model.host.model.named_parameters())
    family, layers = case.meta["family"], case.meta["n_layers"]
    with torch.no_grad():
        if family == "gpt2":
            _copy_gpt2(parameters, weights, layers)
        else:
            _copy_rotary(parameters, weights, layers, gemma=family == "gemma2")
    return ReplacementModel.from_huggingface(model.host.model, model.tokenizer, model.transcoder)


LLAMA_NORMS = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
GEMMA_NORMS = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def _copy_rotary(
    parameters: dict[str, Any], weights: dict[str, Any], layers: int, *, gemma: bool
) -> None:
    """The reference scales Gemma's embeddings as it loads them, and stores 1 + w for its norms."""
    stored_less = 1 if gemma else 0
    embedding = parameters["model.embed_tokens.weight"]
    embedding.copy_(weights["embed.W_E"] / (embedding.shape[1] ** 0.5 if gemma else 1))
    parameters["lm_head.weight"].copy_(weights["unembed.W_U"].T)
    parameters["model.norm.weight"].copy_(weights["ln_final.w"] - stored_less)
    for layer in range(layers):
        theirs, ours = f"blocks.{layer}.", f"model.layers.{layer}."
        for name, own in (GEMMA_NORMS if gemma else LLAMA_NORMS).items():
            parameters[f"{ours}{own}.weight"].copy_(weights[f"{theirs}{name}.w"] - stored_less)
        value = weights[theirs + "attn._W_V"].transpose(1, 2).flatten(0, 1)
        parameters[ours + "self_attn.v_proj.weight"].copy_(value)
        output = weights[theirs + "attn.W_O"].flatten(0, 1).T
        parameters[ours + "self_attn.o_proj.weight"].copy_(output)


def _copy_gpt2(parameters: dict[str, Any], weights: dict[str, Any], layers: int) -> None:
    parameters["transformer.wte.weight"].copy_(weights["embed.W_E"])
    parameters["transformer.wpe.weight"].copy_(weights["pos_embed.W_pos"])
    parameters["lm_head.weight"].copy_(weights["unembed.W_U"].T)
    for name in ("w", "b"):
        full = {"w": "weight", "b": "bias"}[name]
        parameters[f"transformer.ln_f.{full}"].copy_(weights[f"ln_final.{name}"])
        for layer in range(layers):
            for ours, theirs in (("ln_1", "ln1"), ("ln_2", "ln2")):
                parameters[f"transformer.h.{layer}.{ours}.{full}"].copy_(
                    weights[f"blocks.{layer}.{theirs}.{name}"]
                )
    for layer in range(layers):
        ours, theirs = f"transformer.h.{layer}.attn.", f"blocks.{layer}.attn."
        width = parameters[ours + "c_proj.weight"].shape[0]
        value = weights[theirs + "W_V"].permute(1, 0, 2).flatten(1)
        parameters[ours + "c_attn.weight"][:, 2 * width :].copy_(value)
        parameters[ours + "c_attn.bias"][2 * width :].copy_(weights[theirs + "b_V"].flatten())
        parameters[ours + "c_proj.weight"].copy_(weights[theirs + "W_O"].flatten(0, 1))
        parameters[ours + "c_proj.bias"].copy_(weights[theirs + "b_O"])


def from_frozen(case: Case, model: ReplacementModel) -> Recording:
    """A recording made of the reference's frozen tensors instead of a forward pass."""
    frozen, meta = case.tensors("frozen"), case.meta
    layers, residual_mid, outputs = [], [], []
    for layer in range(meta["n_layers"]):
        at = f"blocks.{layer}."
        layers.append(
            FrozenLayer(
                pattern=frozen[at + "attn.hook_pattern"],
                attention_scale=frozen[at + "ln1.hook_scale"],
                mlp_scale=frozen[at + "ln2.hook_scale"],
                attention_post_scale=frozen.get(at + "ln1_post.hook_scale"),
                mlp_post_scale=frozen.get(at + "ln2_post.hook_scale"),
            )
        )
        residual_mid.append(frozen[at + "hook_resid_mid"])
        outputs.append(frozen[at + "hook_mlp_out"])
    inputs = []
    for block, layer, residual in zip(model.host.blocks, layers, residual_mid, strict=True):
        normed = block.mlp_norm.frozen(residual, layer.mlp_scale)
        inputs.append(read_input(block, model.transcoder.read, residual, normed))
    before = [frozen[f"blocks.{layer}.hook_resid_pre"] for layer in range(meta["n_layers"])]
    recorded = model.record(meta["tokens"])
    logits, cap = frozen["logits"], model.host.logit_cap
    return replace(
        recorded,
        token_vectors=frozen["token_vectors"],
        position_vectors=frozen.get("hook_pos_embed"),
        layers=layers,
        final_scale=frozen["ln_final.hook_scale"],
        residuals=[*before, residual_mid[-1] + outputs[-1]],
        inputs=inputs,
        outputs=outputs,
        logits_before_cap=logits if cap is None else cap * torch.atanh(logits / cap),
        logits=logits,
        features=encode(model.transcoder, inputs),
    )
