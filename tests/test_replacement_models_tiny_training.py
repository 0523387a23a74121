"""How the embedded default was trained, step by step, against plain versions of each step."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.tiny.recipe import corpus, train_model, train_transcoders
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.train_model import Batch, ModelRecipe, Pupil, Stage
from replacement_models.tiny.recipe.train_transcoders import (
    Recorded,
    Trainee,
    TranscoderRecipe,
    TranscoderTraining,
)
from tests.test_replacement_models_tiny import CITIES, FACTS, SMALL

LAYERS, TOKENS, WIDTH = 3, 80, 8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model")


@pytest.fixture(scope="module")
def pupil(tokenizer: PreTrainedTokenizerFast) -> Pupil:
    source = corpus.Source(FACTS, CITIES, CITIES.seen, corpus.whole_words(tokenizer))
    return Pupil(tokenizer, source, source, Path("none"))


RECIPE = ModelRecipe(width=16, layers=4, heads=2, context=32, rows=6)
STAGE = Stage(3, 110, 0.01, 0.1, corpus.FAMILIES, seed=5, adam_rate=3e-3)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    return train_model.new_model(RECIPE, tokenizer)


# The language model


def test_a_stage_of_the_model_warms_up_and_falls_to_its_final_share():
    rates = [train_model.rate(step, STAGE, warmup=10) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 0.55, 0.1])
    at_once = replace(STAGE, horizon=10)
    assert train_model.rate(10, at_once, warmup=10) == pytest.approx(1)


def test_matrices_inside_blocks_are_muons_and_the_rest_adams(model: GPT2LMHeadModel):
    muon, adam = train_model.optimizers(model, RECIPE, STAGE)
    named = {id(weight): name for name, weight in model.named_parameters()}
    [inside], [rest] = muon.param_groups, adam.param_groups
    matrices = {named[id(weight)] for weight in inside["params"]}
    assert matrices == {
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(4)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    others = {named[id(weight)] for weight in rest["params"]}
    assert others == set(named.values()) - matrices - {"transformer.wte.weight"}
    assert (inside["lr"], inside["weight_decay"]) == (0.01, RECIPE.decay)
    assert (rest["lr"], rest["weight_decay"], rest["betas"]) == (3e-3, 0.0, (0.9, 0.98))


def test_every_answer_counts_some_of_the_rest_and_no_noise(pupil: Pupil):
    found = list(train_model.batches(RECIPE, replace(STAGE, steps=40), pupil))
    again = next(train_model.batches(RECIPE, STAGE, pupil))
    assert len(found) == 40
    assert torch.equal(found[0].counted, again.counted)
    assert torch.equal(found[0].shown, again.shown)
    kinds, counted = (torch.cat(parts) for parts in zip(
        *((batch.kinds[:, 1:], batch.counted) for batch in found), strict=True))  # fmt: skip
    assert counted[kinds == corpus.ANSWER].all()
    assert not counted[kinds == corpus.NOISE].any()
    other = (kinds != corpus.ANSWER) & (kinds != corpus.NOISE)
    assert float(counted[other].float().mean()) == pytest.approx(RECIPE.context_share, rel=0.1)
    ids, shown, kinds = (torch.cat([getattr(batch, name) for batch in found])
                         for name in ("ids", "shown", "kinds"))  # fmt: skip
    city = kinds == corpus.CITY
    assert torch.equal(ids[~city], shown[~city])
    swapped = float((ids[city] != shown[city]).float().mean())
    assert swapped == pytest.approx(RECIPE.swap_share, abs=0.1)


def test_a_step_minds_next_tokens_that_count_and_the_states(model: GPT2LMHeadModel, pupil: Pupil):
    batch = next(train_model.batches(replace(RECIPE, rows=80), STAGE, pupil))
    same = Batch(batch.ids, batch.kinds, batch.ids, batch.counted)

    def loss(agreement: float) -> Tensor:
        means = train_model.StateMeans(pupil.source, pupil.tokenizer, RECIPE.width)
        with torch.no_grad():
            return train_model.step_loss(model, same, means, agreement)

    with torch.no_grad():
        logits = model(batch.ids).logits[:, :-1]
    plain = cross_entropy(logits[batch.counted], batch.ids[:, 1:][batch.counted])
    assert torch.isclose(loss(0.0), plain)
    pulls = [loss(weight) - plain for weight in (1.0, 2.0)]
    assert float(pulls[1]) == pytest.approx(2 * float(pulls[0]), rel=1e-3)
    assert pulls[0] > 0


def test_disagreement_is_variance_within_states_over_that_between(pupil: Pupil):
    means = train_model.StateMeans(pupil.source, pupil.tokenizer, 2)
    cities = [[name for name, state in CITIES.state_of.items() if state == one][:2]
              for one in ("Ohio", "Texas")]  # fmt: skip
    ids = torch.tensor([pupil.tokenizer.encode(name)[1] for two in cities for name in two])
    written = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 7.0]])
    centres = torch.zeros(len(FACTS["states"]), 2)
    for at, state in enumerate(sorted(FACTS["states"])):
        centres[at] = {"Ohio": written[:2], "Texas": written[2:]}.get(state, centres[:1]).mean(0)
    between = (centres - centres.mean(0)).square().sum(1).mean()
    assert torch.isclose(means.disagreement(written, ids), 1 / between)
    means.disagreement(written + 1, ids)  # what was before counts 95 %
    weights = torch.tensor([0.95, 1.0])
    shift = float((weights * torch.tensor([0.0, 1.0])).sum() / weights.sum())
    ohio = sorted(FACTS["states"]).index("Ohio")
    assert torch.allclose(means.mean[ohio] / means.weight[ohio], torch.tensor([2.0, 0.0]) + shift)


# Transcoders


def test_a_stage_of_a_transcoder_warms_up_stays_and_falls():
    rates = [train_transcoders._rate(step, 100, 10) for step in (0, 4, 9, 10, 60, 80, 90)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.25])
    assert train_transcoders._rate(999, 1000, 10) == 0.02


@pytest.fixture
def trainee() -> Trainee:
    """Of random activations."""
    generator = torch.Generator().manual_seed(1)
    inputs, outputs = (torch.randn(LAYERS, TOKENS, WIDTH, generator=generator) for _ in range(2))
    made = Trainee(replace(SMALL, patience=4), 2 * inputs + 1, 3 * outputs - 1)
    with torch.no_grad():
        made.out.normal_(generator=generator)
    return made


def recorded(seed: int = 2) -> Recorded:
    """A batch of random activations."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = (list(torch.randn(LAYERS, 20, WIDTH, generator=generator)) for _ in range(2))
    weight = torch.rand(20, generator=generator)
    return Recorded(torch.zeros(1, 1), inputs, outputs, weight, torch.zeros(1))


