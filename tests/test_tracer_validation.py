"""Validation: its definitions by hand, its laws, and what it refuses."""

from dataclasses import replace
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import rankdata, spearmanr

import tracer
from graphs import AttributionGraph
from graphs.validation_summary import tables
from replacement_models import ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from tests.random_models import LAYERS, PROMPT, replacement_model
from tracer import Difference, Direction, Intervention, TraceError
from tracer.patching import Kind, PatchSite
from tracer.validation import means as means_module
from tracer.validation.ablation import ablations
from tracer.validation.circuit import Circuit, circuit_of, leads
from tracer.validation.correlation import (
    direct_logit,
    explained,
    feature_to_feature,
    ranks,
    spearman,
    upstream,
)
from tracer.validation.means import corpus_means
from tracer.validation.resample_ablation import Resampling, outside, resample_ablation
from tracer.validation.response import Prediction, Response, by_distance, responses
from tracer.validation.subject import Subject, subject

CORPUS = [PROMPT, (1, 3, 12, 8, 22, 4), (1, 6, 2, 11)]
NOTHING = Circuit(frozenset(), frozenset())
EVERY_ERROR = frozenset((layer, p) for layer in range(LAYERS) for p in range(len(PROMPT)))


@cache
def made(family: str = "gpt2", **options: Any) -> tuple[ReplacementModel, AttributionGraph]:
    model = replacement_model(family, **options)
    return model, tracer.trace(model, PROMPT)


def subject_of(family: str = "gpt2", **options: Any) -> Subject:
    return subject(*made(family, **options))


def test_spearman_by_hand_with_ties_and_too_few():
    a = np.arange(30.0)
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    tied = np.repeat([0.0, 1.0], 15)
    assert spearman(a, tied) == pytest.approx(0.8665, abs=1e-3)
    assert spearman(a[:29], a[:29]) is None
    assert spearman(a, np.zeros(30)) is None


def test_effects_are_those_of_single_interventions():
    model, graph = made()
    found = tracer.validate(model, graph)
    token = graph.nodes["token"][subject(model, graph).aim.row].as_py()
    nodes = {node["id"]: node for node in graph.nodes.to_pylist()}
    for row in found.features.to_pylist()[::29]:
        place = {name: nodes[row["id"]][name] for name in ("layer", "position", "feature")}
        change = tracer.intervene(model, PROMPT, [Intervention(**place, value=0.0)], "free")
        after, before = (s.logits_before_cap[-1] for s in (change, change.base))
        expected = (before[token] - before.mean()) - (after[token] - after.mean())
        assert row["measured"] == pytest.approx(float(expected), abs=1e-12)
        assert row["influence"] == nodes[row["id"]]["influence"]


def test_a_change_counts_unless_it_is_rounding():
    model = replacement_model("gpt2")
    for feature, size in ((3, 1e-10), (5, 1e-17)):
        for layer in model.transcoder.layers:
            layer.decoder.weight[feature] *= size
    found = tracer.validate(model, tracer.trace(model, PROMPT))
    effect = {row["id"].split("_")[1]: [] for row in found.features.to_pylist()}
    for row in found.features.to_pylist():
        effect[row["id"].split("_")[1]].append(abs(row["measured"]))
    assert 0 < max(effect["3"]) < 1e-8
    assert effect["5"]
    assert not any(effect["5"])


