"""Directions: removed as a projection, made from pairs, measured on pairs held out, saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tracer
from replacement_models import ReplacementModel
from replacement_models.sites import Site
from tests.random_models import LAYERS, PROMPT, WIDTH, replacement_model
from tracer import Directions, Steering, TraceError
from tracer.lenses.contrasts import read_pairs
from tracer.lenses.streams import streams

PAIRS = [((1, 7, 12, n, 5), (1, 7, 12, n, 9)) for n in range(3, 23)]
SITE = Site.parse("resid_pre.1")


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement_model("gpt2", skip=True)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_what_is_removed_is_the_span_and_nothing_else():
    vectors, stream = noise(3, WIDTH), noise(4, WIDTH) + 1
    same = torch.cat([vectors, vectors[:1] + vectors[1:2]])
    for given in (vectors, same):
        left = Steering(layer=0, vector=given, remove=True).changed(stream)
        torch.testing.assert_close(left @ vectors.T, torch.zeros(4, 3).double())
        again = Steering(layer=0, vector=given, remove=True).changed(left)
        torch.testing.assert_close(again, left)
        gone = stream - left
        assert int(torch.linalg.matrix_rank(torch.cat([gone, vectors]))) == 3
    half = Steering(layer=0, vector=vectors[0], scale=0.5, remove=True).changed(stream)
    torch.testing.assert_close(half @ vectors[0], stream @ vectors[0] / 2)


def test_a_direction_that_was_removed_has_no_effect_on_what_follows(model: ReplacementModel):
    """Whatever is added along it first, the answer is the same."""
    vector = noise(WIDTH)
    out = Steering(layer=1, vector=vector, position=-1, remove=True)
    plain = tracer.intervene(model, PROMPT, [out], "free").logits
    added = Steering(layer=1, vector=vector, position=-1, scale=3.0)
    after = tracer.intervene(model, PROMPT, [added, out], "free").logits
    torch.testing.assert_close(after, plain, rtol=0, atol=1e-9)
    base = tracer.intervene(model, PROMPT, [added], "free").logits
    assert float((base - plain).abs().max()) > 0.1


def test_a_removed_direction_stays_out_of_new_tokens(model: ReplacementModel):
    everywhere = Steering(layer=LAYERS, vector=noise(WIDTH), remove=True)
    [found] = tracer.generate(model, [PROMPT], [everywhere], max_new_tokens=3)
    assert not torch.equal(found.plain.logits, found.steered.logits)
    passed = PROMPT + found.steered.tokens
    again = tracer.intervene(model, passed, [everywhere], "free").logits
    shown = again[len(PROMPT) - 1 : len(passed) - 1]
    torch.testing.assert_close(found.steered.logits[: len(shown)], shown)


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_a_direction_reads_and_steers_what_was_planted(model: ReplacementModel, method: str):
    with torch.no_grad():
        seen = [streams(model, torch.tensor(side)) for side in zip(*PAIRS, strict=True)]
    rows = [one.entering[2][:, -1] for one in seen]
    parted = (seen[0].logits - seen[1].logits)[:, -1].mean(0)
    metric = tracer.patching.logit_difference(model, int(parted.argmax()), int(parted.argmin()))
    found = tracer.direction(model, PAIRS, 2, method=method, label="five not nine", metric=metric)
    held = found.about["held_out"]
    assert held["pairs"] == 6
    assert held["auroc"] == held["accuracy"] == 1
    steering = held["steering"]
    assert steering["goal"] > steering["before"]
    assert steering["before"] < steering["after"]
    assert steering["away"] < steering["goal"]
    apart = (rows[0] - rows[1]).mean(0).float()
    cosine = torch.cosine_similarity(found.vectors[0], apart, dim=0)
    assert float(cosine) > 0.9
    assert (found.labels, str(found.site)) == (("five not nine",), "resid_pre.2")


def test_the_difference_of_one_pair_steers_it_all_the_way(model: ReplacementModel):
    """At the last layer and position, adding the difference is the first prompt's answer."""
    pairs = [((1, 7, n), (1, 7, n + 1)) for n in range(3, 25, 2)]
    found = tracer.direction(model, pairs, LAYERS, held_out=0.1, seed=1)
    assert found.about["held_out"]["pairs"] == 1
    first, second = ((1, 7, 3), (1, 7, 4))
    stream = [model.record(one).residuals[LAYERS][-1] for one in (first, second)]
    whole = Directions((stream[0] - stream[1])[None], ("d",), Site.parse("resid_pre.3"), {})
    change = tracer.intervene(model, second, [whole.steering(position=-1)], "free")
    torch.testing.assert_close(change.logits[-1], model.record(first).logits[-1])


