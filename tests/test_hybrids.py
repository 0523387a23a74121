"""Hybrids obey the engine's laws: patterns of kernels, taps and factors around them, all held."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tracer
from replacement_models import ModelError, ReplacementModel
from replacement_models.around import Call, Factors
from replacement_models.dictionaries.neurons import neurons
from replacement_models.kernel_patterns import KernelPattern, kernel_patterns
from replacement_models.recording import attention_input
from tests.family_configs import model_of_family
from tests.local_forward import LocalForward
from tests.random_hybrids import ASIDE, HYBRIDS, hybrid, hybrid_language_model
from tests.random_models import PROMPT, replacement_model, transcoder
from tests.test_laws import off_interventions, row_sums
from tests.test_tracer_lenses_local import wrong
from tests.test_tracer_plain_sweep import assert_same, both, rows_everywhere, spread_everywhere
from tracer import Intervention, TraceError
from tracer.attention.scores import NAMES, SERIES, _outputs
from tracer.attribution.local_model import LocalModel

KERNEL = 1e-5
"""Relative: what the models' own kernels and norms round to, which compute in float32."""
family_case = pytest.mark.parametrize("family", HYBRIDS)
in_stream_case = pytest.mark.parametrize("family", [name for name in HYBRIDS if name not in ASIDE])
"""Those whose blocks all add to the residual stream."""


@cache
def model_of(family: str) -> ReplacementModel:
    return hybrid(family)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@family_case
@torch.no_grad()
def test_every_layer_is_what_its_maps_pattern_taps_and_factors_make_of_its_input(family: str):
    model = model_of(family)
    recording = model.record(PROMPT)
    for layer, (block, frozen) in enumerate(zip(model.host.blocks, recording.layers, strict=True)):
        norm, stream = block.attention_norm, recording.residuals[layer]
        below = model.transcoder.write_at(max(0, layer - 1))
        read = attention_input(model.host, recording, layer, below)
        hidden = read if norm is None else norm.frozen(read, frozen.attention_scale)
        made = block.attend(hidden, frozen.attention_pattern(), frozen.factors)
        if block.attention_post_norm is not None:
            assert frozen.attention_post_scale is not None
            made = block.attention_post_norm.frozen(made, frozen.attention_post_scale)
        added = recording.between[layer] - (0 if block.aside else stream)
        assert relative(made, added) < KERNEL


@family_case
def test_every_row_sums_to_what_a_separate_forward_pass_reads(family: str):
    got, expected = row_sums(model_of(family))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@family_case
def test_the_local_replacement_model_reproduces_the_logits(family: str):
    model = model_of(family)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    assert relative(logits, recording.logits_before_cap) < KERNEL


@family_case
def test_an_edge_is_what_a_direct_intervention_changes(family: str):
    model = model_of(family)
    graph = tracer.trace(model, PROMPT)
    assert off_interventions(model, graph, 4) < 1e-9
    assert graph.metadata["conservation"]["relative"] < KERNEL


@family_case
def test_a_free_intervention_that_changes_nothing_changes_nothing(family: str):
    model = model_of(family)
    same = Intervention(layer=1, position=2, feature=3, scale=1.0)
    change = tracer.intervene(model, PROMPT, [same], mode="free", patterns=True)
    recording = model.record(PROMPT)
    assert torch.equal(change.logits, recording.logits)
    assert change.patterns is not None
    for pattern, frozen in zip(change.patterns, recording.layers, strict=True):
        assert torch.equal(pattern, frozen.attention_pattern())


@pytest.mark.parametrize("family", [name for name in HYBRIDS if name != "bamba"])
def test_a_continuation_is_what_whole_passes_say(family: str):
    """Bamba's own passes differ with a cache and without in transformers 5.23."""
    model = model_of(family)
    [found] = tracer.generate(model, [PROMPT], max_new_tokens=3, temperature=1.0)
    whole = model.record([*PROMPT, *found.plain.tokens]).logits[len(PROMPT) - 1 : -1]
    assert len(found.plain.tokens) == len(whole) > 0
    assert relative(found.plain.logits, whole) < KERNEL


