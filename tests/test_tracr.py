"""Models without norms: those that Tracr compiled, whose circuits are known, and random ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracer
from benchmarks.ground_truth import Trained, cases, merged, with_neurons
from benchmarks.tracr.truth import OUTPUT, TOKENS, Program, programs
from docs.fill_ground_truth import tables
from docs.fill_readme import ROOT
from replacement_models import CrossLayerTranscoder, DenseDecoder, ModelError, ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from replacement_models.tracr_model import TracrConfig, TracrForCausalLM
from tests.local_forward import LocalForward
from tests.random_models import PROMPT, VOCABULARY, WIDTH, randomised, transcoder
from tracer import Intervention

PROGRAMS = {program.name: program for program in programs()}


def without_norms(**changes: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3}
    config = TracrConfig(**{**sizes, "num_attention_heads": 3, "head_dim": 5, **changes})
    return randomised(TracrForCausalLM(config), torch.float64)


@pytest.mark.parametrize("changes", [{}, {"num_attention_heads": 1, "head_dim": 16}])
@pytest.mark.parametrize("skip", [True, False])
def test_a_model_without_norms_is_reproduced_and_conserved(changes: dict[str, int], skip: bool):
    model = ReplacementModel.from_huggingface(without_norms(**changes), None, transcoder(skip=skip))
    recording = model.record(PROMPT)
    pre_activations, logits = LocalForward(model, recording)()
    torch.testing.assert_close(logits, recording.logits, rtol=0, atol=1e-12)
    features = recording.features
    own = torch.stack(
        [
            pre_activations[layer][position, feature]
            for layer, position, feature in zip(
                features.layer, features.position, features.feature, strict=True
            )
        ]
    )
    torch.testing.assert_close(own, features.pre_activation, rtol=0, atol=1e-12)
    graph = tracer.trace(model, PROMPT)
    assert graph.metadata["conservation"]["relative"] < 1e-9


def test_its_edges_are_what_interventions_do():
    host = without_norms()
    model = ReplacementModel.from_huggingface(host, None, transcoder(skip=True))
    model = ReplacementModel(model.host, neurons(model.host))
    graph = tracer.trace(model, PROMPT)
    rows = graph.nodes.to_pylist()
    features = [at for at, row in enumerate(rows) if row["kind"] == "feature" and row["layer"] < 2]
    effect = graph.effect.toarray()
    source = features[int(np.argmax(np.abs(effect[:, features]).sum(0)))]
    row = rows[source]
    off = Intervention(
        layer=row["layer"], position=row["position"], feature=row["feature"], value=0.0
    )
    changed = tracer.intervene(model, PROMPT, [off], mode="direct")
    moved = changed.base.pre_activations - changed.pre_activations
    for at, target in enumerate(rows):
        if target["kind"] == "feature" and target["layer"] > row["layer"]:
            expected = moved[target["layer"], target["position"], target["feature"]]
            assert effect[at, source] == pytest.approx(float(expected), abs=1e-9)


def test_a_norm_that_the_host_does_not_know_breaks_the_proof():
    model = without_norms()
    model.layers[1].attention.register_forward_pre_hook(
        lambda _, inputs: (torch.nn.functional.layer_norm(inputs[0], (WIDTH,)),)
    )
    found = ReplacementModel.from_huggingface(model, None, transcoder())
    with pytest.raises(ModelError, match="layer 1 computes something else"):
        found.record(PROMPT)


def test_it_is_saved_and_loaded_as_any_other(tmp_path: Path):
    model = without_norms()
    model.save_pretrained(tmp_path)
    found = ReplacementModel.load(tmp_path, "neurons", dtype="float64")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(found.record(PROMPT).logits, expected)
    assert found.host.family == "tracr"
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 7}))
    with pytest.raises(ModelError, match=r"mlp\.fc1"):
        ReplacementModel.load(tmp_path, "neurons")


def test_it_generates_nothing():
    model = ReplacementModel.from_huggingface(without_norms(), None, transcoder())
    with pytest.raises(ModelError, match="generates nothing"):
        tracer.generate(model, [PROMPT], max_new_tokens=1)


def test_at_least_twelve_programs_with_mlps_and_attention():
    assert len(PROGRAMS) >= 12
    for program in PROGRAMS.values():
        layers = program.known["layers"]
        assert any(part["heads"] for part in layers)
        assert any(part["neurons"] for part in layers)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_compiled_model_says_what_its_program_does(name: str):
    program = PROGRAMS[name]
    model = ReplacementModel.load(program.folder, "neurons", dtype="float64")
    first, outputs = len(program.known["tokens"]), program.known["outputs"]
    for prompt in program.prompts:
        said = model.record(prompt["tokens"]).logits[1:, first:]
        for logits, value in zip(said, prompt["values"][program.known["output"]], strict=True):
            if len(outputs) == 1:
                assert float(logits[0]) == pytest.approx(float(value), abs=1e-3)
            elif value is not None:
                assert outputs[int(logits.argmax())][1] == value


def test_the_truth_of_a_prompt_worked_out_by_hand():
    program: Program = PROGRAMS["map_shift_map"]  # next letter, of the one before, next again
    [prompt] = [one for one in program.prompts if len(one["tokens"]) == 4][:1]
    circuit = program.circuit(prompt, 3)
    [first] = [name for name in program.known["variables"] if name.startswith("next_")]
    last = program.known["output"]
    assert circuit.edges == {
        ((TOKENS, 2), (first, 2)),
        ((first, 2), (last, 3)),
        ((last, 3), (OUTPUT, 3)),
    }
    assert (program.layer_of(first), program.layer_of(last)) == (0, 1)


@pytest.mark.parametrize("name", ["pattern_ab", "three_maps"])
def test_neurons_find_the_circuit_and_chance_does_not(name: str):
    found = with_neurons(PROGRAMS[name])
    shares = ("node_precision", "node_recall", "edge_precision", "edge_recall", "edge_weight")
    assert found["kept"] == pytest.approx({**dict.fromkeys(shares, 1.0), "skips": 0.0})
    assert found["random"]["edge_precision"] < 0.2
    assert found["law"] < 1e-9


def test_features_that_write_for_later_layers_are_seen_to_skip():
    program = PROGRAMS["three_maps"]
    layered = ReplacementModel.load(program.folder, "neurons", dtype="float64")
    layers = []
    for at, layer in enumerate(layered.transcoder.layers):
        own = layer.decoder.rows(torch.arange(len(layer.W_enc)))
        written = torch.zeros(len(own), 3 - at, own.shape[-1], dtype=own.dtype)
        written[:, 0] = own[:, 0]
        if at == 0:  # what the next layer's neuron of the same number writes, written early
            written[:, 1] = layered.transcoder.layers[1].decoder.rows(torch.arange(len(own)))[:, 0]
        layers.append(replace(layer, decoder=DenseDecoder(written)))
    crossing = ReplacementModel(layered.host, CrossLayerTranscoder(layers))
    case = cases(program, layered)[-1]
    early = {}
    for name, model in (("layered", layered), ("crossing", crossing)):
        found = Trained(program, model, 0.0)
        graph = replace(case, model=model).graph(skip_positions=1)
        early[name], whole = found.early(graph)
        assert whole > 0
        if name == "layered":
            assert set(merged(graph, found.named(graph))) >= case.true.edges
    assert early["layered"] == 0
    assert early["crossing"] > 0


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "ground-truth.md").read_text("utf-8")
    for shown in tables().values():
        assert shown in page
