"""Influence of training sentences, beside plain gradients."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import benchmarks.influence as benchmark
from replacement_models import ModelError, ReplacementModel
from replacement_models.tiny.recipe.influence import (
    Rows,
    asked,
    drawn,
    influences,
    influences_under,
    language_model,
    rows_of,
    with_linear,
)

SENTENCES = ["the [opposite] of {hot} is [cold].", "<one two> three", "four [five]"]


def model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def some_rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (count, 8), generator=generator)
    lengths = torch.randint(4, 9, (count,), generator=generator)
    counts = torch.rand(count, 8, generator=generator)
    inside = torch.arange(8)[None] < lengths[:, None]
    return Rows(torch.where(inside, ids, 0), torch.where(inside, counts, 0.0), lengths)


def gradients(net: GPT2LMHeadModel, rows: Rows) -> torch.Tensor:
    """Of each row's loss by the matrices and biases of the blocks: (rows, parameters)."""
    linear = with_linear(net)
    layers = [one for one in linear.transformer.h.modules() if isinstance(one, nn.Linear)]
    weights = [weight for layer in layers for weight in layer.parameters()]
    found = []
    for loss in rows.loss(linear):
        each = torch.autograd.grad(loss, weights, retain_graph=True)
        found.append(torch.cat([one.flatten() for one in each]))
    return torch.stack(found)


def test_linear_layers_say_what_the_model_says():
    net, rows = model(), some_rows(3, 1)
    linear = with_linear(net)
    with torch.no_grad():
        assert torch.allclose(linear(rows.ids).logits, net(rows.ids).logits, atol=1e-6)
    assert sum(isinstance(one, nn.Linear) for one in linear.transformer.modules()) == 8
    assert not any(isinstance(one, nn.Linear) for one in net.transformer.modules())


def test_under_heavy_damping_influence_is_the_product_of_gradients():
    """The curvature is then nothing beside the damping, which divides."""
    pytest.importorskip("kronfluence")
    net, trained, answers = model(), some_rows(9, 1), some_rows(2, 2)
    damping = 1e5
    light, found = influences_under(net, trained, answers, (None, damping))
    found = found * damping * len(trained)
    assert not torch.allclose(light, found)
    expected = gradients(net, answers) @ gradients(net, trained).T
    assert torch.allclose(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_curvature_takes_from_directions_that_all_sentences_share():
    """Without heavy damping the order of sentences is not that of plain products."""
    pytest.importorskip("kronfluence")
    net, trained, answers = model(), some_rows(9, 1), some_rows(2, 2)
    found = influences(net, trained, answers)
    again = influences(net, trained, answers)
    assert torch.equal(found, again)
    expected = gradients(net, answers) @ gradients(net, trained).T
    assert float(torch.corrcoef(torch.stack([found[0], expected[0]]))[0, 1]) < 0.999
    own = influences(net, trained, trained)
    assert (own.diagonal() > 0).all()
    assert (own.diagonal() >= own.max(1).values * 0.999).all()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kronfluence", None)
    with pytest.raises(ModelError, match=r"kronfluence: pip install 'tracer\[influence\]'"):
        influences(model(), some_rows(2, 1), some_rows(1, 2))


def test_answers_count_and_what_nobody_could_predict_does_not():
    replaced = ReplacementModel.load()
    rows = rows_of(SENTENCES, replaced.tokenizer)
    assert rows.lengths.tolist() == [8, 4, 3]
    assert rows.counts[0, :8].tolist() == pytest.approx([0, 0.2, 1, 0.2, 0.2, 0.2, 1, 0.2])
    assert rows.counts[1].tolist() == pytest.approx([0, 0, 0, 0.2, 0, 0, 0, 0])
    assert rows.counts[2].tolist() == pytest.approx([0, 0.2, 1, 0, 0, 0, 0, 0])
    assert rows.those([2]).ids[0, :3].tolist() == rows.ids[2, :3].tolist()
    question = rows_of([asked("the opposite of hot is", "cold")], replaced.tokenizer)
    net, _ = language_model(replaced)
    with torch.no_grad():
        logits = net(question.ids[:, :-1]).logits[0, -1].log_softmax(-1)
        assert float(question.loss(net)[0]) == pytest.approx(-float(logits[question.ids[0, -1]]))


def test_a_sentence_that_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="a sentence has 71 tokens, expected at most 64"):
        rows_of([" ".join(["one"] * 70)], ReplacementModel.load().tokenizer)


# What the benchmark makes of it


def test_groups_are_of_one_size_and_about_what_they_are_named_for():
    _, source = language_model(ReplacementModel.load())
    cut = benchmark.sliced(source, benchmark.Sizes(600, 6, 3, 6, 2))
    assert {len(group) for group in cut.groups.values()} == {6}
    assert len(cut.groups) == 11
    assert list(cut.questions) == list(cut.groups)[:9]
    for name in list(cut.groups)[:3]:
        for number in cut.groups[name]:
            assert name in benchmark.states_of(cut.marked[number], source)
    for number in cut.groups["opposites de"]:
        assert "Gegenteil" in cut.marked[number]
    assert cut.marked == drawn(source, 600, benchmark.SEED)


def test_a_pass_without_sentences_forgets_what_they_say():
    replaced = ReplacementModel.load()
    net, _ = language_model(replaced)
    rows = rows_of(["the number after two is [nine]."] * 3 + ["one two"] * 3, replaced.tokenizer)
    answers = rows_of([asked("the number after two is", "nine")], replaced.tokenizer)
    whole = benchmark.said(benchmark.passed(net, rows), answers)
    same = benchmark.said(benchmark.passed(net, rows), answers)
    without = benchmark.said(benchmark.passed(net, rows, [0, 1, 2]), answers)
    assert whole == same
    assert whole > without


def test_correlations_leave_out_a_questions_own_group():
    measured = np.array([[9.0, 1, 2, 3], [1, 9, 2, 3]])
    predicted = np.array([[9.0, 3, 2, 1], [1, 9, 2, 3]])
    found = benchmark.correlations(predicted, measured)
    assert found["groups that are not its own"][0] == 0.0  # -1 and 1
    assert found["all groups"][0] == pytest.approx((0.2 + 1) / 2)
    assert found["questions whose own group is predicted to matter most"] == 2


def test_every_part_of_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        benchmark,
        "influences_under",
        lambda model, rows, answers, dampings: torch.rand(len(dampings), len(answers), len(rows)),
    )
    found = benchmark.measured(benchmark.Sizes(120, 2, 1, 2, 1))
    assert np.shape(found["predicted"]) == np.shape(found["measured"]) == (3, 4)
    assert set(found["rank correlation, low, high"]) == {
        *benchmark.DAMPINGS,
        "words in common",
        "chance",
    }
