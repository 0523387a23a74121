"""Interventions: the reference's four kinds, ranges, groups, directions, and continuations."""

import math
from typing import Any

import pytest
import torch

import tracer
from replacement_models.hooks import eager_attention, first_tensor, replaced_first
from replacement_models.recording import write_module
from tests.random_models import LAYERS, PROMPT, WIDTH, replacement_model
from tests.test_tracer_golden import CASES, Case, with_reference_weights
from tracer import Intervention, ReplacementModel, Steering, Supernode, TraceError
from tracer.interventions.generate import Sampling
from tracer.interventions.values import positions_in

KINDS: dict[str, dict[str, Any]] = {
    "direct": {"mode": "direct"},
    "frozen_attn": {"mode": "free", "freeze_attention": True},
    "free": {"mode": "free"},
    "range_1": {"mode": "constrained", "layers": range(1, 3)},
}
FAMILIES = ["gpt2", "gpt_neox", "llama", "mistral", "gemma3_text", "gpt_oss"]
PLACE = {"layer": 1, "position": 2, "feature": 3}


def of_kind(case: Case, kind: str) -> list[Intervention]:
    """The reference's interventions; those outside the range, which it drops, are left out."""
    wanted = next(one for one in case.meta["interventions"] if one["name"] == kind)
    low = 1 if kind == "range_1" else 0
    return [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for layer, position, feature, value in wanted["interventions"]
        if layer >= low
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_the_references(name: str, kind: str):
    case = Case(name)
    exact = case.meta["family"] == "gpt2"
    model = with_reference_weights(case) if exact else case.model("float64")
    change = tracer.intervene(model, case.meta["tokens"], of_kind(case, kind), **KINDS[kind])
    found = change.pre_activations if kind == "direct" else change.activations
    found[:, 0] = 0
    reference, limit = case.tensors("interventions"), 1e-9 if exact else 2e-5
    for got, part in ((found, "activations"), (change.logits, "logits")):
        torch.testing.assert_close(got, reference[f"{kind}.{part}"], rtol=0, atol=limit)


def test_constrained_to_every_layer_with_all_frozen_is_direct():
    model = replacement_model("llama", kind="cross_layer", skip=True)
    wanted = [Intervention(**PLACE, add=1.0)]
    direct = tracer.intervene(model, PROMPT, wanted)
    same = tracer.intervene(
        model, PROMPT, wanted, "constrained", layers=range(LAYERS), freeze_norms=True
    )
    assert torch.equal(direct.logits, same.logits)


def test_a_constrained_write_past_the_range_is_left_to_the_model():
    model = replacement_model("gpt2", kind="cross_layer")
    wanted = [Intervention(layer=0, position=2, feature=3, add=1.0)]
    change = tracer.intervene(model, PROMPT, wanted, "constrained", layers=range(1))
    row = model.transcoder.decoder_rows(0, torch.tensor([3]))[0, 0]
    block = model.host.blocks[0].mlp
    handle = block.register_forward_hook(lambda _, __, out: out + row * one_at(2)[:, None])
    try:
        with torch.no_grad():
            expected = model.host.run(PROMPT)
    finally:
        handle.remove()
    unfrozen = tracer.intervene(
        model, PROMPT, wanted, "constrained", layers=range(1), freeze_attention=False
    )
    torch.testing.assert_close(unfrozen.logits, expected, rtol=0, atol=1e-9)
    assert (change.logits - expected).abs().max() > 1e-6


@pytest.mark.parametrize("family", [*FAMILIES, "gptj", "gpt_neo"])
def test_patterns_before_and_after_are_those_that_the_model_attends_with(family: str):
    model = replacement_model(family, kind="cross_layer")
    wanted = [Intervention(layer=0, position=2, feature=3, add=1.0)]
    change = tracer.intervene(model, PROMPT, wanted, "free", patterns=True)
    recorded = [layer.attention_pattern() for layer in model.record(PROMPT).layers]
    row = model.transcoder.decoder_rows(0, torch.tensor([3]))[0]
    handles = [
        write_module(block, model.transcoder.write_at(layer)).register_forward_hook(
            lambda _, __, out, at=layer: replaced_first(
                out, first_tensor(out) + row[at] * one_at(2)[:, None]
            )
        )
        for layer, block in enumerate(model.host.blocks)
    ]
    changed: list[torch.Tensor] = []
    handles += [
        block.attention.register_forward_hook(lambda _, __, out: changed.append(out[1][0]))
        for block in model.host.blocks
    ]
    try:
        with torch.no_grad(), eager_attention(model.host.model):
            model.host.run(PROMPT)
    finally:
        for handle in handles:
            handle.remove()
    assert change.patterns is not None
    assert change.base.patterns is not None
    for found, expected in ((change.base.patterns, recorded), (change.patterns, changed)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    moved = [float((a - b).abs().max()) for a, b in zip(changed, recorded, strict=True)]
    assert moved[0] == 0
    assert max(moved) > 1e-6


def test_patterns_are_the_recorded_ones_where_attention_is_held_and_none_unasked():
    model, wanted = replacement_model("llama"), [Intervention(**PLACE, scale=0.0)]
    held = tracer.intervene(model, PROMPT, wanted, patterns=True)
    assert held.patterns is not None
    assert held.base.patterns is not None
    for one, other in zip(held.patterns, held.base.patterns, strict=True):
        assert torch.equal(one, other)
    bare = tracer.intervene(model, PROMPT, wanted, "free")
    assert bare.patterns is None
    assert bare.base.patterns is None
    seen = tracer.intervene(model, PROMPT, wanted, "free", patterns=True)
    torch.testing.assert_close(bare.logits, seen.logits, rtol=0, atol=1e-9)


def one_at(position: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(position), len(PROMPT)).double()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "constrained"}, "needs layers"),
        ({"mode": "free", "layers": range(2)}, "takes no layers"),
        ({"mode": "constrained", "layers": range(2, 3)}, "outside the constrained layers 2..2"),
        ({"mode": "constrained", "layers": range(9)}, "expected a range of layers within"),
        ({"mode": "constrained", "layers": range(1, 1)}, "expected a range of layers within"),
        ({"mode": "direct", "freeze_norms": False}, "freezes attention and norms"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(TraceError, match=said):
        tracer.intervene(replacement_model(), PROMPT, [Intervention(**PLACE, scale=0.0)], **options)


def test_a_supernode_acts_and_is_read_as_one():
    model = replacement_model("gpt2", kind="cross_layer")
    found = model.record(PROMPT).features
    chosen = [int(i) for i in (found.position == 4).nonzero()[:3, 0]]
    members = tuple((int(found.layer[i]), 4, int(found.feature[i])) for i in chosen)
    group = Supernode("texas", members)
    change = tracer.intervene(model, PROMPT, group.scaled(0.0), "free")
    apart = [
        Intervention(layer=layer, position=at, feature=feature, value=0.0)
        for layer, at, feature in members
    ]
    alike = tracer.intervene(model, PROMPT, apart, "free")
    torch.testing.assert_close(change.logits, alike.logits, rtol=0, atol=1e-12)
    total = float(found.activation[chosen].sum())
    assert group.activation(change.base.activations) == pytest.approx(total)


def test_steering_by_a_multiple_of_the_maximum_sets_that_activation():
    model = replacement_model("gpt2", kind="per_layer")
    maxima = tracer.feature_maxima(model, [PROMPT, PROMPT[:4]])
    found = model.record(PROMPT).features
    seen = (found.position > 0) & (found.layer == 1) & (found.feature == 3)
    expected = found.activation[seen].max() if seen.any() else 0.0
    assert maxima[1, 3] == pytest.approx(float(expected))
    [wanted] = Supernode("one", ((1, slice(2, None), 3),)).steered(2.5, maxima)
    assert wanted.value == pytest.approx(2.5 * float(expected))
    assert wanted.position == slice(2, None)


def test_changes_of_one_feature_at_one_place_add_up():
    model = replacement_model("gpt2", kind="cross_layer")
    twice, once = (
        tracer.intervene(model, PROMPT, [Intervention(**PLACE, add=x) for x in amounts])
        for amounts in ((0.5, 0.75), (1.25,))
    )
    torch.testing.assert_close(twice.logits, once.logits, rtol=0, atol=1e-12)
    assert float((once.logits - once.base.logits).abs().max()) > 1e-6


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
def test_maxima_are_over_all_positions_but_the_first_few(skip_positions: int):
    model = replacement_model("gpt2", kind="per_layer")
    maxima = tracer.feature_maxima(model, [PROMPT], skip_positions)
    found = model.record(PROMPT).features
    expected = torch.zeros_like(maxima)
    for row in range(len(found)):
        place = int(found.layer[row]), int(found.feature[row])
        if int(found.position[row]) >= skip_positions:
            expected[place] = max(float(expected[place]), float(found.activation[row]))
    assert {int(one) for one in found.position} >= {0, 1, 2}
    torch.testing.assert_close(maxima, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_adding_the_contrast_of_two_prompts_turns_one_into_the_other(layer: int):
    model = replacement_model("llama")
    other = (*PROMPT[:-1], 3)
    vector = tracer.contrast(model, [(other, PROMPT)], layer)
    steering = Steering(layer=layer, vector=vector, position=-1)
    change = tracer.intervene(model, PROMPT, [steering], "free")
    expected = model.record(other).logits[-1]
    if layer in (0, LAYERS):
        torch.testing.assert_close(change.logits[-1], expected, rtol=0, atol=1e-5)
    assert (change.logits[-1] - change.base.logits[-1]).abs().max() > 1e-3
    torch.testing.assert_close(change.logits[:-1], change.base.logits[:-1], rtol=0, atol=0)


def test_a_contrast_is_the_mean_over_pairs():
    model = replacement_model("gpt2")
    pairs = [(PROMPT, PROMPT[::-1]), (PROMPT[:3], PROMPT[2:])]
    apart = [tracer.contrast(model, [pair], 1) for pair in pairs]
    torch.testing.assert_close(tracer.contrast(model, pairs, 1), (apart[0] + apart[1]) / 2)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Steering(layer=4, vector=[0.0] * WIDTH), "layer 4 is not in 0..3"),
        (Steering(layer=0, vector=[0.0]), r"has shape \(1,\), expected \(16,\)"),
        (Steering(layer=0, vector=[float("nan")] * WIDTH), "finite"),
    ],
)
def test_directions_that_do_not_fit_are_refused(wanted: Steering, said: str):
    with pytest.raises(TraceError, match=said):
        tracer.intervene(replacement_model(), PROMPT, [wanted], "free")


