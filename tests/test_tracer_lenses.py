"""Logit, tuned and Jacobian lens: what they read, how they are fitted, saved and refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import save_file

import tracer
from replacement_models import ReplacementModel
from replacement_models.sites import Site
from tests.random_models import LAYERS, PROMPT, VOCABULARY, WIDTH, replacement_model
from tracer import AffineLens, TraceError
from tracer.lenses.affine import identity
from tracer.lenses.corpus import packed, texts_of
from tracer.lenses.jacobian import summed_jacobians
from tracer.lenses.readings import reader
from tracer.lenses.streams import streams

TEXTS = [[(3 * n + k * k) % 27 + 2 for k in range(12)] for n in range(60)]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement_model("gpt2", skip=True)


@pytest.fixture(scope="module")
def embedded() -> ReplacementModel:
    return ReplacementModel.load()


@pytest.fixture(scope="module")
def tuned(embedded: ReplacementModel) -> AffineLens:
    return tracer.fit_lens(embedded, steps=12)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "olmo2"])
def test_the_logit_lens_reads_the_last_stream_as_the_model_does(family: str):
    model = replacement_model(family)
    recording = model.record(PROMPT)
    found = reader(model, recording, "logit")(Site.parse(f"resid_pre.{LAYERS}"))
    torch.testing.assert_close(found, recording.logits, rtol=0, atol=2e-5)
    assert tracer.lens(model, PROMPT).layers["kl"][-1].as_py() == pytest.approx(0, abs=1e-9)


def test_the_tables_say_what_the_logits_say(model: ReplacementModel):
    found = tracer.lens(model, PROMPT, tokens=[4, 9], sites=model.host.stream_sites)
    recording = model.record(PROMPT)
    assert found.layers["site"].to_pylist() == [str(site) for site in model.host.stream_sites]
    row = found.table.to_pylist()[6 * 3 + 2]
    assert (row["site"], row["position"]) == ("resid_mid.1", 2)
    logits = reader(model, recording, "logit")(Site.parse("resid_mid.1"))[2]
    odds, answer = logits.softmax(-1), recording.logits[2].softmax(-1)
    assert row["token"] == int(odds.argmax())
    assert row["probability"] == pytest.approx(float(odds.max()))
    assert row["kl"] == pytest.approx(float((answer * (answer / odds).log()).sum()))
    [named] = [
        one
        for one in found.named.to_pylist()
        if (one["token"], one["site"], one["position"]) == (9, "resid_mid.1", 2)
    ]
    assert named["rank"] == 1 + int((logits > logits[9]).sum())
    assert named["probability"] == pytest.approx(float(odds[9]))
    assert named["lead"] == pytest.approx(float(logits[9] - logits[recording.logits[2].argmax()]))


def test_a_token_is_overtaken_where_the_answer_passes_it_for_good(model: ReplacementModel):
    for position in range(1, len(PROMPT)):
        every = range(VOCABULARY)
        found = tracer.lens(model, PROMPT, tokens=every, position=position)
        rows = found.named.filter(pc.equal(found.named["position"], position))
        lead = rows["lead"].to_numpy().reshape(LAYERS + 1, VOCABULARY)
        for way in found.overtaken.to_pylist():
            ahead = lead[:, way["token"]] > 0
            sites = [f"resid_pre.{layer}" for layer in range(LAYERS + 1)]
            last = max(ahead.nonzero()[0], default=None)
            assert way["ahead_until"] == (None if last is None else sites[last])
            assert way["overtaken_at"] == (None if last is None else sites[last + 1])
        leads = [way for way in found.overtaken.to_pylist() if way["leads_from"]]
        answer = int(model.record(PROMPT).logits[position].argmax())
        assert [way["token"] for way in leads] == [answer]


def test_an_identity_is_the_logit_lens(model: ReplacementModel):
    plain = AffineLens("tuned", *identity(LAYERS, WIDTH), {})
    assert tracer.lens(model, PROMPT, lens=plain).table == tracer.lens(model, PROMPT).table


def test_a_tuned_lens_is_nearer_to_the_answer_than_the_logit_lens(tuned: AffineLens):
    held = tuned.about["held_out"]
    assert held["tokens"] > 100
    assert all(a < b - 0.3 for a, b in zip(held["kl"][:-1], held["kl_logit"][:-1], strict=True))
    assert held["kl"][-1] == held["kl_logit"][-1]


def test_a_fitted_lens_is_read_on_the_command_line_and_from_python_alike(
    embedded: ReplacementModel, tuned: AffineLens, tmp_path: Path
):
    path = tmp_path / "tuned.safetensors"
    tuned.save(path)
    prompt = "The opposite of hot is"
    assert tracer.lens(embedded, prompt, lens=path).layers == (
        tracer.lens(embedded, prompt, "tuned", lens=AffineLens.load(path)).layers
    )


def test_the_same_seed_gives_the_same_bytes(model: ReplacementModel, tmp_path: Path):
    for kind in ("tuned", "jacobian"):
        for name in ("a", "b"):
            made = tracer.fit_lens(model, TEXTS, kind, steps=2, seed=3)
            made.save(tmp_path / f"{name}.safetensors")
        first, second = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
        assert first == second
        other = tracer.fit_lens(model, TEXTS, kind, steps=2, seed=4)
        assert not torch.equal(other.maps, made.maps)


def test_fitting_leaves_the_model_as_it_was(model: ReplacementModel):
    parameters = [*model.host.model.parameters()]
    before = [(one.clone(), one.requires_grad, one.grad) for one in parameters]
    for kind in ("tuned", "jacobian"):
        tracer.fit_lens(model, TEXTS, kind, steps=1)
    for one, (value, wanted, slope) in zip(parameters, before, strict=True):
        assert torch.equal(one, value)
        assert (one.requires_grad, one.grad) == (wanted, slope)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_jacobian_is_the_slope_of_the_model(family: str):
    model = replacement_model(family)
    rows, at = torch.tensor([PROMPT, PROMPT[::-1]]), torch.tensor([3, 5])
    jacobians, means = summed_jacobians(model, rows, at, 1)
    block, step = model.host.blocks[1].module, 1e-4
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).double()

    def final(size: float) -> torch.Tensor:
        def add(module, inputs):
            moved = inputs[0].clone()
            moved[[0, 1], at] += size * vector
            return (moved, *inputs[1:])

        handle = block.register_forward_pre_hook(add)
        try:
            with torch.no_grad():
                return streams(model, rows).entering[-1][[0, 1], at].sum(0)
        finally:
            handle.remove()

    slope = (final(step) - final(-step)) / (2 * step)
    limit = 1e-4 if family == "gpt2" else 5e-3  # rotary tables are in float32
    torch.testing.assert_close(jacobians[1].double() @ vector, slope, rtol=0, atol=limit)
    with torch.no_grad():
        entering = streams(model, rows).entering[1]
    torch.testing.assert_close(
        means[1].double(), entering[:, 1:].mean(1).sum(0), rtol=1e-5, atol=1e-5
    )


def test_texts_held_out_are_not_fitted_on(model: ReplacementModel):
    marked = [[n % 27 + 2] * 40 for n in range(26)]
    text = packed(model, marked, 10_000, 0.2, 0)
    apart = set(text.held_out.flatten().tolist()) & set(text.fitted.flatten().tolist())
    assert not apart
    assert len(text.held_out) < len(text.fitted) / 3


def test_a_file_is_parted_by_blank_lines_or_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    assert texts_of(path) == ["one\ntwo", "three"]
    path.write_text("one\ntwo\n")
    assert texts_of(path) == ["one", "two"]
    path.write_text(" \n")
    with pytest.raises(TraceError, match="holds no text"):
        texts_of(path)


def test_a_heat_map_shows_tokens_or_ranks(model: ReplacementModel):
    found = tracer.lens(model, PROMPT, tokens=[4])
    for name, title in ((None, "likeliest token"), ("4", "rank of '4'")):
        texts = [one.text for one in ElementTree.fromstring(found.heat_map(name)).iter()]
        assert f"logit lens: {title}" in texts
        cells = found.table["top"] if name is None else found.named["rank"]
        assert {str(value) for value in cells.to_pylist()} <= set(texts)
    with pytest.raises(TraceError, match="'5' is not among the tokens"):
        found.heat_map("5")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "raw"}, "kind is 'raw', expected one of logit, tuned, jacobian, local"),
        ({"kind": "tuned"}, "the tuned lens has to be fitted first"),
        ({"kind": "local", "lens": "fitted"}, "kind is 'local', but the lens given is a tuned"),
        ({"lens": "small"}, "for 1 layers of width 16, but random-gpt2 has 3 of width 16"),
        ({"lens": "fitted", "sites": ["resid_mid.1"]}, "reads the stream entering a layer"),
        ({"lens": "missing.safetensors"}, "missing.safetensors: no such file"),
        ({"sites": ["mlp_out.1"]}, "cannot be read at mlp_out.1"),
        ({"sites": []}, "sites is an empty list"),
        ({"tokens": [VOCABULARY]}, "target 29 is not in 0..28"),
        ({"position": 6}, "position is 6, but the prompt has 6 tokens"),
        ({"skip_positions": 6}, "skip_positions is 6, but the prompt has 6 tokens"),
    ],
)
def test_what_cannot_be_read_is_refused(model: ReplacementModel, options: dict, said: str):
    sizes = {"fitted": LAYERS, "small": 1}
    named = options.get("lens")
    if named in sizes:
        options = options | {"lens": AffineLens("tuned", *identity(sizes[named], WIDTH), {})}
    with pytest.raises(TraceError) as error:
        tracer.lens(model, PROMPT, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "logit"}, "kind is 'logit', expected one of tuned, jacobian to fit"),
        ({"steps": 0}, "steps is 0, expected 1 or more"),
        ({"held_out": 1.0}, "held_out is 1.0, expected a share"),
        ({"corpus": None}, "corpus is missing"),
        ({"corpus": [[3, 4]]}, "make no row of 16 to fit on"),
        ({"corpus": ["text"]}, "this model has no tokenizer"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model: ReplacementModel, options: dict, said: str):
    with pytest.raises(TraceError) as error:
        tracer.fit_lens(model, **{"corpus": TEXTS, "steps": 1} | options)
    assert said in str(error.value)


def test_a_file_that_is_no_lens_is_refused(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    maps, offsets = identity(2, 4)
    about = {"format": "tracer-lens", "version": 1, "kind": "tuned"}
    cases = [
        ({"maps": maps, "offsets": offsets}, None, "is no lens"),
        ({"maps": maps, "offsets": offsets}, about | {"version": 2}, "version 2; expected"),
        ({"maps": maps, "offsets": offsets}, about | {"kind": "x"}, "kind is 'x'"),
        ({"maps": maps}, about, "holds \\['maps'\\]"),
        ({"maps": maps, "offsets": maps}, about, "expected \\(layers, d_model, d_model\\)"),
        ({"maps": maps / 0, "offsets": offsets}, about, "not finite"),
    ]
    for tensors, said, message in cases:
        header = {} if said is None else {"lens": json.dumps(said)}
        save_file({name: one.clone() for name, one in tensors.items()}, path, header)
        with pytest.raises(TraceError, match=message):
            AffineLens.load(path)
    path.write_bytes(b"torn")
    with pytest.raises(TraceError, match="cannot be read as safetensors"):
        AffineLens.load(path)
    with pytest.raises(TraceError, match="expected a suffix"):
        AffineLens("tuned", maps, offsets, {}).save(tmp_path / "x.bin")