@pytest.mark.parametrize("skip_positions", [0, 2])
@family_case
def test_the_fast_sweep_gives_what_the_plain_one_does(family: str, skip_positions: int):
    model = model_of(family)
    for rows in (rows_everywhere(model), spread_everywhere(model)):
        assert_same(*both(model, rows, skip_positions))


@family_case
def test_patterns_made_anew_give_the_same_effects(family: str):
    model = model_of(family)
    kept = tracer.trace(model, PROMPT)
    made = tracer.trace(model, PROMPT, recompute_patterns=True)
    assert abs(kept.effect - made.effect).max() < 1e-12


@in_stream_case
def test_loadings_and_chains_of_heads_add_up_to_their_edges(family: str):
    model = model_of(family)
    graph = tracer.head_loadings(model, tracer.trace(model, PROMPT))
    checked = graph.metadata["heads"]
    assert max(checked["conservation"], checked["stay"]) < 1e-9
    names = graph.nodes["id"].to_pylist()
    edge = max(graph.edges.to_pylist(), key=lambda edge: edge["target"] - edge["source"])
    source, target = names[edge["source"]], names[edge["target"]]
    found = tracer.head_chains(model, graph, source, target, top=1000, steps=50)
    total = sum(found.table["loading"].to_pylist()) + found.remainder
    assert total == pytest.approx(edge["weight"], abs=1e-9)


@pytest.mark.parametrize("family", ["qwen3_next"])
def test_what_softmax_alone_has_is_explained_there_and_refused_elsewhere(family: str):
    model = model_of(family)
    graph = tracer.trace(model, PROMPT)
    found = tracer.explain_attention(model, graph, layer=1, head=0, query=4)
    assert abs(found.residual) < 1e-6
    with pytest.raises(TraceError, match=r"layer 0 .* has no softmax attention"):
        tracer.explain_attention(model, graph, layer=0, head=0, query=4)
    with pytest.raises(TraceError, match=r"layer 0 .* linear-attention, .* depend on the prompt"):
        tracer.head_composition(model)


def test_plain_softmax_layers_of_a_hybrid_have_figures_by_weights_alone():
    model = ReplacementModel.from_huggingface(
        hybrid_language_model("lfm2", layer_types=["full_attention", "conv", "full_attention"]),
        None,
        transcoder(),
    )
    found = tracer.head_composition(model).to_pylist()
    assert {(row["from_layer"], row["to_layer"]) for row in found} == {(0, 2)}
    assert {row["kind"] for row in found} == {"q", "k", "v"}
    with pytest.raises(TraceError, match=r"layer 1 .* convolution layer"):
        tracer.head_virtual_weights(model, 1, 0, (0, 0))


class _Words:
    """A tokenizer that knows names and days as one token each."""

    bos_token_id, unk_token_id, all_special_ids = None, 0, (0,)

    def __init__(self) -> None:
        self.words = ["<unk>", *NAMES[:12], *SERIES[0]]

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        known = text.strip() in self.words
        return SimpleNamespace(input_ids=[self.words.index(text.strip()) if known else 0])


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next"])
def test_heads_of_linear_layers_are_scored_by_their_pattern_and_what_they_write(family: str):
    model = replace(model_of(family), tokenizer=_Words())
    rows = tracer.head_scores(model, length=4, count=1).to_pylist()
    heads = sum(len(block.output) for block in model.host.blocks)
    assert len(rows) == heads
    assert all(row["previous"] is not None and row["name_mover"] is not None for row in rows)
    recording = model.record([3])
    with torch.no_grad():
        [out, *_] = _outputs(model, [3])
    added = recording.between[0][0] - recording.residuals[0][0]
    block, final = model.host.blocks[0], model.host.final_norm
    own = recording.layers[0].attention_pattern()[:, 0, 0]  # one position: all it mixes
    made = torch.einsum("h,hd->d", own, out[0] / final.weight)
    expected = added if block.output_bias is None else added - block.output_bias
    assert relative(made, expected) < KERNEL


