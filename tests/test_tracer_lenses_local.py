"""The prompt-local lens: reading plus constant is the model's logits, part by part the graph's."""

import numpy as np
import pytest
import torch
from torch import Tensor

import tracer
from replacement_models import ReadPoint, ReplacementModel, WritePoint
from replacement_models.dictionaries.neurons import neurons
from replacement_models.sites import Site, Stage
from tests.random_models import FAMILIES, PROMPT, language_model, replacement_model
from tracer.lenses.local import PARTS, LocalLens, of_recording

EXACT = ["gpt2", "gpt_neox", "gpt_neox_sequential"]
"""Families whose norms compute in float64."""
OPTIONS = [
    {"kind": "cross_layer"},
    {"kind": "cross_layer", "skip": True},
    {"kind": "per_layer"},
    {"kind": "per_layer", "skip": True, "read": ReadPoint.RESIDUAL},
    {"kind": "per_layer", "skip": True, "read": ReadPoint.NORMED_UNWEIGHTED},
]


def wrong(found: LocalLens) -> float:
    """The largest gap between reading plus constant and the model's logits, by their size."""
    logits = found.recording.logits_before_cap
    sites = found.model.host.stream_sites
    assert [*found.parts] == sites
    gaps = [found.reading(site) + found.constant(site) - logits for site in sites]
    return float(max(gap.abs().max() for gap in gaps) / logits.abs().max())


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", EXACT)
def test_reading_and_constant_are_the_logits_at_every_site(
    family: str, options: dict, skip_positions: int
):
    model = replacement_model(family, **options)
    assert wrong(tracer.local_lens(model, PROMPT, skip_positions=skip_positions)) < 1e-9


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(EXACT)))
def test_so_they_are_in_every_family(family: str):
    write = WritePoint.POST_NORM if "gemma" in family else WritePoint.MLP_OUTPUT
    model = replacement_model(family, skip=True, write=write)
    assert wrong(tracer.local_lens(model, PROMPT)) < 2e-5


@pytest.mark.parametrize("family", EXACT)
def test_so_they_are_with_the_models_own_neurons(family: str):
    host = replacement_model(family).host
    model = ReplacementModel.from_huggingface(language_model(family), None, neurons(host))
    assert wrong(tracer.local_lens(model, PROMPT)) < 1e-9


def test_the_parts_of_the_lowest_stream_are_what_a_graph_adds_up():
    model = replacement_model("gpt2", skip=True)
    graph = tracer.trace(model, PROMPT, targets=[4, 9])
    kinds, effect = np.array(graph.nodes["kind"].to_pylist()), graph.effect.toarray()[-2:]
    found, site = tracer.local_lens(model, PROMPT), Site(0, Stage.RESID_PRE)

    def demeaned(logits: Tensor) -> np.ndarray:
        return (logits[-1, [4, 9]] - logits[-1].mean()).numpy()

    for name, kind in (("features", "feature"), ("errors", "error")):
        expected = effect[:, kinds == kind].sum(1)
        np.testing.assert_allclose(demeaned(found.part(site, name)), expected, atol=1e-10)
    tokens = found.part(site, "own") + found.part(site, "others")
    learned = demeaned(tokens) - effect[:, kinds == "embedding"].sum(1)
    biases = found.constant(site) - found.part(site, "features") - found.part(site, "errors")
    constant = np.array(graph.nodes["constant"].to_pylist()[-2:], dtype=float)
    np.testing.assert_allclose(demeaned(biases) + learned, constant, atol=1e-10)


def test_the_own_part_of_a_reading_needs_no_other_position():
    model = replacement_model("llama", skip=True)
    recording = model.record(PROMPT)
    whole, site = of_recording(model, recording), Site(1, Stage.RESID_PRE)
    for layer in recording.layers:
        assert isinstance(layer.pattern, Tensor)
        layer.pattern.mul_(torch.eye(len(PROMPT), dtype=torch.float64))
    alone = of_recording(model, recording)
    torch.testing.assert_close(alone.reading(site), whole.reading(site, own=True))
    assert PARTS[1] == "others"
    assert float(alone.part(site, "others").abs().max()) < 1e-12
    assert float(whole.part(site, "others").abs().max()) > 0.1


@pytest.mark.parametrize("part", ["bias", "skip", "pattern"])
def test_the_law_fails_when_something_is_left_out(part: str):
    model = replacement_model("gpt2", skip=True)
    recording = model.record(PROMPT)
    changed = {
        "bias": model.host.blocks[1].output_bias,
        "skip": model.folded[1].skip,
        "pattern": recording.layers[1].pattern,
    }[part]
    assert isinstance(changed, Tensor)
    changed.data[0] *= 0.9
    found = of_recording(model, recording)
    above = Site(2, Stage.RESID_PRE)
    gap = found.reading(above) + found.constant(above) - recording.logits
    assert float(gap.abs().max()) < 1e-12
    assert wrong(found) > 1e-6
