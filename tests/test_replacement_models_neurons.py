"""A model's own neurons as features: nothing is left over, and every law holds."""

from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import nn

import tracer
from graphs import AttributionGraph
from replacement_models import ModelError, ReplacementModel, save_transcoder
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import host_of
from tests.local_forward import LocalForward
from tests.random_models import PROMPT, language_model
from tests.test_replacement_models_hosts import BY_THEMSELVES, SUPPORTED, generic
from tracer import Intervention
from tracer.commands import main

GOLDEN = Path(__file__).parent / "data" / "golden"
PLAIN = ("gpt2", "gpt_neox")
GATED = ("llama_multi_head", "qwen3", "gemma2", "phi3", "olmo2")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
UNKNOWN_ROUTERS = ("ernie4_5_moe", "glm4_moe", "hunyuan_v1_moe", "phimoe")
"""Types whose blocks make shares in a way of their own up to transformers 4."""
EXACT = PLAIN
"""Families whose norms honour float64 inside transformers."""
every_family = pytest.mark.parametrize("family", [*PLAIN, *GATED, *EXPERTS])


def bare(family: str) -> ReplacementModel:
    model = language_model(family)
    return ReplacementModel.from_huggingface(model, None, neurons(host_of(model)))


@every_family
def test_nothing_is_left_over_as_error(family: str):
    model = bare(family)
    recording = model.record(PROMPT)
    active = [model.transcoder.encode(layer, x)[1] for layer, x in enumerate(recording.inputs)]
    outputs = model.transcoder.decode(active, recording.inputs)
    for got, expected in zip(outputs, recording.outputs, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-12


@every_family
def test_rows_sum_to_what_neurons_read_and_errors_carry_nothing(family: str):
    graph = tracer.trace(bare(family), PROMPT, max_features=40)
    assert graph.metadata["conservation"]["relative"] < (1e-9 if family in EXACT else 2e-5)
    kinds = graph.nodes["kind"].to_pylist()
    errors = [row for row, kind in enumerate(kinds) if kind == "error"]
    assert errors
    assert abs(graph.effect[:, errors]).max() < 1e-11 * abs(graph.effect).max()
    full = tracer.trace(bare(family), PROMPT)
    assert full.scores.replacement == pytest.approx(1, abs=1e-9)
    assert full.scores.completeness == pytest.approx(1, abs=1e-9)


@every_family
def test_the_local_replacement_model_is_the_model(family: str):
    model = bare(family)
    with torch.no_grad():
        recording = model.record(PROMPT)
        hidden, logits = LocalForward(model, recording)()
    scale = recording.logits_before_cap.abs().max()
    limit = 1e-9 if family in EXACT else 2e-5
    assert float((logits - recording.logits_before_cap).abs().max() / scale) < limit
    for layer, x in enumerate(recording.inputs):
        expected = model.transcoder.encode(layer, x)[0]
        torch.testing.assert_close(hidden[layer], expected, rtol=limit, atol=limit)


@every_family
def test_an_edge_is_what_a_direct_intervention_changes(family: str):
    model = bare(family)
    graph = tracer.trace(model, PROMPT, max_features=30)
    nodes, effect = graph.nodes.to_pylist(), graph.effect.toarray()
    features = [row for row, node in enumerate(nodes) if node["kind"] == "feature"]
    for source in features[::10]:
        node = nodes[source]
        doubled = Intervention(
            layer=node["layer"], position=node["position"], feature=node["feature"], scale=2.0
        )
        change = tracer.intervene(model, PROMPT, [doubled], mode="direct")
        moved = change.pre_activations - change.base.pre_activations
        for target in features:
            at = nodes[target]
            expected = float(moved[at["layer"], at["position"], at["feature"]])
            assert effect[target, source] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("family", GATED)
def test_a_gated_neuron_is_linear_in_what_it_reads_once_its_gate_is_held(family: str):
    model = bare(family)
    recording = model.record(PROMPT)
    for layer, x in enumerate(recording.inputs):
        mlp = model.host.blocks[layer].mlp
        hidden, active = model.transcoder.encode(layer, x)
        if hasattr(mlp, "up_proj"):
            function = mlp.act_fn
            torch.testing.assert_close(hidden, mlp.up_proj(x), rtol=0, atol=1e-12)
            expected = function(mlp.gate_proj(x)) * mlp.up_proj(x)
        else:
            gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
            expected = mlp.activation_fn(gate) * up
        torch.testing.assert_close(active, expected, rtol=0, atol=1e-12)
        tripled = model.transcoder.activate(layer, 3 * hidden, x)
        torch.testing.assert_close(tripled, 3 * active, rtol=0, atol=1e-12)


def test_a_plain_neurons_activation_is_its_value_after_the_nonlinearity():
    model = bare("gpt2")
    recording = model.record(PROMPT)
    mlp, x = model.host.blocks[1].mlp, recording.inputs[1]
    hidden, active = model.transcoder.encode(1, x)
    torch.testing.assert_close(hidden, mlp.c_fc(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(active, mlp.act(mlp.c_fc(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2_plt", "llama_gqa_plt"])
def test_any_supported_model_is_traced_without_a_dictionary(name: str):
    model = ReplacementModel.load(GOLDEN / name / "model", "neurons")
    assert (model.transcoder_name, model.transcoder_hash) == ("neurons", "")
    graph = tracer.trace(model, [1, 5, 9, 4], max_features=20)
    assert graph.metadata["conservation"]["relative"] < 2e-5
    assert len(graph.nodes.filter(graph.nodes["kind"].to_numpy() == "feature")) == 20


def test_neurons_share_the_models_weights():
    model = bare("llama_multi_head")
    mlp = model.host.blocks[0].mlp
    assert model.transcoder.layers[0].W_enc.data_ptr() == mlp.up_proj.weight.data_ptr()


@pytest.mark.parametrize("family", EXPERTS)
def test_an_experts_neurons_are_silent_where_the_token_is_not_sent(family: str):
    model = bare(family)
    recording = model.record(PROMPT)
    mlp, x = model.host.blocks[0].mlp, recording.inputs[0]
    router = mlp.router if family == "gpt_oss" else mlp.gate
    logits = x @ router.weight.T + (router.bias if family == "gpt_oss" else 0)
    hidden, active = model.transcoder.encode(0, x)
    neurons_only = active[..., : len(model.transcoder.layers[0].gate.weight)]
    by_expert = neurons_only.unflatten(-1, (4, -1))
    for token, chosen in enumerate(logits.topk(2).indices.tolist()):
        assert sorted(chosen) == by_expert[token].abs().sum(1).nonzero()[:, 0].tolist()
    linear = (hidden - 1).abs() < 7  # GPT-OSS clips beyond; of the others every neuron is linear
    assert linear.double().mean() > 0.9
    halved = model.transcoder.activate(0, hidden / 2, x)
    torch.testing.assert_close(halved[linear], active[linear] / 2, rtol=0, atol=1e-12)


def test_what_ends_an_expert_is_a_feature_that_reads_nothing_and_is_as_active_as_its_share():
    model = bare("gpt_oss")
    recording = model.record(PROMPT)
    mlp, x = model.host.blocks[1].mlp, recording.inputs[1]
    hidden, active = model.transcoder.encode(1, x)
    weights = model.transcoder.layers[1]
    assert not weights.W_enc[-4:].any()
    assert torch.equal(hidden[:, -4:], torch.ones(len(PROMPT), 4, dtype=x.dtype))
    logits, chosen = (x @ mlp.router.weight.T + mlp.router.bias).topk(2)
    expected = torch.zeros(len(PROMPT), 4, dtype=x.dtype).scatter(1, chosen, logits.softmax(1))
    torch.testing.assert_close(active[:, -4:], expected, rtol=0, atol=1e-12)
    rows = weights.decoder.rows(torch.arange(len(weights.W_enc) - 4, len(weights.W_enc)))
    assert torch.equal(rows[:, 0], mlp.experts.down_proj_bias)


def test_experts_that_clip_are_clipped_in_the_same_place():
    model = language_model("gpt_oss")
    for layer in model.model.layers:
        layer.mlp.experts.limit = 0.4
    clipped = ReplacementModel.from_huggingface(model, None, neurons(host_of(model)))
    recording = clipped.record(PROMPT)
    hidden = [clipped.transcoder.encode(layer, x) for layer, x in enumerate(recording.inputs)]
    assert any(((h < 0.6) & (a != 0)).any() and ((h > 1.4) & (a != 0)).any() for h, a in hidden)
    outputs = clipped.transcoder.decode([active for _, active in hidden], recording.inputs)
    for got, expected in zip(outputs, recording.outputs, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize("model_type", sorted(set(SUPPORTED) - BY_THEMSELVES))
def test_every_supported_decoder_has_neurons(model_type: str):
    host = host_of(generic(model_type))
    if transformers.__version__ < "5" and model_type in UNKNOWN_ROUTERS:
        with pytest.raises(ModelError, match=r"^neurons: .*(not known|not supported)"):
            neurons(host)
        return
    model = ReplacementModel(host, neurons(host))
    recording = model.record(PROMPT)
    active = [model.transcoder.encode(layer, x)[1] for layer, x in enumerate(recording.inputs)]
    outputs = model.transcoder.decode(active, recording.inputs)
    for got, expected in zip(outputs, recording.outputs, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_an_mlp_that_does_more_than_its_weights_say_is_refused():
    model = language_model("gpt2")
    mlp = model.transformer.h[1].mlp
    mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ModelError, match="GPT2MLP of layer 1 is not what its weights say"):
        neurons(host_of(model))
    assert isinstance(mlp, nn.Module)


def test_neurons_are_no_file(tmp_path: Path):
    with pytest.raises(ModelError, match="load them with transcoders 'neurons'"):
        save_transcoder(bare("gpt2").transcoder, tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_the_command_line_takes_neurons_too(tmp_path: Path):
    model, graph = str(GOLDEN / "gpt2_plt" / "model"), tmp_path / "x.graph"
    options = ["--model", model, "--transcoders", "neurons", "--max-features", "5"]
    result = CliRunner().invoke(main, ["trace", "--tokens", "1,5,9", *options, "-o", str(graph)])
    assert result.exit_code == 0, result.output
    assert AttributionGraph.load(graph).metadata["transcoders"] == "neurons"