HYBRID = ("bamba", "falcon_h1", "jamba", "kimi_linear", "qwen3_next")
GATED, LATENT = "afmoe", "deepseek_v3"
"""Softmax layers that hold more than patterns."""


@pytest.mark.parametrize("family", [*HYBRID, GATED, LATENT])
def test_first_order_effects_are_the_derivative_with_all_that_layers_hold_answering(family: str):
    if family in HYBRID:
        model = model_of(family)
    else:
        language_model = model_of_family(family)
        model = ReplacementModel.from_huggingface(language_model, None, transcoder())
    graph = tracer.trace(model, PROMPT, max_features=20)
    found = tracer.attention_effects(model, graph)
    nodes, off, moved = graph.nodes.to_pylist(), 0.0, 0.0
    logits = [row for row, node in enumerate(nodes) if node["kind"] == "logit"]
    features = [row for row, node in enumerate(nodes) if node["kind"] == "feature"]
    for source in features[::5]:
        node = {name: nodes[source][name] for name in ("layer", "position", "feature")}
        up, down = (
            tracer.intervene(
                model, PROMPT, [Intervention(**node, scale=scale)], "constrained",
                layers=range(3), freeze_attention=False, freeze_norms=False,
            ).logits_before_cap[-1]
            for scale in (1.01, 0.99)
        )  # fmt: skip
        slope = (up - down) / 0.02
        expected = (slope - slope.mean())[[nodes[row]["token"] for row in logits]].numpy()
        effects = (
            graph.effect,
            found.beside(graph.effect, norms=False),
            found.beside(graph.effect),
        )
        parts = [part.toarray()[logits, source] for part in effects]
        off = max(off, abs(parts[2] - expected).max() / abs(expected).max())
        moved = max(moved, *(abs(one - parts[2]).max() / abs(expected).max() for one in parts[:2]))
    assert off < 1e-2  # differences of what kernels round to float32
    assert moved > 5e-2


@in_stream_case
def test_a_lens_reads_the_logits_at_every_site(family: str):
    assert wrong(tracer.local_lens(model_of(family), PROMPT)) < 2e-5


@family_case
def test_a_models_own_neurons_are_conserved_without_errors(family: str):
    language_model = hybrid_language_model(family)
    host = model_of(family).host
    model = ReplacementModel.from_huggingface(language_model, None, neurons(host))
    graph = tracer.trace(model, PROMPT, max_features=40)
    assert graph.metadata["conservation"]["relative"] < KERNEL
    errors = [node for node in graph.nodes.to_pylist() if node["kind"] == "error"]
    assert max(abs(node["activation"] or 0) for node in errors) < 1e-3


@pytest.mark.parametrize("options", [{"moe_latent_size": 6}, {"mlp_bias": False}], ids=str)
def test_experts_without_gates_are_conserved_between_maps_they_share(options: dict[str, Any]):
    language_model = hybrid_language_model("nemotron_h", **options)
    host = ReplacementModel.from_huggingface(language_model, None, transcoder()).host
    model = ReplacementModel(host, neurons(host))
    graph = tracer.trace(model, PROMPT, max_features=40)
    assert graph.metadata["conservation"]["relative"] < KERNEL
    assert off_interventions(model, graph, 4) < 1e-9
    errors = [node for node in graph.nodes.to_pylist() if node["kind"] == "error"]
    assert max(abs(node["activation"] or 0) for node in errors) < 1e-3


