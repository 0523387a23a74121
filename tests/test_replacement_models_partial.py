"""Dictionaries at some layers only: what stands elsewhere is said, never guessed."""

from dataclasses import replace

import pytest
import torch

import tracer
from graphs import AttributionGraph
from replacement_models import ModelError, ReadPoint, ReplacementModel, SparseAutoencoder
from replacement_models.dictionaries.partial import cover
from replacement_models.hosts import host_of
from tests.random_models import FEATURES, PROMPT, language_model, replacement_model, transcoder
from tracer import Intervention, TraceError


def nodes_at(graph: AttributionGraph, layer: int, kind: str) -> list[dict]:
    return [n for n in graph.nodes.to_pylist() if (n["layer"], n["kind"]) == (layer, kind)]


def test_without_a_dictionary_the_whole_mlp_output_is_error():
    model = replacement_model("gpt2", kind="per_layer", at=(1,), elsewhere="error")
    recording = model.record(PROMPT)
    graph = tracer.trace(model, PROMPT)
    assert [len(nodes_at(graph, layer, "feature")) > 0 for layer in range(3)] == [
        False,
        True,
        False,
    ]
    assert [len(nodes_at(graph, layer, "error")) for layer in range(3)] == [5, 5, 5]
    last = model.host.final_norm
    row = model.host.unembedding - model.host.unembedding.mean(0)
    logit = next(n for n in graph.nodes.to_pylist() if n["kind"] == "logit")
    pulled = last.centre(row[logit["token"]] * last.weight) / recording.final_scale[-1]
    written = recording.outputs[2][-1] @ pulled
    ids = graph.nodes["id"].to_pylist()
    assert graph.effect[ids.index(logit["id"]), ids.index("2_-1_5")] == pytest.approx(
        float(written)
    )


def test_with_neurons_elsewhere_only_the_dictionary_has_errors():
    model = replacement_model("gpt2", kind="per_layer", at=(1,), elsewhere="neurons")
    graph = tracer.trace(model, PROMPT)
    size = dict.fromkeys(range(3), 0.0)
    for row, node in enumerate(graph.nodes.to_pylist()):
        if node["kind"] == "error":
            size[node["layer"]] += abs(graph.effect[:, [row]]).sum()
    assert size[0] < 1e-12
    assert size[2] < 1e-12
    assert size[1] > 1e-3
    assert len(nodes_at(graph, 0, "feature")) > FEATURES
    assert graph.metadata["elsewhere"] == "neurons"


def test_neurons_read_what_the_mlp_reads_whatever_the_dictionary_reads():
    model = replacement_model(
        "llama", kind="per_layer", at=(1,), read=ReadPoint.RESIDUAL, elsewhere="neurons"
    )
    assert [model.transcoder.read_at(layer) for layer in range(3)] == [
        ReadPoint.NORMED,
        ReadPoint.RESIDUAL,
        ReadPoint.NORMED,
    ]


def test_a_cross_layer_dictionary_writes_only_where_there_is_one():
    partly = transcoder("cross_layer", at=(0, 2))
    assert [list(partly.targets(layer)) for layer in range(3)] == [[0, 2], [2], [2]]
    assert partly.present == (0, 2)


def test_a_whole_dictionary_is_left_as_it_is():
    host, whole = host_of(language_model("gpt2")), transcoder("per_layer")
    assert cover(host, whole, "neurons") is whole
    assert replacement_model("gpt2", elsewhere="error").elsewhere == ""


def top_missing(kind: str) -> ReplacementModel:
    whole = transcoder(kind, at=(0, 1))
    below = type(whole)(whole.layers[:2], read=whole.read, write=whole.write)
    return ReplacementModel.from_huggingface(language_model("gpt2"), None, below, elsewhere="error")


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_layers_missing_at_the_top_are_empty(kind: str):
    model = top_missing(kind)
    assert len(model.transcoder.layers) == 3
    assert tracer.trace(model, PROMPT).metadata["conservation"]["relative"] < 1e-9


@pytest.mark.parametrize(
    ("dictionary", "elsewhere", "message"),
    [
        (lambda: transcoder(at=(0, 2)), None, "at layers 1 of 3; say what does: elsewhere='error'"),
        (
            lambda: transcoder(at=(0, 2)),
            "zeros",
            "elsewhere is 'zeros', expected one of error, neu",
        ),
        (
            lambda: type(one := transcoder("per_layer"))(one.layers[:2]),
            None,
            "have layers 2, but the gpt2 model has 3; they belong to another model, or stand",
        ),
        (
            lambda: type(one := transcoder("per_layer"))([*one.layers, one.layers[0]]),
            "error",
            "have layers 4, but the gpt2 model has 3; they belong to another model",
        ),
        (
            lambda: SparseAutoencoder(transcoder("per_layer").layers),
            "error",
            "a sparse autoencoder reads the MLP's output",
        ),
    ],
)
def test_what_does_not_cover_the_model_is_refused(dictionary, elsewhere, message: str):
    with pytest.raises(ModelError, match=message):
        cover(host_of(language_model("gpt2")), dictionary(), elsewhere)


def test_a_model_value_needs_an_entry_for_every_layer():
    model, whole = replacement_model("gpt2", kind="per_layer"), transcoder("per_layer")
    with pytest.raises(ModelError, match="have layers 2, but the gpt2 model has 3"):
        replace(model, transcoder=type(whole)(whole.layers[:2]))


def test_a_feature_where_there_is_no_dictionary_is_refused():
    model = replacement_model("gpt2", at=(1,), elsewhere="error")
    with pytest.raises(TraceError, match="layer 0 has no dictionary, so no features"):
        tracer.intervene(model, PROMPT, [Intervention(layer=0, position=2, feature=0, value=1.0)])


@torch.no_grad()
def test_validation_runs_on_a_dictionary_at_some_layers():
    model = replacement_model("gpt2", at=(0, 1), elsewhere="error")
    graph = tracer.trace(model, PROMPT)
    summary = tracer.validate(model, graph, [list(PROMPT), [3, 4, 5, 6]], draws=2).summary
    assert summary["features"] == sum(len(nodes_at(graph, layer, "feature")) for layer in (0, 1))
