"""Shared blocks that stand aside of the residual stream, as Zamba's: laws, parts, refusals."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tracer
from replacement_models import ModelError, ReadPoint, ReplacementModel, replaced
from replacement_models.dictionaries.neurons import neurons
from replacement_models.host import Block
from replacement_models.hosts import host_of
from replacement_models.training.config import DictionaryConfig
from replacement_models.training.wiring import check_host
from tests.local_forward import LocalForward
from tests.random_hybrids import hybrid_language_model
from tests.random_models import PROMPT, WIDTH, transcoder
from tests.test_hybrids import _Words as Words
from tests.test_laws import off_interventions, row_sums
from tests.test_tracer_plain_sweep import (
    assert_adds_up,
    assert_same,
    both,
    rows_everywhere,
    spread_everywhere,
)
from tracer import Direction, TraceError
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.memory import sizes_of
from tracer.attribution.sweep import chunk_bytes
from tracer.attribution.targets import TargetRows, feature_rows
from tracer.features.virtual_weights import NOBODY, neighbours
from tracer.interventions.forward import FeatureEdits, Run, run, steering_hooks
from tracer.lenses.jacobian import summed_jacobians
from tracer.lenses.streams import streams
from tracer.patching import Kind, PatchSite, logit_difference, patch
from tracer.patching.exact import patched
from tracer.patching.patch_sites import values_of

KERNEL = 1e-5
"""Relative: norms and kernels compute in float32."""
SEVERAL = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
    "num_mem_blocks": 2,
}
"""Three hybrid layers, the first and the third with one shared block."""
BLOCKS = 7
family_case = pytest.mark.parametrize("family", ["zamba", "zamba2", "zamba2_grouped"])
OPTIONS = [
    {"kind": "cross_layer", "skip": True},
    {"kind": "per_layer", "skip": False},
    {"kind": "per_layer", "skip": True, "read": ReadPoint.NORMED_UNWEIGHTED},
    {"kind": "cross_layer", "skip": True, "read": ReadPoint.RESIDUAL},
]
option_case = pytest.mark.parametrize("options", OPTIONS)


def language_model(family: str, dtype: torch.dtype = torch.float64) -> Any:
    return hybrid_language_model(family, dtype, **SEVERAL)


@cache
def with_dictionary(family: str, *options: tuple[str, Any]) -> ReplacementModel:
    dictionary = transcoder(**dict(options), at=range(BLOCKS))
    return ReplacementModel.from_huggingface(language_model(family), None, dictionary)


def model_of(family: str, **options: Any) -> ReplacementModel:
    return with_dictionary(family, *{"skip": True, **options}.items())


@option_case
@family_case
def test_every_row_sums_to_what_a_separate_forward_pass_reads(family: str, options: dict):
    got, expected = row_sums(model_of(family, **options))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@family_case
def test_the_local_replacement_model_reproduces_the_logits(family: str):
    model = model_of(family)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    expected = recording.logits_before_cap
    assert float((logits - expected).abs().max() / expected.abs().max()) < KERNEL


@option_case
@family_case
def test_an_edge_is_what_a_direct_intervention_changes(family: str, options: dict):
    model = model_of(family, **options)
    graph = tracer.trace(model, PROMPT)
    assert off_interventions(model, graph, 6) < 1e-9
    assert graph.metadata["conservation"]["relative"] < KERNEL


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
@option_case
@family_case
@torch.no_grad()
def test_the_fast_sweep_gives_what_the_plain_one_does(
    family: str, options: dict, skip_positions: int
):
    model = model_of(family, **options)
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions)
    features = feature_rows(model, recording, local, np.arange(len(local.features)))
    for rows in (rows_everywhere(model), spread_everywhere(model), features):
        assert_same(*both(model, rows, skip_positions))


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
@family_case
@torch.no_grad()
def test_what_shared_attention_writes_adds_up_at_one_position_and_at_several(
    family: str, skip_positions: int
):
    model = model_of(family)
    recording, weights = model.record(PROMPT), torch.linspace(-1, 1, 6, dtype=torch.float64)
    sites = [site for site in model.host.mlp_sites if model.host.blocks[site.layer].aside]
    read = torch.stack([recording.stream(site).sum(-1) for site in sites])
    ones, none = torch.ones(3, WIDTH).double(), torch.zeros(3).double()
    number = np.array([site.number for site in sites])
    alone = TargetRows(number, np.array([5, 3, 0]), ones, none, read[range(3), [5, 3, 0]])
    spread = TargetRows.spread(number, weights.repeat(3, 1), ones, none, read @ weights)
    for rows in (alone, spread):
        fast, plain = both(model, rows, skip_positions)
        assert_same(fast, plain)
        assert_adds_up(fast, rows, KERNEL)


@family_case
def test_patterns_made_anew_give_the_same_effects(family: str):
    kept = tracer.trace(model_of(family), PROMPT)
    made = tracer.trace(model_of(family), PROMPT, recompute_patterns=True)
    assert abs(kept.effect - made.effect).max() < 1e-12


@family_case
def test_float32_gives_what_float64_does(family: str):
    dictionary = transcoder(at=range(BLOCKS))
    models = [
        ReplacementModel.from_huggingface(language_model(family, dtype), None, dictionary)
        for dtype in (torch.float64, torch.float32)
    ]
    double, single = (tracer.trace(model, PROMPT, edge_floor=0.0) for model in models)
    assert single.nodes["id"].equals(double.nodes["id"])
    assert abs(single.effect - double.effect).max() < 1e-4 * abs(double.effect).max()


def with_layer(local: LocalModel, layer: int, **changes: Any) -> LocalModel:
    layers = list(local.layers)
    layers[layer] = replace(layers[layer], **changes)
    return replace(local, layers=layers)


def shared(local: LocalModel, **changes: Any) -> LocalModel:
    return with_layer(local, 3, **changes)


DROPPED: dict[str, Callable[[LocalModel], LocalModel]] = {
    "tokens beside the stream": lambda local: shared(local, tokens=None),
    "standing aside": lambda local: shared(local, aside=False),
    "tokens carried": lambda local: shared(local, carried=0 * local.layers[3].carried),
    "skip": lambda local: shared(local, skip=None),
    "values": lambda local: shared(local, value=0 * local.layers[3].value),
    "one head for another": lambda local: shared(local, pattern=local.layers[3].pattern.roll(1, 0)),
    "what reads aside": lambda local: with_layer(local, 4, value=0 * local.layers[4].value),
}


@pytest.mark.parametrize("dropped", DROPPED)
@family_case
def test_conservation_fails_when_a_part_is_dropped(family: str, dropped: str):
    got, expected = row_sums(model_of(family), DROPPED[dropped])
    assert float((got - expected).abs().max()) > 1e-3


def without(block: Block, part: str) -> Block:
    """A block of a host that forgets something."""
    if part == "standing aside":
        return replace(block, aside=False)
    if part == "tokens":
        value = block.value.clone()
        value[..., WIDTH:] = 0
        return replace(block, value=value)
    assert part == "norm"
    assert block.attention_norm is not None
    norm = replace(block.attention_norm, weight=torch.ones_like(block.attention_norm.weight))
    return replace(block, attention_norm=norm)


@pytest.mark.parametrize("part", ["standing aside", "tokens", "norm"])
@family_case
def test_a_host_that_forgets_a_part_is_refused(family: str, part: str):
    model = model_of(family)
    blocks = list(model.host.blocks)
    blocks[3] = without(blocks[3], part)
    with pytest.raises(ModelError, match=r"layer [34] computes something else"):
        replace(model, host=replace(model.host, blocks=blocks)).record(PROMPT)


def test_a_host_that_takes_the_adapter_of_another_use_is_refused():
    language_model = hybrid_language_model("zamba2", **SEVERAL)
    first, _, third = (
        layer.shared_transformer.self_attn.linear_v_adapter_list
        for layer in language_model.model.layers[1:]
    )
    model = ReplacementModel.from_huggingface(language_model, None, transcoder(at=range(BLOCKS)))
    model.record(PROMPT)
    third[2][0].weight.data += first[0][0].weight.data
    with pytest.raises(ModelError, match="layer 5 computes something else"):
        model.record(PROMPT)


@pytest.mark.parametrize("family", ["zamba", "zamba2"])
def test_layers_share_weights_once_loaded_and_are_traced_all_the_same(family: str, tmp_path: Path):
    tied = hybrid_language_model(family, **SEVERAL, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    maps = [block.attention.v_proj.weight for block in host_of(loaded).blocks if block.aside]
    assert maps[0] is maps[2]
    model = ReplacementModel.from_huggingface(loaded, None, transcoder(at=range(BLOCKS)))
    graph = tracer.trace(model, PROMPT)
    assert graph.metadata["conservation"]["relative"] < KERNEL
    assert off_interventions(model, graph, 3) < 1e-9


def test_layers_that_share_modules_are_refused():
    model = language_model("zamba2")
    model.model.layers[3].shared_transformer = model.model.layers[1].shared_transformer
    with pytest.raises(ModelError, match=r"layers share one attention module, as before .* 5"):
        host_of(model)


@family_case
def test_neurons_of_every_use_are_conserved_without_errors(family: str):
    found = language_model(family)
    model = ReplacementModel.from_huggingface(found, None, neurons(host_of(found)))
    graph = tracer.trace(model, PROMPT, max_features=60)
    assert graph.metadata["conservation"]["relative"] < KERNEL
    assert off_interventions(model, graph, 4) < 1e-9
    nodes = graph.nodes.to_pylist()
    assert {node["layer"] for node in nodes if node["kind"] == "feature"} == {1, 3, 5}
    assert max(abs(node["activation"] or 0) for node in nodes if node["kind"] == "error") < 1e-3


@family_case
def test_neurons_in_the_place_of_shared_mlps_change_nothing_and_others_do(family: str):
    found, tokens = language_model(family), torch.tensor([PROMPT])
    own = ReplacementModel.from_huggingface(found, None, neurons(host_of(found)))
    expected = own.record(PROMPT).logits
    assert torch.allclose(replaced.run(own, tokens).logits[0], expected, atol=1e-5)
    other = replaced.run(model_of(family, kind="per_layer"), tokens)
    assert set(other.layers) == set(range(BLOCKS))
    assert not torch.allclose(other.logits[0], expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_lenses_are_fitted_on_a_stream_that_passes_shared_blocks_by(kind: str):
    found = tracer.fit_lens(model_of("zamba2"), [[*PROMPT, 4, 6]] * 12, kind, steps=2)
    read = tracer.lens(model_of("zamba2"), PROMPT, lens=found).table.to_pylist()
    assert {row["site"] for row in read} == {f"resid_pre.{layer}" for layer in range(BLOCKS + 1)}


def test_a_jacobian_is_of_the_stream_and_of_nothing_that_is_read_beside_it():
    model, rows, at = model_of("zamba2"), torch.tensor([PROMPT]), torch.tensor([4])
    jacobians, _ = summed_jacobians(model, rows, at, 1)
    norm = model.host.final_norm.module
    for layer in range(BLOCKS):
        ends: list[torch.Tensor] = []
        for size in (3e-4, -3e-4):
            vector = size * torch.eye(WIDTH, dtype=torch.float64)[7]
            steering = tracer.Steering(layer=layer, position=4, vector=vector)
            added = steering_hooks(model, [(steering, [0])], len(PROMPT))
            hooks = [(norm, lambda inputs, _, ends=ends: ends.append(inputs[0][0, 4]))]
            with torch.no_grad():
                run(model, rows, Run(edit=FeatureEdits([[]]), added=added, hooks=hooks, keep=False))
        slope = ((ends[0] - ends[1]) / 6e-4).float()
        off = (jacobians[layer][:, 7] - slope).abs().max()
        assert float(off) < 3e-2 * float(slope.abs().max()), layer


def test_a_stream_alone_does_not_bring_back_what_attention_reads_beside_it():
    model = model_of("zamba2")
    other, metric = (1, 3, 12, 8, 22, 4), logit_difference(model, 3, 4)
    sites = [PatchSite(Kind.RESIDUAL, layer) for layer in (5, 6)]
    table = patch(model, PROMPT, other, metric, sites=sites)
    assert min(abs(value - 1) for value in table["recovered"].to_pylist()) > 1e-3
    clean = values_of(model, PROMPT)
    last = [(site, clean.at(site)) for site in (sites[1], PatchSite(Kind.MLP, 5))]
    [both_parts] = patched(model, other, [last], metric)
    assert both_parts == pytest.approx(float(metric(clean.logits[None])), abs=1e-5)


def test_streams_come_in_the_order_of_layers():
    model = model_of("zamba2")
    recording = model.record(PROMPT)
    entering = streams(model, torch.tensor([PROMPT])).entering
    kept = values_of(model, PROMPT).residual
    for layer, expected in enumerate(recording.residuals):
        assert torch.equal(entering[layer][0], expected)
        assert layer == BLOCKS or torch.equal(kept[layer], expected)
    assert torch.equal(recording.residuals[1], recording.residuals[2])


def test_steering_below_a_shared_block_changes_what_it_reads_and_what_passes_by():
    model = model_of("zamba2")
    steering = tracer.Steering(layer=1, position=2, vector=torch.ones(WIDTH).double())
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        (block.module, lambda _, inputs, out, name=name: seen.__setitem__(name, inputs[0]))
        for name, block in zip(("shared", "mamba"), model.host.blocks[1:3], strict=True)
    ]
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        tracer.intervene(model, PROMPT, [steering], mode="free")
    finally:
        for handle in handles:
            handle.remove()
    expected = model.record(PROMPT).residuals[1].clone()
    expected[2] += 1
    for found in seen.values():
        torch.testing.assert_close(found[-1], expected)


def test_features_of_shared_blocks_read_nothing_from_each_other_through_the_stream():
    model = model_of("zamba2", kind="per_layer", skip=False)
    host = replace(model.host, blocks=[block for block in model.host.blocks if block.aside])
    three = transcoder(kind="per_layer")
    found = neighbours(replace(model, host=host, transcoder=three), 3)
    assert (found.inputs.columns == NOBODY).all()
    first, *above = (replace(block, aside=False) for block in host.blocks)
    for bottom, readers in ((first, 24), (host.blocks[0], 48)):
        below = replace(host, blocks=[bottom, *above])
        found = neighbours(replace(model, host=below, transcoder=three), 3)
        assert (found.inputs.columns[:readers] == NOBODY).all()
        assert (found.inputs.columns[readers:] >= readers - 24).all()


REFUSED: dict[str, Callable[[ReplacementModel, Any], Any]] = {
    "head_loadings": tracer.head_loadings,
    "attention_effects": tracer.attention_effects,
    "keep_attention": tracer.keep_attention,
    "explain_attention": lambda model, graph: tracer.explain_attention(
        model, graph, layer=1, head=0, query=3
    ),
    "head_chains": lambda model, graph: tracer.head_chains(
        model, graph, graph.nodes["id"][0].as_py(), graph.nodes["id"][-1].as_py()
    ),
    "trace with keep_attention": lambda model, _: tracer.trace(model, PROMPT, keep_attention=True),
    "local_lens": lambda model, _: tracer.local_lens(model, PROMPT),
    "head_composition": lambda model, _: tracer.head_composition(model),
    "head_virtual_weights": lambda model, _: tracer.head_virtual_weights(model, 1, 0, (1, 0)),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_what_follows_the_stream_alone_is_refused_by_the_kind_of_layer(asked: str):
    model = model_of("zamba2")
    graph = tracer.trace(model, PROMPT, max_features=5)
    said = r"layer 1 of this zamba2 model is a shared block"
    with pytest.raises(TraceError, match=said) as error:
        REFUSED[asked](model, graph)
    assert "\n" not in str(error.value)


def test_nothing_reads_a_stream_inside_a_shared_block():
    model = model_of("zamba2")
    inside = Direction([1.0] * WIDTH, "inside", site="resid_mid.1")
    with pytest.raises(TraceError, match=r"resid_mid\.1"):
        tracer.trace(model, PROMPT, targets=[inside])
    with pytest.raises(TraceError, match=r"resid_mid\.1"):
        tracer.lens(model, PROMPT, "logit", sites=["resid_mid.1"])
    sae = DictionaryConfig(kind="sae", site="resid_mid")
    with pytest.raises(ModelError, match="no stream lies between attention and MLP"):
        check_host(sae, model.host.blocks)
    check_host(sae, [block for block in model.host.blocks if not block.aside])


def test_heads_of_shared_blocks_have_scores_of_what_they_read_alone():
    model = replace(model_of("zamba2"), tokenizer=Words())
    rows = tracer.head_scores(model, length=4, count=1).to_pylist()
    assert len(rows) == 7 * 4
    for row in rows:
        assert row["previous"] is not None
        assert (row["name_mover"] is None) == (row["layer"] in (1, 3, 5))


def test_more_memory_is_reckoned_with_for_what_stands_aside():
    model = model_of("zamba2")
    options = {"logits": 5, "max_features": None, "rank_every": None, "edge_floor": 0.0}
    given = sizes_of(model, model.record(PROMPT), skip_positions=1, **options)
    assert chunk_bytes(given, 8) > chunk_bytes(replace(given, aside=False), 8)