def test_a_picture_says_what_the_frozen_gates_hide(tmp_path: Path):
    graph = tracer.trace(model_of("qwen3_next"), PROMPT)
    assert graph.metadata["held"] == {"kernels": [0, 2], "factors": [1]}
    expected = "held, so not explained: decay, gates, keys, queries in 2 linear layers"
    for draw in (graph.render, graph.render_summary):
        draw(tmp_path / "picture.dot")
        text = (tmp_path / "picture.dot").read_text("utf-8")
        lines = re.findall(r'label="([^"]*?)(?:\\l)?"', text)
        assert expected in " ".join(lines)
    graph.save(tmp_path / "graph")
    assert tracer.AttributionGraph.load(tmp_path / "graph").metadata["held"]
    assert "held" not in tracer.trace(replacement_model("llama"), PROMPT).metadata


def _with_layer(local: LocalModel, **changes: Any) -> LocalModel:
    layers = list(local.layers)
    layers[2] = replace(layers[2], **changes)
    return replace(local, layers=layers)


def _around(**changes: Any) -> Callable[[LocalModel], LocalModel]:
    def change(local: LocalModel) -> LocalModel:
        known = local.layers[2].around
        assert known is not None
        return _with_layer(local, around=replace(known, **changes))

    return change


def _own_tap_alone(local: LocalModel) -> LocalModel:
    known = local.layers[2].around
    assert known is not None
    if known.taps is not None:
        return _around(taps=known.taps[:1])(local)
    pattern = local.layers[2].pattern  # of LFM2: its convolution
    assert isinstance(pattern, Tensor)
    own = torch.eye(pattern.shape[1], dtype=pattern.dtype)[:, None]
    return _with_layer(local, pattern=pattern * own)


def _one_head_for_another(local: LocalModel) -> LocalModel:
    pattern = local.layers[2].pattern
    assert isinstance(pattern, Tensor)
    return _with_layer(local, pattern=pattern.roll(1, 0))


DROPPED: dict[str, Callable[[LocalModel], LocalModel]] = {
    "convolution": _own_tap_alone,
    "slope of values": _around(values=None),
    "gate and norm of outputs": _around(outputs=None),
    "grouped heads": _one_head_for_another,
}


@pytest.mark.parametrize("dropped", DROPPED)
@family_case
def test_conservation_fails_when_a_part_is_dropped(family: str, dropped: str):
    got, expected = row_sums(model_of(family), DROPPED[dropped])
    assert float((got - expected).abs().max()) > 1e-3


ARGUMENTS = {
    "torch_chunk_gated_delta_rule": ("g", "beta", "query", "key"),
    "chunk_kimi_delta_attention": ("g", "beta", "query", "key"),
    "mamba2_chunk_scan": ("A", "dt", "B", "C"),
    "mamba_selective_scan": ("A", "dt", "B", "C"),
    "causal_conv1d_fn": ("weight",),
}
"""Of every kernel, what makes its pattern: decay, gates, keys and queries."""


@pytest.mark.parametrize("argument", range(4))
@family_case
def test_a_pattern_without_a_part_of_its_kernel_is_noticed(
    family: str, argument: int, monkeypatch: pytest.MonkeyPatch
):
    real = KernelPattern._mixed

    def without(self: KernelPattern, units: Tensor) -> Tensor:
        names = ARGUMENTS[self.function.__name__]
        name = names[argument % len(names)]
        kept = self.given.arguments[name]
        self.given.arguments[name] = kept.roll(1, 1) if kept.ndim == 4 else 0 * kept
        try:
            return real(self, units)
        finally:
            self.given.arguments[name] = kept

    monkeypatch.setattr(KernelPattern, "_mixed", without)
    with pytest.raises(ModelError, match=r"layer \d computes something else"):
        hybrid(family).record(PROMPT)