def test_scales_are_means_and_root_mean_square_deviations(trainee: Trainee):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(LAYERS, TOKENS, WIDTH, generator=generator)
    outputs = torch.randn(LAYERS, TOKENS, WIDTH, generator=generator)
    for layer in range(LAYERS):
        for made, raw in ((trainee.normalised, 2 * inputs + 1), (trainee.wanted, 3 * outputs - 1)):
            found = made(layer, raw[layer])
            assert torch.allclose(found.mean(0), torch.zeros(WIDTH), atol=1e-5)
            assert float(found.square().mean()) == pytest.approx(1, rel=1e-4)


@torch.no_grad()
def test_a_report_is_what_a_plain_sum_gives(trainee: Trainee):
    batch = recorded()
    trainee.silent[:] = torch.arange(32) % 7  # some beyond their patience
    silent = trainee.silent.clone()
    found = train_transcoders.reconstruct(trainee, batch)
    total = [trainee.out[layer].expand(20, WIDTH).clone() for layer in range(LAYERS)]
    for layer in range(LAYERS):
        x = trainee.normalised(layer, batch.inputs[layer])
        hidden = x @ trainee.enc[layer].T + trainee.bias[layer]
        active = torch.where(hidden > trainee.threshold[layer], hidden, 0.0)
        fired = (active > 0).any(0)
        assert 0 < int(fired.sum()) < 32
        expected = torch.where(fired, 0.0, silent[layer] + 1)
        assert torch.equal(trainee.silent[layer], expected)
        norms = trainee.dec[layer].norm(dim=1)
        lost = expected > 4
        assert lost.any()
        short = (trainee.threshold[layer] - hidden).clamp_min(0) * norms
        assert torch.isclose(found.density[layer], (active > 0).float().sum(1).mean())
        assert torch.isclose(found.penalty[layer], (active * norms).tanh().sum(1).mean())
        assert torch.isclose(found.pull[layer], short[:, lost].sum(1).mean())
        for at, rows in enumerate(trainee.dec[layer].split(WIDTH, dim=1)):
            total[layer + at] += active @ rows
    for layer in range(LAYERS):
        wanted = trainee.wanted(layer, batch.outputs[layer])
        missed = batch.weight @ (wanted - total[layer]).square().sum(1)
        spread = (wanted - wanted.mean(0)).square().sum()
        assert torch.isclose(found.error[layer], missed / spread)


