"""Causal scrubbing: what is put where, by hand, and a hypothesis that should fail."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import tracer
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from tests.random_models import LAYERS, PROMPT, replacement_model
from tracer import Intervention, TraceError
from tracer.interventions.values import Supernode
from tracer.validation.scrubbing import Claim, Hypothesis, Scrubbed, along, scrub
from tracer.validation.subject import subject

OTHERS = ((1, 3, 12, 8, 22, 4), (1, 9, 3, 3, 14, 20), (1, 18, 6, 25, 2, 11))
VALUE = {PROMPT: "a", OTHERS[0]: "a", OTHERS[1]: "a", OTHERS[2]: "b"}.__getitem__
LOW, MIDDLE, HIGH = (0, 2, 5), (1, 3, 7), (2, 5, 11)
Place = tuple[int, int, int]


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 4]


def claim(place: Place, *reads: str, value: Any = VALUE) -> Claim:
    return Claim(Supernode(str(place), (place,)), value, reads)


def ran(model: ReplacementModel, prompt: Sequence[int], given: dict[Place, float]) -> Any:
    """A prompt with some features set, all MLP outputs as recorded, the rest recomputed."""
    changes = [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for (layer, position, feature), value in given.items()
    ]
    how = {"layers": range(LAYERS), "freeze_attention": False, "freeze_norms": False}
    return tracer.intervene(model, prompt, changes, "constrained", **how)


def clean(model: ReplacementModel, prompt: Sequence[int], place: Place) -> float:
    return float(tracer.intervene(model, prompt, [], "free").activations[place])


def answers(model: ReplacementModel, given: dict[Place, float]) -> list[float]:
    """The metric of every random prompt with some features set."""
    runs = [ran(model, prompt, given).logits_before_cap[-1:] for prompt in OTHERS]
    return [float(metric(logits)[0]) for logits in runs]


def among(found: Sequence[float], expected: Sequence[float]) -> set[int]:
    """Which of the expected values were found; every one found must be expected."""
    gaps = torch.tensor(found)[:, None] - torch.tensor(expected)
    assert float(gaps.abs().min(1).values.max()) < 1e-9
    return set(gaps.abs().argmin(1).tolist())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("options", [{"skip": True}, {"kind": "per_layer", "activation": "topk"}])
def test_resampled_from_itself_a_prompt_is_as_it_was(family: str, options: dict[str, Any]):
    model = replacement_model(family, **options)
    claims = (claim(LOW), claim(MIDDLE, str(LOW)), claim(HIGH, str(LOW), str(MIDDLE)))
    stated = Hypothesis("same", claims, (str(HIGH), str(LOW)), (PROMPT,))
    found = scrub(model, PROMPT, stated, metric, draws=3)
    assert found.each == pytest.approx([found.clean] * 3, abs=2e-5)
    assert found.control == ()
    assert found.donors == pytest.approx(found.clean)
    assert found.survives is None or found.survives == found.survives


@pytest.mark.parametrize("skip", [False, True])
def test_a_group_that_reads_the_prompt_has_its_value_in_a_prompt_that_agrees(skip: bool):
    model = replacement_model("gpt2", skip=skip)
    low, _, _ = strongest(model)
    stated = Hypothesis("one", (claim(low),), (str(low),), OTHERS)
    found = scrub(model, PROMPT, stated, metric, draws=60)
    agree = [x for one in OTHERS[:2] for x in answers(model, {low: clean(model, one, low)})]
    assert len(among(found.each, agree)) == len(set(agree)) == 6
    disagree = answers(model, {low: clean(model, OTHERS[2], low)})
    assert len(among(found.control, disagree)) == len(set(disagree))


def test_a_group_that_reads_another_is_found_from_it_in_a_random_prompt():
    model = replacement_model("gpt2")
    low, middle, _ = strongest(model)
    claims = (claim(low), claim(middle, str(low)))
    stated = Hypothesis("two", claims, (str(middle),), OTHERS)
    found = scrub(model, PROMPT, stated, metric, draws=200)
    expected = []
    for donor in OTHERS[:2]:
        given = {low: clean(model, donor, low)}
        values = [float(ran(model, one, given).activations[middle]) for one in OTHERS]
        expected += [answer for value in values for answer in answers(model, {middle: value})]
    assert len(among(found.each, expected)) == len(set(expected)) > 9


def test_the_lower_member_reaches_the_higher_one_within_a_group():
    model = replacement_model("gpt2")
    low, middle, high = strongest(model)
    both = Supernode("both", (middle, high))
    value = {one: at for at, one in enumerate((PROMPT, *OTHERS[:2]))}
    value[PROMPT] = value[OTHERS[0]]  # the lowest group comes from the first, all else from either
    claims = (claim(low, value=value.__getitem__), Claim(both, lambda _: 0, (str(low),)))
    stated = Hypothesis("inner", claims, ("both",), OTHERS[:2])
    found = scrub(model, PROMPT, stated, metric, draws=60)
    expected = []
    for donor in OTHERS[:2]:
        given = {low: clean(model, donor, low)}
        for drawn in OTHERS[:2]:
            lower = float(ran(model, drawn, given).activations[middle])
            higher = float(ran(model, drawn, {**given, middle: lower}).activations[high])
            expected += answers(model, {middle: lower, high: higher})[:2]
    assert len(among(found.each, expected)) == len(set(expected)) > 4


def strongest(model: ReplacementModel) -> tuple[Place, Place, Place]:
    """Features of three layers, active in two prompts, with effects on those above."""
    graph = tracer.trace(model, OTHERS[0])
    active = [tracer.intervene(model, one, [], "free").activations for one in OTHERS[:2]]
    nodes = [node for node in graph.nodes.to_pylist() if node["kind"] == "feature"]
    shared = [node for node in nodes if all(float(one[place_of(node)]) for one in active)]
    row = {name: at for at, name in enumerate(graph.nodes["id"].to_pylist())}
    effect = abs(graph.effect.toarray())
    low, middle, high = ([n for n in shared if n["layer"] == layer] for layer in range(LAYERS))
    chains = itertools.product(low, middle, high)

    def weakest(chain: tuple[dict[str, Any], ...]) -> float:
        a, b, c = (row[node["id"]] for node in chain)
        return float(min(effect[b, a], effect[c, b], effect[c, a]))

    a, b, c = (place_of(node) for node in max(chains, key=weakest))
    return a, b, c


def test_what_two_groups_read_is_drawn_once_for_each():
    model = replacement_model("gpt2")
    low, middle, high = strongest(model)
    value = lambda _: 0  # noqa: E731
    claims = (
        claim(low, value=value),
        claim(middle, str(low), value=value),
        claim(high, str(low), value=value),
    )
    stated = Hypothesis("tree", claims, (str(middle), str(high)), OTHERS[:2])
    found = scrub(model, PROMPT, stated, metric, draws=300)
    same, apart = [], []
    for left in OTHERS[:2]:
        for right in OTHERS[:2]:
            for one in OTHERS[:2]:
                a = ran(model, one, {low: clean(model, left, low)}).activations[middle]
                for other in OTHERS[:2]:
                    b = ran(model, other, {low: clean(model, right, low)}).activations[high]
                    given = {middle: float(a), high: float(b)}
                    (same if left == right else apart).extend(answers(model, given)[:2])
    among(found.each, [*same, *apart])
    gaps = torch.tensor(found.each)[:, None] - torch.tensor(same)
    assert float(gaps.abs().min(1).values.max()) > 1e-4, "both groups always read the same draw"


def test_draws_are_as_many_as_asked_for_and_seeded():
    model = replacement_model("gpt2")
    stated = Hypothesis("one", (claim(MIDDLE),), (str(MIDDLE),), OTHERS)
    first, again, other = (scrub(model, PROMPT, stated, metric, 9, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.each != other.each
    assert len(first.each) == len(first.control) == 9


def test_shares_are_of_the_gap_between_donors_and_clean():
    found = Scrubbed("s", clean=5.0, each=(5.0, 3.0, 1.0), control=(1.0, -1.0), donors=1.0)
    assert found.survives == pytest.approx(0.5)
    assert found.control_survives == pytest.approx(-0.25)
    said = found.summary()
    assert said["spread"]["median"] == pytest.approx(0.5)
    assert said["spread"]["below_half"] == pytest.approx(1 / 3)
    assert said["control_spread"]["count"] == 2
    assert replace(found, control=()).control_survives is None
    assert replace(found, donors=5.0).survives is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Hypothesis("h", (), ("x",), OTHERS), "needs claims, what the answer reads"),
        (lambda: Hypothesis("h", (claim(LOW),), (), OTHERS), "needs claims, what the answer reads"),
        (lambda: Hypothesis("h", (claim(LOW),), (str(LOW),), ()), "needs claims, what the answer"),
        (lambda: Hypothesis("h", (claim(LOW),), ("x",), OTHERS), "reads 'x', expected one of"),
        (
            lambda: Hypothesis("h", (claim(LOW, str(LOW)),), (str(LOW),), OTHERS),
            "before it: none",
        ),
        (lambda: Hypothesis("h", (claim(LOW),) * 2, (str(LOW),), OTHERS), "twice"),
    ],
)
def test_a_hypothesis_that_cannot_be_is_refused(made: Any, said: str):
    with pytest.raises(TraceError, match=said):
        made()


@pytest.mark.parametrize(
    ("place", "prompts", "said"),
    [
        (LOW, (*OTHERS, (1, 6, 2, 11)), "has 4 tokens, expected 6"),
        (LOW, OTHERS[2:], "no prompt agrees with the one to explain on .* says 'a'"),
        ((0, 2, 99), OTHERS, "feature 99 is not in"),
        ((0, 9, 5), OTHERS, "position 9 is not in"),
        ((7, 2, 5), OTHERS, "layer 7 is not in"),
    ],
)
def test_what_cannot_be_scrubbed_is_refused(place: Place, prompts: Any, said: str):
    model = replacement_model("gpt2")
    value = {**dict.fromkeys([PROMPT, *OTHERS[:2]], "a"), OTHERS[2]: "b"}.get
    stated = Hypothesis("h", (claim(place, value=value),), (str(place),), prompts)
    with pytest.raises(TraceError, match=said):
        scrub(model, PROMPT, stated, metric)


def test_groups_read_one_another_along_the_edges_of_a_pruned_graph():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT).prune(0.95, 0.8)
    nodes = graph.nodes.to_pylist()
    ends = zip(graph.edges["source"].to_pylist(), graph.edges["target"].to_pylist(), strict=True)
    joined = {
        tuple("logit" if n["kind"] == "logit" else place_of(n) for n in (nodes[a], nodes[b]))
        for a, b in ends
    }
    places = [place_of(node) for node in nodes if node["kind"] == "feature"]
    stated = along(graph, "edges", [claim(place) for place in places], OTHERS)
    assert any(one.reads for one in stated.claims)
    assert 0 < len(stated.answer) < len(places)
    for place, one in zip(places, stated.claims, strict=True):
        expected = {str(source) for source in places if (source, place) in joined}
        assert set(one.reads) == expected
        assert (str(place) in stated.answer) == ((place, "logit") in joined)


def place_of(node: dict[str, Any]) -> Place:
    return node["layer"], node["position"], node["feature"]


def test_a_validation_says_what_was_scrubbed():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT)
    stated = Hypothesis("one", (claim(MIDDLE),), (str(MIDDLE),), OTHERS)
    summary = tracer.validate(model, graph, hypotheses=[stated]).summary
    lead = subject(model, graph).aim.lead
    assert summary["scrubbing"] == [scrub(model, PROMPT, stated, lead).summary()]
    [entry] = [one for one in summary["verdict"]["evidence"] if one["kind"] == "scrubbing"]
    assert entry["measured"]
    assert entry["value"] == summary["scrubbing"][0]["survives"]
    assert entry["control"] == summary["scrubbing"][0]["control"]


def test_the_demos_circuit_survives_as_far_as_it_stands_for_the_state():
    model = ReplacementModel.load()
    cities, asked = split_cities(load_facts()), "The capital of the state containing {} is"
    graph = tracer.trace(model, asked.format("Dallas"))
    about = subject(model, graph)
    fit = [one for one in cities.seen if len(model.tokenize(asked.format(one))) == 9]
    texan = [one for one in fit if cities.state_of[one] == "Texas"]
    foreign = [one for one in fit if cities.state_of[one] != "Texas"][::4]
    state = {asked.format(one): cities.state_of[one] for one in [*texan, *foreign, "Dallas"]}
    features = [place_of(n) for n in graph.prune().nodes.to_pylist() if n["kind"] == "feature"]
    claims = [
        Claim(Supernode("question", tuple(p for p in features if p[1] < 7)), lambda _: "capital"),
        Claim(Supernode("city", tuple(p for p in features if p[1] == 7)), state.__getitem__),
        Claim(Supernode("answer", tuple(p for p in features if p[1] == 8)), state.__getitem__),
    ]
    prompts = [asked.format(one) for one in [*texan, *foreign]]
    stated = along(graph.prune(), "the city's state", claims, prompts)
    assert stated.claims[2].reads == ("question", "city")
    found = scrub(model, asked.format("Dallas"), stated, about.aim.lead, draws=128)
    assert found.survives is not None
    assert found.control_survives is not None
    assert 0.2 < found.survives < 0.9, "some Texan cities have features of their own"
    assert abs(found.control_survives) < 0.2
    assert found.summary()["spread"]["below_half"] > 0.3
