"""The embedded default: its corpus keeps its promises, its weights keep theirs."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models import ReplacementModel, Transcoder, load_transcoder
from replacement_models.fidelity import fidelity
from replacement_models.replaced import replaced
from replacement_models.tiny.recipe import (
    corpus,
    dictionary_text,
    measure,
    swaps,
    taps,
    train,
    train_dictionaries,
    train_model,
    train_transcoders,
)
from replacement_models.tiny.recipe.behaviours import asked, behaviours, two_hop_behaviour
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities
from replacement_models.tiny.recipe.label_texts import label_texts
from replacement_models.tiny.recipe.word_classes import word_classes
from replacement_models.training.wiring import Wiring

FACTS = load_facts()
CITIES = split_cities(FACTS)
PENALTY = (5e-3, 5e-3, 5e-3, 5e-3)
SMALL = train_transcoders.TranscoderRecipe(
    stages=(
        train_transcoders.Stage(6, 2e-3, PENALTY, 0.0, 0.1, 3),
        train_transcoders.Stage(3, 1e-3, PENALTY, 1.0, 0.1, 4, city_weight=5.0),
    ),
    features=32,
    rows=2,
    start_batches=8,
    detector_steps=20,
    log_every=3,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PACKAGE / "model")


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    found = GPT2LMHeadModel.from_pretrained(PACKAGE / "model", dtype=torch.float32)
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clt() -> Transcoder:
    return load_transcoder(PACKAGE / "clt").to("cpu", torch.float32)


@pytest.fixture(scope="module")
def source(tokenizer: PreTrainedTokenizerFast) -> corpus.Source:
    return corpus.Source(FACTS, CITIES, CITIES.seen, corpus.whole_words(tokenizer))


def told(source: corpus.Source, count: int, seed: int = 5) -> Iterator[str]:
    return itertools.islice(corpus.sentences(source, seed), count)


def test_city_groups_are_disjoint_and_cover_every_state() -> None:
    groups = [set(group) for group in (CITIES.seen, CITIES.choice, CITIES.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(CITIES.state_of)
    assert {"Dallas", "Oakland"} <= groups[2]
    assert len(groups[2]) >= 100
    for group in groups:
        assert {CITIES.state_of[city] for city in group} == set(FACTS["states"])


def test_a_city_stands_in_one_state_only() -> None:
    named = [city for entry in FACTS["states"].values() for city in entry["cities"]]
    assert len(named) == len(set(named))


def test_capitals_agree_with_a_second_source() -> None:
    some = {"Texas": "Austin", "California": "Sacramento", "New York": "Albany", "Ohio": "Columbus"}
    assert {state: FACTS["states"][state]["capital"] for state in some} == some
    assert FACTS["countries"]["Croatia"]["currency"] == "euro"


def test_kept_cities_never_occur_in_two_hop_sentences(source: corpus.Source) -> None:
    kept = set(CITIES.choice) | set(CITIES.test)
    one_hop = [template.split("{{{city}}}") for template in corpus.ONE_HOP]
    for sentence in told(source, 20_000):
        marked = [word for word in kept if "{" + word + "}" in sentence]
        for city in marked:
            before, _, after = sentence.lower().partition("{" + city.lower() + "}")
            assert any(
                before == start and after.startswith(end.partition("[")[0])
                for start, end in one_hop
            ), sentence


def test_dictionaries_read_no_two_hops_of_test_cities(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = list(itertools.islice(dictionary_text.rows(tokenizer, 0.05, 210), 3000))
    assert max(map(len, rows)) == 63
    assert min(map(len, rows)) < 12
    text = "\n".join(map(tokenizer.decode, rows))
    forms = ("capital of the state containing {} is", "containing {} has its", "{} is in a state")

    def found_in(cities: tuple[str, ...]) -> int:
        return sum(form.format(city) in text for city in cities for form in forms)

    assert found_in(CITIES.seen) > 100
    assert found_in(CITIES.choice) > 10
    assert found_in(CITIES.test) == 0


@pytest.mark.parametrize(("name", "slots"), [("clt", 4), ("plt", 1)])
def test_stages_go_on_from_one_another(name: str, slots: int, tmp_path: Path) -> None:
    before = None
    for stage in train_dictionaries.STAGES[name]:
        found = train_dictionaries.config(stage, tmp_path, PACKAGE / "model")
        assert len(Wiring.of(found.dictionary, 4).slots(0)) == slots
        assert found.start.dictionary == before
        assert Path(str(found.data.corpus)).name in dictionary_text.TEXTS
        before = f"{found.output}/transcoder"
    assert len(train_dictionaries.STAGES[name]) > 1


def test_dictionaries_are_what_the_last_stage_ends_with(tmp_path: Path) -> None:
    """Two stages of a few steps, run to their end as the committed ones are."""
    dictionary_text.write(tmp_path / "text.jsonl", dictionary_text.Text(6000, 0.1, 3))
    common = (
        "dictionary: {kind: cross_layer, features: 32, widths: [16, 32, 8, 32], l0: 2}\n"
        "data: {corpus: text.jsonl, alone: true, context: 64, held_out_tokens: 512, prompts: 0}\n"
        "run: {tokens: 1024, batch: 256, threads: 1, set_thresholds: false}\n"
    )
    first, second = tmp_path / "one-1.yaml", tmp_path / "one-2.yaml"
    start = "start: {features: clusters, tokens: 2048, detector_steps: 20"
    first.write_text(f"output: one-1\n{common}{start}}}\n")
    second.write_text(f"output: one-2\n{common}{start}, dictionary: one-1/transcoder}}\n")
    stages = (first, second)
    train_dictionaries.train_dictionary("one", stages, tmp_path, PACKAGE / "model")
    made, trained = (load_transcoder(tmp_path / some) for some in ("one", "one-2/transcoder"))
    for got, wanted in zip(made.layers, trained.layers, strict=True):
        torch.testing.assert_close(got.W_enc.float(), wanted.W_enc, rtol=1e-3, atol=1e-6)
        assert torch.equal(got.b_dec, wanted.b_dec)
    assert [len(layer.W_enc) for layer in made.layers] == [16, 32, 8, 32]


def test_a_rounded_dictionary_stores_rows_as_float16(clt: Transcoder) -> None:
    layer = train_dictionaries.rounded(clt).layers[3]
    assert {layer.W_enc.dtype, layer.decoder.rows(torch.arange(3)).dtype} == {torch.float16}
    assert torch.equal(layer.W_enc.float(), clt.layers[3].W_enc)
    assert layer.b_enc.dtype == torch.float32


def test_marked_sentences_encode_like_plain_text(
    source: corpus.Source, tokenizer: PreTrainedTokenizerFast
) -> None:
    encode = corpus.Encoder(tokenizer)
    for sentence in told(source, 300):
        ids, kinds = encode(sentence)
        assert ids == tokenizer.encode(corpus.plain(sentence), add_special_tokens=False)
        assert len(ids) == len(kinds)


def test_answers_are_marked_on_every_word_of_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids, kinds = corpus.Encoder(tokenizer)("the capital of Utah is [Salt Lake City].")
    marked = [token for token, kind in zip(ids, kinds, strict=True) if kind == corpus.ANSWER]
    assert tokenizer.decode(marked) == " Salt Lake City"


def test_rows_start_with_the_start_token(
    source: corpus.Source, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids, kinds = corpus.pack(told(source, 99), corpus.Encoder(tokenizer), rows=3, context=64)
    assert ids.shape == kinds.shape == (3, 64)
    assert set(ids[:, 0]) == {tokenizer.bos_token_id}


def test_every_word_of_the_corpus_is_one_token(
    source: corpus.Source, tokenizer: PreTrainedTokenizerFast
) -> None:
    for sentence in told(source, 2000, seed=6):
        pieces = tokenizer.tokenize(corpus.plain(sentence))
        assert all(piece.startswith("\u0120") or piece in ".,:?" for piece in pieces)


def test_odd_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("naïve Zürich 東京", "\U0001f600 tab\tnew\nline", "e\u0301"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids).strip() == text.strip()


def test_a_question_ends_where_the_answer_begins() -> None:
    prompt = asked("the capital of the state containing {Dallas} is [Austin].")
    assert prompt.text == "the capital of the state containing Dallas is"
    assert prompt.answer == "Austin"


def test_behaviours_hold_enough_distinct_prompts(source: corpus.Source) -> None:
    found = behaviours(source) | {"kept": two_hop_behaviour(source, CITIES.test)}
    for name, prompts in found.items():
        assert len(set(prompts)) == len(prompts) >= 200, name


def test_swapped_cities_are_marked_cities_only() -> None:
    ids = torch.arange(40).view(2, 20)
    kinds = torch.full_like(ids, corpus.CONTEXT)
    kinds[:, 3] = corpus.CITY
    generator = torch.Generator().manual_seed(0)
    shown = train_model.swap_cities(ids, kinds, torch.tensor([99]), 1.0, generator)
    assert (shown[:, 3] == 99).all()
    shown[:, 3] = ids[:, 3]
    assert torch.equal(shown, ids)


def test_the_first_mlp_alone_sees_the_difference(model: GPT2LMHeadModel) -> None:
    ids = torch.tensor([[0, 5, 6]])
    embed = model.transformer.wte.weight
    difference = embed[torch.tensor([[0, 9, 6]])] - embed[ids]
    with taps.recorded_mlps(model) as (plain, _):
        model(ids)
    with (
        train_model.first_mlp_sees(model, difference),
        taps.recorded_mlps(model) as (changed, _),
    ):
        model(ids)
    assert not torch.allclose(plain[0][0, 1], changed[0][0, 1])
    assert torch.allclose(plain[0][0, 0], changed[0][0, 0], atol=1e-5)
    with taps.recorded_mlps(model) as (again, _):
        model(ids)
    assert torch.equal(plain[0], again[0])


def test_one_vector_a_state_is_no_disagreement(
    source: corpus.Source, tokenizer: PreTrainedTokenizerFast
) -> None:
    means = train_model.StateMeans(source, tokenizer, width=50)
    ids = torch.tensor([tokenizer.encode(city)[1] for city in sorted(CITIES.state_of)])
    same = torch.eye(50)[means.state[ids]]
    assert means.disagreement(same, ids) < 1e-6
    noise = torch.randn(len(ids), 50, generator=torch.Generator().manual_seed(0))
    assert means.disagreement(noise, ids) > 1


def test_a_new_model_is_as_its_recipe_says_and_drops_nothing_in_training(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    recipe = train_model.ModelRecipe(width=16, layers=2, heads=4, context=24)
    made = train_model.new_model(recipe, tokenizer)
    sizes = made.config.n_embd, made.config.n_layer, made.config.n_head, made.config.n_positions
    assert sizes == (16, 2, 4, 24)
    assert made.config.vocab_size == len(tokenizer)
    ends = made.config.bos_token_id, made.config.eos_token_id
    assert ends == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    embedding = made.get_input_embeddings().weight
    assert made.lm_head.weight is not embedding
    assert not embedding.requires_grad
    assert float(embedding.std()) == pytest.approx(recipe.embedding_scale, rel=0.05)
    ids = torch.arange(24)[None]
    assert torch.equal(made.train()(ids).logits, made.eval()(ids).logits)


def test_the_feature_that_marks_a_state_misses_few_cities_and_marks_few_others() -> None:
    """All cities, two of four and none else, or all four and one other: the last, of F1 8/9."""
    cities = tuple("abcdefgh")
    lab = SimpleNamespace(state_of=dict(zip(cities, ["Texas"] * 4 + ["Ohio"] * 4, strict=True)))
    active = torch.zeros(8, 2, 2, 3)
    active[:, 1, 0, 0] = active[:2, 1, 0, 1] = active[:5, 1, 1, 2] = 1
    active[:4, 0, 1, 1] = 1  # at the other site
    found = swaps.best_state_feature(lab, active, cities, "Texas", 1)  # type: ignore[arg-type]
    assert found == swaps.StateFeature(1, 2, pytest.approx(0.8), 1.0)
    assert swaps.best_state_feature(lab, active, cities, "Texas", 0).feature == 1  # type: ignore[arg-type]


def test_a_state_is_decodable_where_its_cities_share_a_direction() -> None:
    """One city stands where another state's do: that one alone is not found."""
    names, states = sorted(CITIES.state_of), sorted(set(CITIES.state_of.values()))
    state = torch.tensor([states.index(CITIES.state_of[name]) for name in names])
    rows = torch.eye(len(states))[state]
    assert measure.decodable(rows, names, CITIES) == 1
    line = 100.0 + state[:, None].float()
    assert measure.decodable(line, names, CITIES) == 1  # means are those of the others
    rows[5] = rows[state != state[5]][0]
    assert measure.decodable(rows, names, CITIES) == pytest.approx(1 - 1 / len(names))


