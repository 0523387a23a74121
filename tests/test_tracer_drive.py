"""The search for texts that drive a feature: what it says it found is what the model does."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import tracer
from replacement_models.sites import Site
from replacement_models.text.packing import marks
from tests.random_models import VOCABULARY
from tests.test_cli import SMALL, refused, succeed
from tests.test_tracer_features_build import MODELS, SETTINGS, SPECIAL, texts
from tests.test_tracer_monitoring import graph_with_groups, plain
from tracer import Directions, FeatureStore, ReplacementModel, TraceError, Watch
from tracer.monitoring.swaps import ordinary, slopes

SEARCH = {"length": 4, "beam": 2, "candidates": 16, "budget": 400}


def front(model: ReplacementModel) -> list[int]:
    return list(marks(model)[0])


@pytest.mark.parametrize("name", ["cross_layer", "jump_relu", "topk", "neurons"])
@pytest.mark.parametrize("kind", ["feature", "group", "direction"])
def test_what_is_found_is_what_a_recording_says(name: str, kind: str, tmp_path: Path):
    model = MODELS[name]()
    vectors = torch.randn(1, model.host.d_model, generator=torch.Generator().manual_seed(0))
    watch = {
        "feature": Watch.feature(1, 3),
        "group": Watch.group(graph_with_groups(tmp_path / "g"), "two"),
        "direction": Watch.direction(
            Directions(vectors, ("d",), Site.parse("resid_pre.2"), {}),
        ),
    }[kind]
    found = tracer.drive(model, watch, **SEARCH)
    assert found.name == watch.name
    assert found.evaluated <= SEARCH["budget"]
    activations = [one.activation for one in found.found]
    assert activations == sorted(activations, reverse=True)
    assert len(found.found) == SEARCH["beam"]
    for one in found.found:
        assert len(one.tokens) == SEARCH["length"]
        assert not SPECIAL & {*one.tokens}
        values = plain(model, [*front(model), *one.tokens], watch)
        assert one.activation == pytest.approx(values.max(), rel=1e-6, abs=1e-7)
        assert values[one.position] == pytest.approx(values.max())
    assert found.history[-1][1] == max(activations)
    assert [value for _, value in found.history] == sorted(value for _, value in found.history)


def test_two_tokens_are_driven_almost_as_far_as_any_two_drive():
    model = MODELS["jump_relu"]()
    watch = Watch.feature(1, 3)
    allowed = [token for token in range(VOCABULARY) if token not in SPECIAL]
    every = [plain(model, [*front(model), *ids], watch).max() for ids in product(allowed, repeat=2)]
    found = tracer.drive(model, watch, length=2, beam=3, candidates=12, budget=250)
    assert found.evaluated < len(every) / 2
    assert np.mean(found.found[0].activation >= np.array(every)) > 0.99


def test_the_search_beats_as_many_texts_at_random():
    model, beaten = MODELS["topk"](), 0
    source = np.random.default_rng(0)
    for feature in range(6):
        watch = Watch.feature(2, feature)
        found = tracer.drive(model, watch, **SEARCH)
        random = [
            plain(model, [*front(model), *source.integers(3, VOCABULARY, 4).tolist()], watch).max()
            for _ in range(100)
        ]
        beaten += found.found[0].activation > max(random)
    assert beaten >= 5


def test_the_same_seed_finds_the_same_and_the_process_is_left_alone():
    model, state = MODELS["jump_relu"](), torch.random.get_rng_state()
    first, again = (tracer.drive(model, (1, 2), **SEARCH, seed=5) for _ in range(2))
    assert first == again
    assert tracer.drive(model, (1, 2), **SEARCH, seed=6).history != first.history
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.host.model.parameters())


def test_a_start_is_kept_where_nothing_better_is_found_and_changed_where_there_is():
    model = MODELS["jump_relu"]()
    start = [5, 9, 14, 20, 11]
    found = tracer.drive(model, (1, 2), start=start, **SEARCH)
    assert found.start == pytest.approx(
        plain(model, [*front(model), *start], Watch.feature(1, 2)).max(), abs=1e-7
    )
    assert found.found[0].activation >= found.start
    assert len(found.found[0].tokens) == len(start)


def test_it_is_compared_with_the_corpus(tmp_path: Path):
    model = MODELS["topk"]()
    store = FeatureStore.build(model, texts(), tmp_path / "s", **SETTINGS)
    found = tracer.drive(model, (1, 3), store=store, **SEARCH)
    assert found.corpus == store[1, 3].maximum
    assert found.ratio == found.found[0].activation / store[1, 3].maximum
    group = Watch.group(graph_with_groups(tmp_path / "g"), "two")
    both = tracer.drive(model, group, store=store, **SEARCH)
    assert both.corpus == pytest.approx(store[0, 3].maximum + store[2, 4].maximum)
    with pytest.raises(TraceError, match="belongs to the dictionary"):
        tracer.drive(MODELS["jump_relu"](), (1, 3), store=store, **SEARCH)


def test_slopes_are_the_change_to_first_order():
    model, watch = MODELS["neurons"](), Watch.feature(1, 2)
    ids = (4, 7, 11, 6)
    gains = slopes(model, [ids], watch, 1)[0]
    assert gains.shape == (4, VOCABULARY)
    assert torch.allclose(gains[range(4), ids], torch.zeros(4, dtype=gains.dtype), atol=1e-12)
    table = model.host.embedding.weight
    step = 1e-3  # transformers norms in float32
    with torch.no_grad():
        before = table[ids[2]].clone()
        base = plain(model, list(ids), watch).max()
        table[ids[2]] += step * (table[9] - before)  # token 11 stands at one place only
        moved = plain(model, list(ids), watch).max()
        table[ids[2]] = before
    assert (moved - base) / step == pytest.approx(float(gains[2, 9]), rel=2e-2, abs=1e-4)


def test_only_tokens_that_text_can_hold_are_tried():
    model = ReplacementModel.load()
    allowed = ordinary(model)
    assert not allowed[list(model.tokenizer.all_special_ids)].any()
    assert all(model.tokenizer.decode([token]) for token in allowed.nonzero()[:50, 0].tolist())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "expected 1 or more each"),
        ({"budget": 10}, "a budget of a round, 34, or more"),
        ({"length": 40}, "40 tokens, but the model reads at most"),
    ],
)
def test_a_search_that_cannot_be_is_refused(settings: dict[str, int], said: str):
    with pytest.raises(TraceError, match=said):
        tracer.drive(MODELS["topk"](), (1, 2), **{**SEARCH, **settings})
    with pytest.raises(TraceError, match="layer 9 has no features"):
        tracer.drive(MODELS["topk"](), (9, 2), **SEARCH)


def test_the_command_prints_what_it_found_and_shares_defaults():
    from tests.test_cli import python_defaults
    from tracer.commands.drive import drive
    from tracer.commands.monitor import monitor

    flags = ("--budget", "200", "--candidates", "16", "--beam", "2", "--length", "3")
    said = succeed("drive", "1/3", *flags, *SMALL)
    assert said.startswith("1/3\tas text\tat\ttext\n")
    assert "texts run\t" in said
    assert "expected one of L/F, --group and --direction, got 0" in refused("drive")
    assert "got 2" in refused("drive", "1/3", "--group", "g:x")
    assert "'five' is not L/F" in refused("drive", "five")
    for command, arguments, function in (
        (drive, ["1/3"], tracer.drive),
        (monitor, ["s", "--features", "0/1"], tracer.monitor),
    ):
        shown = command.make_context(command.name, arguments).params
        expected = python_defaults(function)
        assert {name: shown[name] for name in expected if name in shown} == {
            name: value for name, value in expected.items() if name in shown
        }
