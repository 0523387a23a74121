"""How the embedded default was trained, step by step, against plain versions of each step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.tiny.recipe import corpus, train_model
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.tiny.recipe.train_model import Batch, ModelRecipe, Pupil, Stage
from tests.test_replacement_models_tiny import CITIES, FACTS


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