@pytest.mark.parametrize("part", ["values", "outputs", "taps"])
@family_case
def test_a_host_that_forgets_a_part_is_refused(family: str, part: str):
    model = model_of(family)
    block = model.host.blocks[2]
    if part == "taps" and block.taps is None:
        pytest.skip("its convolution is the pattern")
    watch = block.watch
    assert watch is not None

    def without(calls: dict[str, Call]) -> Factors:
        return replace(watch.factors(calls), **{part: None})

    changes = {"taps": None} if part == "taps" else {"watch": replace(watch, factors=without)}
    blocks = [*model.host.blocks[:2], replace(block, **changes)]
    host = replace(model.host, blocks=blocks)
    with pytest.raises(ModelError, match="layer 2 computes something else"):
        replace(model, host=host).record(PROMPT)


def test_a_host_that_forgets_the_bias_of_its_convolutions_is_refused():
    model = model_of("lfm2_biased")
    blocks = [replace(block, mixed_bias=None) for block in model.host.blocks]
    with pytest.raises(ModelError, match="layer 0 computes something else"):
        replace(model, host=replace(model.host, blocks=blocks)).record(PROMPT)


@family_case
def test_bfloat16_models_trace(family: str):
    graph = tracer.trace(hybrid(family, torch.bfloat16), PROMPT)
    assert graph.metadata["conservation"]["relative"] < 0.1


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_stream_of_another_type_than_the_weights_is_refused(family: str):
    model = hybrid_language_model(family, torch.bfloat16, residual_in_fp32=True)
    with pytest.raises(ModelError, match=r"keeps its stream in float32 .* load it in float32"):
        ReplacementModel.from_huggingface(model, None, transcoder())


@pytest.mark.parametrize("positions", [1, 7, 130])
@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_a_pattern_is_the_kernels_own_for_prompts_of_any_length(family: str, positions: int):
    language_model = hybrid_language_model(family, torch.float32, max_position_embeddings=256)
    model = ReplacementModel.from_huggingface(language_model, None, transcoder())
    tokens = [(3 * number) % 29 for number in range(positions)]
    pattern = model.record(tokens).layers[0].attention_pattern()
    heads = {"qwen3_next": 4, "kimi_linear": 3}[family]
    assert pattern.shape == (heads, positions, positions)
    assert torch.equal(pattern, pattern.tril())


def calling_what_it_holds(mixer: Any, kernel: Callable[..., Any]) -> None:
    """As layers of transformers 4.57 do."""
    mixer.held = kernel
    forward = type(mixer).forward
    forward = getattr(forward, "__wrapped__", forward)
    name = "torch_chunk_gated_delta_rule"
    names = {**forward.__globals__, name: lambda *args, **kwargs: mixer.held(*args, **kwargs)}
    own = FunctionType(forward.__code__, names, None, forward.__defaults__, forward.__closure__)
    mixer.forward = MethodType(own, mixer)


def test_layers_that_hold_their_kernel_are_heard_and_other_kernels_are_named():
    model = ReplacementModel.from_huggingface(
        hybrid_language_model("qwen3_next"), None, transcoder()
    )
    known = model.record(PROMPT)
    mixers = [block.attention for block in model.host.blocks if block.by_kernel]
    kernel = sys.modules[type(mixers[0]).__module__].torch_chunk_gated_delta_rule
    for mixer in mixers:
        calling_what_it_holds(mixer, kernel)
    again = model.record(PROMPT)
    for one, other in zip(known.layers, again.layers, strict=True):
        assert torch.equal(one.attention_pattern(), other.attention_pattern())
    assert all(mixer.held is kernel for mixer in mixers)
    mixers[0].held = lambda *args, **kwargs: kernel(*args, **kwargs)
    with pytest.raises(ModelError, match=r"layer 0 did not call .*torch_chunk_gated_delta_rule"):
        model.record(PROMPT)


def test_the_kernel_is_put_back_after_an_error():
    model = model_of("qwen3_next")
    place = sys.modules[type(model.host.blocks[0].attention).__module__]
    before = place.torch_chunk_gated_delta_rule
    with suppress(KeyboardInterrupt), kernel_patterns(model.host, {}, True):
        assert place.torch_chunk_gated_delta_rule is not before
        raise KeyboardInterrupt
    assert place.torch_chunk_gated_delta_rule is before