def test_pairs_held_out_that_share_a_prompt_are_not_measured(model: ReplacementModel):
    shared = [((1, 7, 12, n, 5), (1, 3, 3)) for n in range(3, 13)]
    with pytest.raises(TraceError, match="every pair held out shares a prompt"):
        tracer.direction(model, shared, 1)


def test_a_metric_of_the_users_own_is_what_is_measured(model: ReplacementModel):
    metric = tracer.patching.probability(model, 4)
    found = tracer.direction(model, PAIRS, metric=metric)
    assert found.site == SITE  # the middle of three layers
    assert found.about["held_out"]["steering"]["pairs"] == 6
    assert 0 < found.about["held_out"]["steering"]["before"] < 1


def test_directions_are_saved_and_come_back(model: ReplacementModel, tmp_path: Path):
    made = Directions(noise(2, WIDTH).float(), ("a", "b:c"), SITE, {"note": [1.5]})
    for name in ("x", "y"):
        made.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    back = Directions.load(tmp_path / "x.safetensors")
    assert torch.equal(back.vectors, made.vectors)
    assert (back.labels, back.site, back.about) == (made.labels, SITE, {"note": [1.5]})
    one = Directions.load(f"{tmp_path / 'x.safetensors'}:a")
    assert torch.equal(one.vectors, made.vectors[:1])
    graph = tracer.trace(model, PROMPT, targets=[*back.targets(), 4])
    values = graph.nodes["pre_activation"].to_pylist()[-3:-1]
    expected = made.vectors.double() @ model.record(PROMPT).residuals[1][-1]
    assert values == pytest.approx(expected.tolist(), abs=1e-6)
    assert graph.metadata["conservation"]["relative"] < 1e-9
    with pytest.raises(TraceError, match="no direction is labelled 'z', expected one of 'a'"):
        Directions.load(f"{tmp_path / 'x.safetensors'}:z")
    with pytest.raises(TraceError, match="2 directions cannot be added as one"):
        back.steering()
    assert back.removal().remove
    with pytest.raises(TraceError, match="of width 16 do not fit"):
        back.check_fit(ReplacementModel.load())
    mid = Directions(made.vectors[:1], ("a",), Site.parse("resid_mid.1"), {})
    with pytest.raises(TraceError, match="can be read, not added or removed"):
        mid.steering()


def test_a_file_that_holds_no_directions_is_refused(tmp_path: Path):
    path, vectors = tmp_path / "d.safetensors", noise(1, 4).float()
    about = {"format": "tracer-direction", "version": 1, "site": "resid_pre.0", "labels": ["a"]}
    for said, message in (
        (about | {"labels": ["a", "b"]}, "expected one for each of the labels"),
        (about | {"site": "mlp_out.0"}, "is no site of the residual stream"),
        (about | {"format": "x"}, "is format x"),
    ):
        save_file({"vectors": vectors}, path, {"direction": json.dumps(said)})
        with pytest.raises(TraceError, match=message):
            Directions.load(path)
    with pytest.raises(TraceError, match="no such file; expected a direction"):
        Directions.load(tmp_path / "none.safetensors")