def interventions() -> list[Intervention | Steering]:
    """Open-ended ones, one at a fixed position, and a direction."""
    vector = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    return [
        Intervention(layer=0, position=slice(2, None), feature=3, add=2.0),
        Intervention(layer=1, position=slice(-1, None), feature=5, value=1.5),
        Intervention(layer=2, position=1, feature=7, scale=-2.0),
        Steering(layer=1, vector=vector, position=slice(-1, None), scale=0.3),
    ]


def without_cache(model: Any, tokens: list[int], prompt: int) -> torch.Tensor:
    """Next-token logits from one pass over everything so far."""
    positions = {0: slice(2, None), 1: slice(prompt - 1, None), 2: 1}
    wanted = [
        Intervention(**{**vars(one), "position": positions[one.layer]})
        if isinstance(one, Intervention)
        else Steering(**{**vars(one), "position": slice(prompt - 1, None)})
        for one in interventions()
    ]
    return tracer.intervene(model, tokens, wanted, "free").logits[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_continuation_is_the_cache_free_one(family: str):
    model = replacement_model(family, kind="cross_layer")
    [found] = tracer.generate(model, [PROMPT], interventions(), max_new_tokens=6)
    tokens = list(PROMPT)
    for chosen, logits in zip(found.steered.tokens, found.steered.logits, strict=True):
        expected = without_cache(model, tokens, len(PROMPT))
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
        assert chosen == int(expected.argmax())
        tokens.append(chosen)
    plain = list(PROMPT)
    for chosen in found.plain.tokens:
        assert chosen == int(model.host.run(plain)[-1].argmax())
        plain.append(chosen)


def test_prompts_of_a_batch_do_not_touch_one_another():
    model = replacement_model("gpt2", kind="cross_layer")
    prompts = [PROMPT, PROMPT[:4], (*PROMPT[:5], 3), (4, 5, 6, 7)]
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.9}
    together = tracer.generate(model, prompts, interventions(), seed=7, **options)
    assert [one.tokens for one in together] == [tuple(prompt) for prompt in prompts]
    for index, prompt in enumerate(prompts):
        [alone] = tracer.generate(model, [prompt], interventions(), seed=7 + index, **options)
        assert alone.steered.tokens == together[index].steered.tokens
        assert alone.plain.tokens == together[index].plain.tokens