def test_the_top_half_is_that_with_most_influence():
    model, graph = made()
    found = tracer.validate(model, graph)
    table = sorted(found.features.to_pylist(), key=lambda row: -row["influence"])
    top = table[: len(table) // 2]
    sizes = [abs(row["measured"]) for row in top]
    expected = spearmanr([row["influence"] for row in top], sizes).statistic
    assert found.summary["spearman"]["top_half"] == pytest.approx(expected)


def test_the_direct_baseline_reads_all_a_feature_writes_with_the_targets_row():
    about = subject_of()
    model: Any = about.model.host.model
    row = model.lm_head.weight[about.aim.plus] - model.lm_head.weight.mean(0)
    row = (row * model.transformer.ln_f.weight).detach()
    nodes = {node["id"]: node for node in about.graph.nodes.to_pylist()}
    names = about.graph.nodes["id"].take(about.rows).to_pylist()
    for name, found in zip(names, direct_logit(about), strict=True):
        layer, _, feature = about.features[names.index(name)]
        written = about.model.transcoder.layers[layer].decoder.weight[feature].sum(0)
        expected = nodes[name]["activation"] * float(written @ (row - row.mean()))
        assert found == pytest.approx(abs(expected), abs=1e-12)


def test_features_are_ranked_by_their_influence_on_the_feature_that_answers():
    about = subject_of()
    nodes, rows = about.graph.nodes, about.rows
    share = abs(about.graph.effect.toarray()) / np.maximum(
        nodes["input_absolute"].fill_null(1).to_numpy()[:, None], 1e-300
    )
    reached = np.linalg.inv(np.eye(len(share)) - share)
    targets = rows[explained(about)]
    found = feature_to_feature(about, reached[targets][:, rows].T)
    assert len(found) > 3
    assert found == pytest.approx([1.0] * len(found))


def test_the_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    model, graph = made()
    once = tracer.validate(model, graph)
    monkeypatch.setattr("tracer.validation.ablation.LARGEST", 7)
    again = tracer.validate(model, graph)
    np.testing.assert_allclose(once.features["measured"], again.features["measured"], atol=1e-12)
    assert once.summary["spearman"]["influence"] == again.summary["spearman"]["influence"]


@pytest.mark.parametrize(("width", "rows"), [(10_000, 46), (2**23, 1)])
def test_no_more_activations_are_held_at_once_than_eight_million(
    width: int, rows: int, monkeypatch: pytest.MonkeyPatch
):
    about = subject_of()
    monkeypatch.setattr(type(about.model.transcoder), "features", width)
    seen = next(ablations(about)).features
    assert (seen.start, len(seen)) == (0, rows)
    held = rows * LAYERS * len(PROMPT) * width
    assert rows == 1 or held <= 2**23 < held + LAYERS * len(PROMPT) * width


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_a_prediction_is_what_direct_interventions_and_activations_make_of_it(
    kind: str, activation: str
):
    about = subject_of(kind=kind, activation=activation)
    prediction = Prediction(about)
    number = int(np.argmax([layer == 1 for layer, _, _ in about.features]))
    layer, position, feature = about.features[number]
    changes = prediction.changes(range(number, number + 1))
    off = Intervention(layer=layer, position=position, feature=feature, value=0.0)
    direct = tracer.intervene(about.model, PROMPT, [off])
    activate = about.model.transcoder.layers[layer + 1].activation
    # one layer on nothing stands between, but silent features stay silent in a graph
    expected = activate(direct.pre_activations[layer + 1]) - activate(prediction.hidden[layer + 1])
    traced = torch.zeros_like(expected, dtype=torch.bool)
    for one in about.features:
        traced[one[1], one[2]] |= one[0] == layer + 1
    if activation == "relu":
        torch.testing.assert_close(
            changes[layer + 1][0][traced], expected[traced], rtol=0, atol=1e-9
        )
    assert not changes[layer].any()
    assert not changes[0].any()


def test_a_gate_is_held_in_a_prediction():
    host = replacement_model("llama").host
    model = ReplacementModel.from_huggingface(host.model, None, neurons(host))
    prediction = Prediction(subject(model, tracer.trace(model, PROMPT)))
    number = int(np.argmax([layer == 1 for layer, _, _ in prediction.subject.features]))
    layer, position, feature = prediction.subject.features[number]
    off = Intervention(layer=layer, position=position, feature=feature, value=0.0)
    moved = tracer.intervene(model, PROMPT, [off]).pre_activations[layer + 1]
    weights, x = model.transcoder.layers[layer + 1], prediction.subject.recording.inputs[layer + 1]
    expected = (moved - prediction.hidden[layer + 1]) * weights.gate(x)
    changes = prediction.changes(range(number, number + 1))[layer + 1][0]
    torch.testing.assert_close(changes[1:], expected[1:], rtol=0, atol=2e-5)


def test_responses_are_zero_or_one_where_that_is_plain():
    about = subject_of()
    prediction = Prediction(about)
    for ablated in ablations(about):
        own = replace(ablated, responses=prediction.changes(ablated.features))
        for response in responses(prediction, own):
            assert response.cosine == pytest.approx(1)
            assert response.error == pytest.approx(0)
        silent = replace(ablated, responses=[torch.zeros_like(r) for r in ablated.responses])
        for response in responses(prediction, silent):
            assert (response.cosine, response.error) == (0.0, None)


def test_an_error_is_the_square_of_the_relative_difference():
    about = subject_of()
    prediction = Prediction(about)
    for ablated in ablations(about):
        predicted = prediction.changes(ablated.features)
        double = replace(ablated, responses=[2 * one for one in predicted])
        for response in responses(prediction, double):
            assert response.cosine == pytest.approx(1)
            assert response.error == pytest.approx(0.25)


def test_responses_are_summed_up_with_their_spread():
    listed = [Response(0, 1, cosine, error, 1.0) for cosine, error in ((0.0, 4.0), (0.4, None))]
    found = by_distance([*listed, Response(0, 1, 1.0, 1.0, 1.0), Response(0, 2, 0.7, 0.1, 1.0)])
    assert list(found) == ["1", "2"]
    assert found["1"]["cosine"] == pytest.approx(1.4 / 3)
    parts = ("cosine_lower", "cosine_median", "cosine_upper", "cosine_below_half", "error_median")
    assert [found["1"][part] for part in parts] == pytest.approx([0.2, 0.4, 0.7, 2 / 3, 2.5])
    assert found["1"]["count"] == 3


def test_what_is_explained_are_the_sixty_four_most_influential_features():
    about = subject_of()
    influence = about.graph.nodes["influence"].take(about.rows).to_pylist()
    assert len(influence) > 64
    chosen = explained(about)
    assert sorted((influence[at] for at in chosen), reverse=True) == sorted(influence)[:-65:-1]


def test_features_are_compared_with_those_that_could_reach_them():
    about = subject_of()
    target = len(about.features) - 1
    below = upstream(about.features, target)
    layer, position, _ = about.features[target]
    for (one, at, _), counted in zip(about.features, below, strict=True):
        assert counted == (one < layer and at <= position)
    perfect = np.zeros((len(about.features), len(explained(about))))
    assert feature_to_feature(about, perfect) == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("options", [{"skip": True}, {"kind": "per_layer"}])
def test_a_circuit_of_everything_is_the_model(family: str, options: dict[str, Any]):
    about = subject_of(family, **options)
    means = corpus_means(about.model, CORPUS)
    whole = frozenset(
        (layer, position, feature)
        for layer, weights in enumerate(about.model.transcoder.layers)
        for position in range(len(PROMPT))
        for feature in range(len(weights.b_enc))
    )
    [kept] = leads(about, means, [Circuit(whole, EVERY_ERROR)])
    clean = float(about.aim.lead(about.recording.logits_before_cap[-1:]))
    assert kept == pytest.approx(clean, abs=2e-5)


@pytest.mark.parametrize("errors", [False, True])
def test_an_ablated_layer_writes_its_means_and_the_errors_kept(errors: bool):
    about = subject_of(skip=True)
    means = corpus_means(about.model, CORPUS)
    [kept] = leads(about, means, [Circuit(frozenset(), EVERY_ERROR if errors else frozenset())])
    weights = about.model.transcoder.layers
    held: dict[int, torch.Tensor] = {}

    def hook(layer: int):
        def write(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            x = inputs[0]
            error = about.errors[layer] if errors else means.errors[layer]
            mean = means.written[layer] + error + weights[layer].b_dec
            held[layer] = mean + x @ weights[layer].W_skip
            return torch.cat([output[:, :1], held[layer][:, 1:]], dim=1)

        return write

    blocks = about.model.host.blocks
    handles = [block.mlp.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            expected = float(about.aim.lead(about.model.host.run(PROMPT)[-1:]))
    finally:
        for handle in handles:
            handle.remove()
    assert kept == pytest.approx(expected, abs=1e-9)


def test_circuits_of_a_batch_do_not_touch_one_another():
    about = subject_of()
    means = corpus_means(about.model, CORPUS)
    whole = circuit_of(about.graph)
    pruned = circuit_of(about.graph.prune())
    circuits = [pruned, NOTHING, whole, pruned.complement(whole), pruned.without_errors()]
    together = leads(about, means, circuits)
    for circuit, kept in zip(circuits, together, strict=True):
        assert leads(about, means, [circuit])[0] == pytest.approx(kept, abs=1e-12)


def test_means_are_over_all_counted_positions():
    model = replacement_model("gpt2")
    means = corpus_means(model, CORPUS)
    assert means.positions == sum(len(prompt) - 1 for prompt in CORPUS)
    active = [
        model.transcoder.encode(1, model.record(prompt).inputs[1])[1][1:] for prompt in CORPUS
    ]
    torch.testing.assert_close(means.activations[1], torch.cat(active).mean(0))
    gaps = [subject(model, tracer.trace(model, prompt)).errors[1][1:] for prompt in CORPUS]
    torch.testing.assert_close(means.errors[1], torch.cat(gaps).mean(0))
    with pytest.raises(TraceError, match="no position to average over"):
        corpus_means(model, [(5,)])


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "gpt_neox"])
@pytest.mark.parametrize("options", [{"skip": True}, {"kind": "per_layer"}])
def test_prompts_of_one_length_share_a_pass_and_give_the_same_means(
    family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    model, passes = replacement_model(family, **options), []
    handle = model.host.embedding.register_forward_hook(
        lambda module, inputs, output: passes.append(output.shape[:-1].numel())
    )
    corpus = [PROMPT, (1, 6, 2), tuple(reversed(PROMPT)), (3, 6, 4), (2, 2, 2)]
    together = corpus_means(model, corpus)
    assert passes[1:] == [9, 2 * len(PROMPT)]  # the first checks the model
    monkeypatch.setattr(means_module, "ENTRIES", 0)
    alone = corpus_means(model, corpus)
    assert passes[4:] == [3, 3, 3, len(PROMPT), len(PROMPT)]
    handle.remove()
    for name in ("activations", "errors", "written"):
        for one, other in zip(getattr(together, name), getattr(alone, name), strict=True):
            torch.testing.assert_close(one, other)
    errors, recordings = [], [model.record(prompt) for prompt in corpus]
    for one in recordings:
        active = [model.transcoder.encode(at, x)[1] for at, x in enumerate(one.inputs)]
        errors.append((one.outputs[1] - model.transcoder.decode(active, one.inputs)[1])[1:])
    torch.testing.assert_close(together.errors[1], torch.cat(errors).mean(0))


def test_equal_values_share_their_mean_rank():
    drawn = np.random.default_rng(3)
    for values in (drawn.integers(0, 9, 40), drawn.normal(size=40), np.zeros(3), np.zeros(0)):
        assert ranks(values).tolist() == rankdata(values).tolist()


def test_random_circuits_are_of_equal_size_and_seeded():
    whole = circuit_of(made()[1])
    pruned = circuit_of(made()[1].prune())
    one, same, other = (pruned.drawn(whole, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert (len(one.features), len(one.errors)) == (len(pruned.features), len(pruned.errors))
    assert one.features <= whole.features
    assert pruned.complement(whole).size == whole.size - pruned.size


def test_the_curve_is_what_its_circuits_keep():
    model, graph = made()
    found = tracer.validate(model, graph, CORPUS, draws=2)
    about, means = subject(model, graph), corpus_means(model, CORPUS)
    clean = found.summary["faithfulness"]["clean"]
    for row in found.circuits.to_pylist():
        circuit = circuit_of(graph.prune(row["nodes"], 0.98))
        whole = circuit_of(graph)
        chosen = [circuit, circuit.silent_left(whole), circuit.without_errors()]
        expected = leads(about, means, [*chosen, circuit.complement(whole)]) / clean
        got = [row[name] for name in ("circuit", "silent_left", "without_errors", "rest")]
        np.testing.assert_allclose(got, expected, atol=1e-12)
    assert tracer.validate(model, graph, CORPUS, draws=2).summary == found.summary


def test_a_corpus_that_the_model_brings_is_taken_unless_another_is_given():
    model, graph = made()
    alone = tracer.validate(model, graph, draws=1)
    assert alone.circuits is None
    bringing = replace(model, corpus=lambda: CORPUS)
    expected = tracer.validate(model, graph, CORPUS, draws=1)
    assert tracer.validate(bringing, graph, draws=1).circuits == expected.circuits
    other = tracer.validate(bringing, graph, CORPUS[1:], draws=1).circuits
    assert other != expected.circuits
    assert other == tracer.validate(model, graph, CORPUS[1:], draws=1).circuits


def test_resampling_nothing_that_matters_survives_and_everything_does_not():
    model = replacement_model("gpt2")
    other = CORPUS[1]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 3] - logits[:, 4]

    stream = tuple(PatchSite(Kind.RESIDUAL, 1, position) for position in range(len(PROMPT)))
    gone = resample_ablation(model, PROMPT, Resampling("all of it", stream, (other,)), metric)
    assert gone.survives == pytest.approx(0, abs=1e-9)
    later = PatchSite(Kind.RESIDUAL, LAYERS - 1, 2)
    kept = resample_ablation(
        model, PROMPT, Resampling("an early token, late", (later,), (PROMPT, other)), metric
    )
    assert kept.survives is not None
    assert 0 < kept.survives < 2
    with pytest.raises(TraceError, match="has 4 tokens, expected 6"):
        resample_ablation(model, PROMPT, Resampling("short", (later,), (CORPUS[2],)), metric)
    with pytest.raises(TraceError, match="needs sites to resample and prompts"):
        Resampling("empty", (), (PROMPT,))


def test_resampling_draws_as_many_prompts_as_asked_for():
    model, prompts = replacement_model("gpt2"), (CORPUS[1], (1, 9, 3, 3, 14, 20))

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 3] - logits[:, 4]

    early = PatchSite(Kind.RESIDUAL, 1, 2)
    once = resample_ablation(model, PROMPT, Resampling("r", (early,), prompts), metric)
    many = resample_ablation(model, PROMPT, Resampling("r", (early,), prompts), metric, draws=9)
    assert (len(once.each), len(many.each)) == (2, 9)
    assert set(np.round(many.each, 9)) == set(np.round(once.each, 9))
    assert many.summary()["spread"]["count"] == 9
    other = resample_ablation(model, PROMPT, Resampling("r", (early,), prompts), metric, 9, seed=4)
    assert other.each != many.each


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_positions_a_graph_skips_keep_their_features_and_no_others(skipped: int):
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT, skip_positions=skipped).prune()
    stated = outside(model, graph, [CORPUS[1]])
    assert {site.position for site in stated.resampled} == set(range(skipped, len(PROMPT)))


def test_a_pruned_graph_states_a_hypothesis():
    model, graph = made()
    stated = outside(model, graph.prune(), [CORPUS[1]])
    kept = circuit_of(graph.prune()).features
    assert stated.resampled
    for site in stated.resampled:
        assert (site.layer, site.position, site.index) not in kept
        assert site.position is not None
        assert site.position > 0
    found = tracer.validate(model, graph, hypotheses=[stated])
    assert found.summary["resample_ablation"][0]["name"] == "features outside the circuit"


def test_a_difference_is_measured_as_a_difference():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT, targets=[Difference(3, 4)])
    found = tracer.validate(model, graph)
    node = next(n for n in graph.nodes.to_pylist() if n["id"] == found.features["id"][5].as_py())
    place = {name: node[name] for name in ("layer", "position", "feature")}
    change = tracer.intervene(model, PROMPT, [Intervention(**place, value=0.0)], "free")
    moved = (change.base.logits - change.logits)[-1]
    assert found.features["measured"][5].as_py() == pytest.approx(float(moved[3] - moved[4]))