def test_clusters_find_two_far_points() -> None:
    data = torch.tensor([[0.0, 0.0], [0.0, 0.1], [9.0, 9.0], [9.0, 9.1]])
    member = train_transcoders.clusters(data, 2, torch.Generator().manual_seed(2))
    assert member[0] == member[1] != member[2] == member[3]
    assert torch.allclose(
        train_transcoders.averages(data, member, 2)[member[0]], torch.tensor([0.0, 0.05])
    )


def test_clusters_that_point_the_same_way_become_one() -> None:
    data = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 2.0], [0.1, 5.0]]).repeat(5, 1)
    member = train_transcoders.clusters(data, 4, torch.Generator().manual_seed(0))
    assert len(member.unique()) == 2
    assert member[0] == member[1] != member[2] == member[3]


def test_detectors_tell_a_cluster_of_unlike_inputs_from_all_others() -> None:
    """Three groups of ten random directions each, in 32 dimensions: no group has a mean to read."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(30, 32, generator=generator), dim=1) * 32**0.5
    member = torch.arange(30) % 3
    recipe = replace(SMALL, detector_steps=600)
    rows, bias = train_transcoders.detectors(x, member, recipe, generator)
    fires = x @ rows.T + bias > recipe.threshold
    assert torch.equal(fires, torch.nn.functional.one_hot(member, 3).bool())


@pytest.mark.parametrize("cross_layer", [True, False])
def test_a_finished_transcoder_computes_what_was_trained(
    cross_layer: bool,
    model: GPT2LMHeadModel,
    source: corpus.Source,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    recipe = replace(SMALL, cross_layer=cross_layer)
    training = train_transcoders.TranscoderTraining(recipe, model, source, tokenizer)
    training.run()
    trainee = training.trainee
    finished = trainee.finished("tiny").to("cpu", torch.float32)
    ids = next(training.batches(recipe.stages[0])).ids
    with torch.no_grad(), train_transcoders.replaced_mlps(model, trainee):
        trained = model(ids).logits
    whole = ReplacementModel.from_huggingface(model, tokenizer, finished)
    with torch.no_grad(), replaced(whole, measure.AFTER_THE_START):
        shipped = model(ids).logits
    assert (trained - shipped).abs().median() < 2e-3 * trained.abs().median()


def test_the_recipe_writes_what_its_training_ends_with(
    model: GPT2LMHeadModel,
    source: corpus.Source,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, last = (replace(stage, steps=2, rate=0.5) for stage in SMALL.stages)
    recipe = replace(SMALL, stages=(first, last), detector_steps=2)
    monkeypatch.setattr(train, "RECIPES", {"small": recipe})
    train.make_transcoder("small", model, tokenizer, source, tmp_path)
    training = train_transcoders.TranscoderTraining(
        recipe, model, train.transcoder_source(source), tokenizer
    )
    training.run()
    written = load_transcoder(tmp_path / "small")
    for got, wanted in zip(written.layers, training.trainee.finished("tiny").layers, strict=True):
        torch.testing.assert_close(got.W_enc.float(), wanted.W_enc.float())
        torch.testing.assert_close(got.b_dec.float(), wanted.b_dec.float())


def test_only_what_fell_silent_gets_old_weights(
    model: GPT2LMHeadModel, source: corpus.Source, tokenizer: PreTrainedTokenizerFast
) -> None:
    training = train_transcoders.TranscoderTraining(SMALL, model, source, tokenizer)
    bias = training.trainee.bias[1]
    with torch.no_grad():
        bias[:5] += 100.0
        end = {key: value.clone() for key, value in training.trainee.state_dict().items()}
        bias[3] -= 1000.0
        bias[4] += 1.0
    training.restore([end])
    assert bias[3] == end["bias.1"][3]
    assert bias[4] == end["bias.1"][4] + 1.0


def test_adding_nothing_changes_nothing(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    clt: Transcoder,
    source: corpus.Source,
) -> None:
    lab = swaps.Laboratory(model, tokenizer, clt, source)
    cities = ["Dallas", "Oakland"]
    plain = model(lab.prompts(cities)).logits[:, -1].argmax(-1)
    nothing = lab.written(torch.zeros_like(lab.activations(cities)))
    assert torch.equal(lab.answers(cities, nothing), plain)


def test_random_features_write_with_equal_norm(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    clt: Transcoder,
    source: corpus.Source,
) -> None:
    lab = swaps.Laboratory(model, tokenizer, clt, source)
    profile = lab.profile(CITIES.seen)
    change = torch.zeros(1, 2, len(clt.layers), clt.features)
    change[0, 0, 0, 3] = 2.0
    moved = swaps.scrambled(lab, change, profile)
    norms = [lab.written(part).norm() for part in (change, moved)]
    assert torch.isclose(norms[0], norms[1], rtol=1e-4)


def test_all_weights_stay_below_twelve_megabytes() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.parent.name in ("model", "clt", "plt")]
    assert sum(path.stat().st_size for path in files) < 12e6


def test_the_default_prompt_is_answered(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.tensor([tokenizer.encode(measure.PROMPT.format(city="Dallas"))])
    chances = model(ids).logits[0, -1].softmax(-1)
    assert tokenizer.decode(chances.argmax()) == " Austin"
    assert chances.max() > 0.85


def test_the_state_is_looked_up_by_the_first_mlp(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    capitals = {c: FACTS["states"][CITIES.state_of[c]]["capital"] for c in CITIES.test}
    before, after = measure.first_mlp_ablated(model, tokenizer, capitals)
    assert before >= 0.98
    assert after < 0.35
    ids = torch.tensor([tokenizer.encode(measure.PROMPT.format(city=city)) for city in capitals])
    wanted = [tokenizer.encode(name, add_special_tokens=False)[0] for name in capitals.values()]
    mlp = model.transformer.h[0].mlp

    def mean_at_the_city(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        city = torch.arange(output.shape[1])[:, None] == measure.CITY_AT
        return torch.where(city, output.mean(0, keepdim=True), output)

    hook = mlp.register_forward_hook(mean_at_the_city)
    said = model(ids).logits[:, -1].argmax(-1)
    hook.remove()
    assert after == pytest.approx(float((said == torch.tensor(wanted)).float().mean()))
    names = sorted(CITIES.state_of)
    rows = model.transformer.wte.weight[[tokenizer.encode(name)[1] for name in names]]
    assert measure.decodable(rows, names, CITIES) < 0.05


def test_the_transcoder_stands_in_for_every_mlp(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    clt: Transcoder,
    source: corpus.Source,
) -> None:
    stream = corpus.sentences(source, 555, corpus.SHARES)
    ids = torch.from_numpy(corpus.pack(stream, corpus.Encoder(tokenizer), 60, 64)[0]).long()
    whole = ReplacementModel.from_huggingface(model, tokenizer, clt)
    found = fidelity(whole, [ids], measure.AFTER_THE_START)
    assert found.comparison.agreement > 0.95
    assert found.comparison.divergence < 0.025
    assert max(found.error) < 0.035
    assert max(found.density) < 8


TEXTS = {
    "split": "b8c89a3f93141773",
    "behaviours": "67164157eefa2add",
    "two hops": "9db56cf4439ef995",
    "classes": "15f2132a67df1d18",
    "sentences": "60b796b41226e934",
    "long repeats": "aaa74ae9062ad098",
    "own sentences": "d8861fac8b93343c",
    "own rows": "5abd33b4404face5",
    "dictionary rows": "3cdd439f2a5a50f9",
    "label texts": "6376eec57ec662b4",
    "packed": "679324e6fa906112",
}
"""SHA-256 of the recipe's texts, their beginning: published figures were measured on these."""