def test_without_interventions_a_prompt_is_continued_once():
    model = replacement_model("gpt2")
    rows: list[int] = []
    norm = model.host.final_norm.module
    handle = norm.register_forward_hook(lambda _, given, out: rows.append(len(given[0])))
    try:
        [changed] = tracer.generate(model, [PROMPT], interventions(), max_new_tokens=4)
        assert {*rows} == {2}
        rows.clear()
        [found] = tracer.generate(model, [PROMPT], max_new_tokens=4)
        assert {*rows} == {1}
    finally:
        handle.remove()
    assert found.plain.tokens == found.steered.tokens == changed.plain.tokens
    torch.testing.assert_close(found.plain.logits, changed.plain.logits)


def test_sampling_repeats_with_its_seed_and_differs_without():
    model = replacement_model("gpt2")

    def said(seed: int) -> tuple[int, ...]:
        [found] = tracer.generate(model, [PROMPT], max_new_tokens=8, temperature=2.0, seed=seed)
        assert found.plain.tokens == found.steered.tokens
        return found.plain.tokens

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1


def test_the_colder_the_likelier_and_the_odds_are_those_of_the_temperature():
    model = replacement_model("gpt2")
    cold, greedy = (
        tracer.generate(model, [PROMPT], max_new_tokens=8, temperature=t)[0] for t in (1e-4, 0.0)
    )
    assert cold.plain.tokens == greedy.plain.tokens
    sampling, draw = Sampling(1, 0.5, 0), torch.Generator().manual_seed(0)
    chosen = sampling.choose(torch.tensor([[0.0, 1.0]]).repeat(20_000, 1), [draw] * 20_000)
    assert sum(chosen) / 20_000 == pytest.approx(1 / (1 + math.exp(-2.0)), abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 11}, "17 tokens, but the model reads at most 16"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"seed": 1 << 62}, "seed is 4611686018427387904"),
        ({"seed": -1}, "seed is -1"),
        ({"interventions": [Intervention(layer=0, position=9, feature=0, add=1.0)],
          "max_new_tokens": 3}, "position 9 is not in -6..8"),
    ],
)  # fmt: skip
def test_continuations_that_cannot_be_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(TraceError, match=said):
        tracer.generate(replacement_model("gpt2"), [PROMPT], **options)