def test_a_validation_is_stored_with_its_graph(tmp_path):
    model, graph = made()
    found = tracer.validate(model, graph, CORPUS, draws=1)
    written = found.save(tmp_path / "g.graph")
    again = AttributionGraph.load(tmp_path / "g.graph")
    assert again.metadata["validation"] == found.graph.metadata["validation"]
    assert {path.suffix for path in written} == {".graph", ".arrow", ".svg"}
    with pa.memory_map(str(tmp_path / "g.graph" / "validation_features.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().equals(found.features)
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    found.save(tmp_path / "g.zip")
    assert AttributionGraph.load(tmp_path / "g.zip").metadata == again.metadata
    names = [row[0] for table in tables(again.metadata["validation"]) for row in table.rows]
    assert "Spearman, influence" in names
    assert "circuit keeps" in names


def test_a_graph_without_features_can_be_validated():
    model = replacement_model("gpt2")
    found = tracer.validate(model, tracer.trace(model, PROMPT, max_features=0), CORPUS, draws=1)
    assert found.summary["spearman"]["influence"] is None
    assert list(tables(found.summary))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m, g: (m, g.prune()), "graph is pruned"),
        (lambda m, g: (replace(m, name="other"), g), "the model's is 'other'"),
        (
            lambda m, g: (m, tracer.trace(m, PROMPT, targets=[Direction([1.0] * 16, "up")])),
            "'up' is a direction",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(change: Any, said: str):
    with pytest.raises(TraceError, match=said):
        tracer.validate(*change(*made()))