def test_pairs_are_read_from_csv_and_json_lines(tmp_path: Path):
    csv, lines = tmp_path / "p.csv", tmp_path / "p.jsonl"
    csv.write_text('"a, b",c\n\nd,e\n')
    assert read_pairs(csv) == [("a, b", "c"), ("d", "e")]
    lines.write_text('["a, b", "c"]\n\n{"positive": "d", "negative": "e"}\n')
    assert read_pairs(lines) == read_pairs(csv)
    for text, message in (
        ("", "holds no pairs"),
        ("[1]\n", "pair 1 is .*, expected two texts"),
        ('["a", "b"]\n{"positive": "d"}\n', "pair 2 is .*, expected two texts"),
        ('["a", "b"]\n\nx\n', "line 3 is no JSON"),
    ):
        lines.write_text(text)
        with pytest.raises(TraceError, match=message):
            read_pairs(lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 4}, "layer 4 is not in 0..3"),
        ({"method": "lda"}, "method is 'lda', expected one of mean, pca"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"pairs": PAIRS[:1]}, "1 pairs with 0.3 of them held out leave none"),
        ({"position": 5}, "position 5 is not in"),
    ],
)
def test_a_direction_that_cannot_be_made_is_refused(
    model: ReplacementModel, options: dict, said: str
):
    with pytest.raises(TraceError) as error:
        tracer.direction(model, **{"pairs": PAIRS, "layer": 1} | options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vector": [0.0] * WIDTH, "remove": True}, "is zero; it names no direction"),
        ({"vector": torch.ones(2, WIDTH)}, "has shape (2, 16), expected (16,), finite"),
        ({"vector": torch.ones(2, 3), "remove": True}, "or (directions, 16), finite"),
    ],
)
def test_a_vector_that_cannot_be_added_or_removed_is_refused(
    model: ReplacementModel, options: dict, said: str
):
    with pytest.raises(TraceError) as error:
        tracer.intervene(model, PROMPT, [Steering(layer=1, **options)], "free")
    assert said in str(error.value)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_patchscope_at_the_top_says_what_the_source_would(family: str):
    model, target = replacement_model(family), (1, 3, 12, 8)
    found = tracer.patchscope(model, PROMPT, LAYERS, 3, target, max_new_tokens=1)
    torch.testing.assert_close(
        found.steered.logits[0], model.record(PROMPT).logits[3], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        found.plain.logits[0], model.record(target).logits[-1], rtol=0, atol=1e-5
    )


def test_a_patchscope_puts_the_stream_where_it_is_told(model: ReplacementModel):
    same = tracer.patchscope(model, PROMPT, 1, 2, PROMPT, 1, 2, max_new_tokens=4)
    assert same.steered.tokens == same.plain.tokens
    other = (1, 3, 12, 8, 20)
    found = tracer.patchscope(model, PROMPT, 2, -2, other, 1, 3, max_new_tokens=2)
    stream, handle = model.record(PROMPT).residuals[2][-2], None

    def put_in(module, inputs):
        moved = inputs[0].clone()
        moved[0, 3] = stream
        return (moved, *inputs[1:])

    handle = model.host.blocks[1].module.register_forward_pre_hook(put_in)
    try:
        with torch.no_grad():
            expected = streams(model, torch.tensor([other])).logits[0, -1]
    finally:
        handle.remove()
    torch.testing.assert_close(found.steered.logits[0], expected)
    assert len(found.steered.text) > 0


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((4, 0, PROMPT), "source layer 4 is not in 0..3"),
        ((1, 9, PROMPT), "source position 9 is not among the 6 tokens"),
        ((1, 0, PROMPT, 5), "target layer 5 is not in 0..3"),
        ((1, 0, PROMPT, 1, -7), "target position -7 is not among"),
    ],
)
def test_a_patchscope_that_cannot_be_is_refused(model: ReplacementModel, where, said: str):
    with pytest.raises(TraceError) as error:
        tracer.patchscope(model, PROMPT, *where)
    assert said in str(error.value)