def test_a_text_ends_at_any_token_that_ends_one(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2")
    config = model.host.model.config
    monkeypatch.setattr(config, "eos_token_id", None)
    [whole] = tracer.generate(model, [PROMPT], max_new_tokens=8)
    said = whole.plain.tokens
    assert len(said) == 8
    for named, ends in ((said[2], {said[2]}), ([WIDTH + 99, said[3], said[1]], {said[3], said[1]})):
        monkeypatch.setattr(config, "eos_token_id", named)
        [found] = tracer.generate(model, [PROMPT], max_new_tokens=8)
        end = min(said.index(token) for token in ends)
        assert found.plain.tokens == said[:end]
        assert len(found.plain.logits) == end


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (slice(0, 3), [0, 1, 2]), (slice(None, 2), [0, 1]), (slice(-2, None), [4, 5, 6, 7]),
        (slice(0, 0), []), (slice(1, -1), [1, 2, 3, 4]), (slice(-9, 1), [0]),
        (slice(None, None, 3), [0, 3, 6]), (0, [0]), (-1, [5]), (7, [7]), (8, []),
    ],
)  # fmt: skip
def test_positions_count_from_the_prompts_start_or_end(position: Any, expected: list[int]):
    assert positions_in(position, 6, 0, 8) == expected
    assert positions_in(position, 6, 6, 8) == [at - 6 for at in expected if at >= 6]


def test_an_answer_is_refused_where_it_is_no_number_at_a_single_position():
    model = replacement_model("gpt2")
    wanted = [Intervention(layer=LAYERS - 1, position=-1, feature=3, add=1e200)]
    with pytest.raises(TraceError, match="the answer is no number after these changes"):
        tracer.intervene(model, PROMPT, wanted, "free")


def test_a_direction_is_added_as_often_as_asked_and_removed_as_far():
    stream, vector = torch.randn(3, WIDTH).double(), torch.linspace(-1, 2, WIDTH).double()
    for scale in (0.25, -3.0):
        added = Steering(layer=0, vector=vector, scale=scale).changed(stream)
        torch.testing.assert_close(added, stream + scale * vector)
        left = Steering(layer=0, vector=vector, scale=scale, remove=True).changed(stream)
        torch.testing.assert_close(left @ vector, (1 - scale) * (stream @ vector))


def test_no_hook_outlives_an_exception(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2")

    def broken(*_: Any) -> Any:
        raise RuntimeError("stop")

    monkeypatch.setattr(type(model.transcoder), "decoder_rows", broken)
    with pytest.raises(RuntimeError, match="stop"):
        tracer.generate(model, [PROMPT], interventions(), max_new_tokens=3)
    for module in model.host.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_group_of_a_graph_is_changed_as_its_features_are():
    model = ReplacementModel.load()
    prompt = "The opposite of hot is"
    graph = tracer.trace(model, prompt)
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == "feature"][:2]
    grouped = graph.group("hot", [row["id"] for row in rows])
    group = Supernode.of(grouped, "hot")
    assert group.features == tuple((r["layer"], r["position"], r["feature"]) for r in rows)
    single = [
        Intervention(layer=r["layer"], position=r["position"], feature=r["feature"], value=2.0)
        for r in rows
    ]
    assert group.set(2.0) == single
    assert [one.add for one in group.added(1.0)] == [1.0, 1.0]
    expected = tracer.intervene(model, prompt, single, "free").logits
    assert torch.equal(tracer.intervene(model, prompt, group.set(2.0), "free").logits, expected)
    token = next(row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "embedding")
    with pytest.raises(TraceError, match=f"the member {token}, embedding at embed"):
        Supernode.of(graph.group("mixed", [token]), "mixed")
    with pytest.raises(tracer.GraphError, match="no group has the name 'nil'"):
        Supernode.of(grouped, "nil")