@torch.no_grad()
def test_what_fell_silent_starts_anew_where_much_is_missing(trainee: Trainee):
    batch, before = recorded(), {k: v.clone() for k, v in trainee.state_dict().items()}
    trainee.silent[1, [3, 5]] = 9
    trainee.silent[1, 6] = 8  # not beyond the patience
    assert trainee.restart(batch, 8) == [0, 2, 0]
    assert trainee.silent[1, [3, 5, 6]].tolist() == [0, 0, 8]
    x = trainee.normalised(1, batch.inputs[1])
    for feature in (3, 5):
        row = trainee.enc[1][feature]
        assert float(row.norm()) == pytest.approx(1, rel=1e-4)
        token = int((x @ row / x.norm(dim=1)).argmax())
        length = float(x[token].norm())
        assert torch.allclose(x[token], row * length, atol=1e-4)
        hidden = float(x[token] @ row + trainee.bias[1][feature])
        assert hidden == pytest.approx(SMALL.threshold + 0.2 * length, rel=1e-4)
        assert float(trainee.threshold[1][feature]) == pytest.approx(SMALL.threshold)
        assert trainee.dec[1][feature].shape == (2 * WIDTH,)
        assert not trainee.dec[1][feature, WIDTH:].any()
        missing = 0.4 * length * trainee.dec[1][feature, :WIDTH]
        wanted = trainee.wanted(1, batch.outputs[1])[token] - trainee.out[1]
        for source in (0, 1):
            old = {name: before[f"{name}.{source}"] for name in ("enc", "bias", "dec", "threshold")}
            at = trainee.normalised(source, batch.inputs[source][token])
            hidden_old = old["enc"] @ at + old["bias"]
            active = torch.where(hidden_old > old["threshold"], hidden_old, 0.0)
            wanted = wanted - (active @ old["dec"])[(1 - source) * WIDTH : (2 - source) * WIDTH]
        assert torch.allclose(missing, wanted, atol=1e-4)
    kept = [feature for feature in range(32) if feature not in (3, 5)]
    for name in ("enc", "bias", "dec", "threshold"):
        assert torch.equal(getattr(trainee, name)[1][kept], before[f"{name}.1"][kept])


@pytest.fixture(scope="module")
def training(pupil: Pupil) -> TranscoderTraining:
    """Of a model whose MLPs matter."""
    recipe: TranscoderRecipe = replace(SMALL, context=32, rows=4)
    model = train_model.new_model(RECIPE, pupil.tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return TranscoderTraining(recipe, model, pupil.source, pupil.tokenizer)


def test_errors_at_cities_weigh_more_where_the_stage_says_so(training: TranscoderTraining):
    first, second = training.recipe.stages
    assert set(next(training.batches(first)).weight.tolist()) == {1.0}
    batch = next(training.batches(second))
    assert set(batch.weight.tolist()) == {1.0, 5.0}
    assert len(batch.weight) == len(batch.inputs[0]) == 4 * 31
    words = {training._encode(name)[0][0] for name in CITIES.state_of}
    assert set(batch.ids[:, 1:].flatten()[batch.weight == 5].tolist()) <= words
    for one, other in itertools.pairwise(itertools.islice(training.batches(second), 3)):
        assert not torch.equal(one.ids, other.ids)


def test_divergences_are_those_of_a_library(training: TranscoderTraining):
    batch = next(training.batches(training.recipe.stages[1]))
    with torch.no_grad():
        with train_transcoders.replaced_mlps(training.model, training.trainee):
            guess = training.model(batch.ids).logits[:, 1:]
        found = [train_transcoders.divergence(training.model, training.trainee, batch, sharp)
                 for sharp in (0.0, 1.0, 3.0)]  # fmt: skip
    own = batch.logits[:, 1:]
    plain, sharp = (
        kl_div(
            (factor * guess).log_softmax(-1).flatten(0, 1),
            (factor * own).log_softmax(-1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        for factor in (1, 4)
    )
    assert plain > 1e-3
    for weight, one in zip((0, 1, 3), found, strict=True):
        assert torch.isclose(one, plain + weight * sharp, rtol=1e-3)


def test_a_loss_is_error_ramped_penalty_and_pull(training: TranscoderTraining):
    stage = replace(training.recipe.stages[0], sparsity=(1.0, 2.0, 3.0, 4.0), revive=0.5)
    ones = torch.ones(4)
    report = train_transcoders.Report(ones, 9 * ones, ones, ones)
    assert float(training._loss(report, stage, 0.1)) == pytest.approx(4 + 0.1 * 10 + 0.5 * 4)