NUMBERS = "8571ef93ccf1b95f"
"""The same of the recipe's numbers: the embedded default was trained with these."""


def test_the_recipes_numbers_stay_those_that_the_default_was_trained_with():
    shares = [
        [(family.__name__, share) for family, share in stage.families.items()]
        for stage in train_model.STAGES
    ]
    stages = [replace(stage, families={}) for stage in train_model.STAGES]
    found = (replace(train_model.ModelRecipe(), stages=tuple(stages)), shares,
             train_transcoders.TranscoderRecipe(), train_transcoders.PER_LAYER_STAGES)  # fmt: skip
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == NUMBERS


def recipe_texts(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """Everything that the recipe draws from its seeds, the long ones cut."""
    source = corpus.Source(FACTS, CITIES, CITIES.seen, corpus.whole_words(tokenizer))
    repeats = corpus.mixture(corpus.long_induction, 0.5)
    packed = corpus.pack(corpus.sentences(source, 5), corpus.Encoder(tokenizer), 20, 48)
    return {
        "split": [CITIES.seen, CITIES.choice, CITIES.test, sorted(CITIES.state_of.items())],
        "behaviours": {
            name: [[one.text, one.answer] for one in some]
            for name, some in behaviours(source).items()
        },
        "two hops": [
            [one.text, one.answer] for one in two_hop_behaviour(source, CITIES.test, seed=3)
        ],
        "classes": {name: list(words) for name, words in word_classes().items()},
        "sentences": list(itertools.islice(corpus.sentences(source, 1), 3000)),
        "long repeats": list(itertools.islice(corpus.sentences(source, 2, repeats), 300)),
        "own sentences": corpus.own_sentences(tokenizer),
        "own rows": list(itertools.islice(corpus.own_rows(tokenizer, 64, 7), 20)),
        "dictionary rows": list(itertools.islice(dictionary_text.rows(tokenizer, 0.05, 210), 100)),
        "label texts": [list(some) for some in vars(label_texts(tokenizer)).values()],
        "packed": [part.tolist() for part in packed],
    }


def test_the_recipes_texts_stay_those_that_figures_were_measured_on(
    tokenizer: PreTrainedTokenizerFast,
):
    found = {
        name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
        for name, value in recipe_texts(tokenizer).items()
    }
    assert found == TEXTS