def parity() -> tuple[list[tuple[int, ...]], list[str]]:
    prompts = [(1, a, b) for a in range(3, 13) for b in range(13, 17)]
    return prompts, ["even" if a % 2 == 0 else "odd" for _, a, _ in prompts]


def test_a_probe_finds_what_a_token_says_and_its_control_what_can_be_memorised():
    model = replacement_model("gpt2")
    prompts, labels = parity()
    types = [prompt[1] for prompt in prompts]
    found = tracer.probe(model, prompts, labels, "resid_pre.0", position=1, types=types)
    assert found.accuracy == (1.0,) * 5
    assert min(found.control) > 0.9  # ten token vectors in 16 dimensions: any labels can be read
    assert abs(found.selectivity) < 0.1
    apart = tracer.probe(model, prompts, labels, "resid_pre.0", position=1, strength=0.01)
    assert apart.selectivity > 0.3  # shuffled prompt by prompt, there is nothing to learn
    assert (found.classes, found.chance) == (("even", "odd"), 0.5)


def test_a_probe_is_a_direction_of_the_stream(tmp_path: Path):
    model = replacement_model("gpt2")
    prompts, labels = parity()
    found = tracer.probe(model, prompts, labels, "resid_mid.1", position=1)
    inputs = torch.stack([model.record(one).stream(found.site)[1] for one in prompts])
    assert found.read(inputs) == labels
    made = found.directions()
    assert (made.labels, str(made.site)) == (("odd",), "resid_mid.1")
    made.save(tmp_path / "odd.safetensors")
    back = Directions.load(tmp_path / "odd.safetensors")
    assert back.about["held_out"]["selectivity"] == pytest.approx(found.selectivity)
    scores = inputs.float() @ back.vectors[0] + found.bias[0]
    assert [("odd" if score > 0 else "even") for score in scores] == labels


def test_a_probe_reads_features_and_several_classes():
    model = replacement_model("gpt2", kind="per_layer")
    prompts, _ = parity()
    labels = [str(prompt[2]) for prompt in prompts]
    found = tracer.probe(model, prompts, labels, 0, folds=3)
    assert found.classes == ("13", "14", "15", "16")
    assert found.weights.shape == (4, model.transcoder.features)
    assert len(found.accuracy) == 3
    assert sum(found.accuracy) / 3 > 0.8
    with pytest.raises(TraceError, match="features of layer 0 has no direction"):
        found.directions()
    again = tracer.probe(model, prompts, labels, 0, folds=3)
    assert (again.accuracy, again.control) == (found.accuracy, found.control)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ["a"]}, "40 prompts, but 1 labels"),
        ({"labels": ["a"] * 40}, "there are 1 labels; give two labels or more"),
        ({"labels": ["b"] + ["a"] * 39}, "label 'b' has one prompt"),
        ({"site": 3}, "layer 3 is not in 0..2"),
        ({"site": "mlp_out.1"}, "cannot be read at mlp_out.1"),
        ({"position": 3}, "position 3 is not in"),
        ({"folds": 1}, "folds 1"),
        ({"types": [0] * 40}, "the type 0 has more than one label"),
    ],
)
def test_a_probe_that_cannot_be_made_is_refused(model: ReplacementModel, options, said: str):
    prompts, labels = parity()
    given = {"prompts": prompts, "labels": labels, "site": "resid_pre.1"} | options
    with pytest.raises(TraceError) as error:
        tracer.probe(model, **given)
    assert said in str(error.value)


def test_a_probe_without_scikit_learn_says_what_to_install(
    model: ReplacementModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(TraceError, match="pip install 'tracer\\[features\\]'"):
        tracer.probe(model, *parity(), "resid_pre.1")
