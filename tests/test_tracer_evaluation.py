"""`tracer.evaluate`: figures against sums made directly here, laws, refusals, what is written."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tracer
from replacement_models import (
    DenseDecoder,
    JumpReLU,
    ModelError,
    ReLU,
    ReplacementModel,
    TranscoderLayer,
)
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.fidelity import fidelity
from replacement_models.replaced import Where, counted
from replacement_models.sites import Stage
from tests.random_models import LAYERS, VOCABULARY, WIDTH, replacement_model
from tracer.errors import TraceError
from tracer.evaluation.baselines import fit
from tracer.evaluation.evaluation import FIGURES, PAGE, Evaluation
from tracer.evaluation.layer_errors import OutputSums
from tracer.evaluation.pareto import front
from tracer.evaluation.settings import Settings
from tracer.evaluation.swaps import Swap, own_swaps
from tracer.evaluation.text import text_of
from tracer.evaluation.widths import Family, _absorbed, _judge

ROOT = Path(__file__).parents[1]
TINY = ROOT / "replacement_models" / "tiny"
SHORT: dict[str, Any] = {"context": 12, "alone_tokens": 40, "prompt_count": 2, "prompt_tokens": 6}


def corpus() -> list[list[int]]:
    """Random ids, none of them special."""
    drawn = torch.randint(3, VOCABULARY, (60, 23), generator=torch.Generator().manual_seed(0))
    rows: list[list[int]] = drawn.tolist()
    return rows


@cache
def evaluated(kind: str, skip: bool = False) -> tuple[ReplacementModel, Evaluation]:
    model = replacement_model("gpt2", kind=kind, skip=skip)
    return model, tracer.evaluate(model, corpus(), **SHORT)


def measured_rows(model: ReplacementModel) -> list[Tensor]:
    """The batches that figures are made on."""
    with text_of(model, corpus(), Settings(context=12)) as text:
        return list(text.batches(text.measured))


@contextmanager
def plainly_replaced(
    model: ReplacementModel, only: int | None, keep: Callable[[Tensor], Tensor], tokens: Tensor
) -> Iterator[dict[int, dict[str, Tensor]]]:
    """MLPs of a sequential model replaced by hooks of our own; what each read and gave."""
    seen: dict[int, dict[str, Tensor]] = {}
    written: dict[int, Tensor | float] = {}
    counts = keep(tokens)[..., None]

    def hook(layer: int) -> Callable[..., Tensor]:
        def run(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weights = model.transcoder.layers[layer]
            active = torch.relu(args[0] @ weights.W_enc.T + weights.b_enc)
            rows = weights.decoder.rows(torch.arange(len(weights.W_enc)))
            for slot, target in enumerate(model.transcoder.targets(layer)):
                written[target] = written.get(target, 0.0) + active @ rows[:, slot]
            guess = written.pop(layer) + weights.b_dec
            if weights.W_skip is not None:
                guess = guess + args[0] @ weights.W_skip
            seen[layer] = {"in": args[0], "active": active, "out": output, "guess": guess}
            return torch.where(counts, guess, output) if only in (None, layer) else output

        return run

    with ExitStack() as stack:
        for layer, block in enumerate(model.host.blocks):
            stack.callback(block.mlp.register_forward_hook(hook(layer)).remove)
        yield seen


@torch.no_grad()
def direct(model: ReplacementModel, only: int | None, rows: list[Tensor]) -> dict[str, float]:
    """KL, agreement and cross entropy, token by token."""
    kl, agreed, surprise = [], [], []
    for tokens in rows:
        keep = counted(model, tokens)
        own = model.host.model(tokens).logits.log_softmax(-1)
        with plainly_replaced(model, only, lambda ids: counted(model, ids), tokens):
            other = model.host.model(tokens).logits.log_softmax(-1)
        for row, at in keep.nonzero().tolist():
            truth, guess = own[row, at], other[row, at]
            kl.append(float((truth.exp() * (truth - guess)).sum()))
            agreed.append(float(truth.argmax() == guess.argmax()))
            if at + 1 < tokens.shape[1]:
                surprise.append(-float(guess[tokens[row, at + 1]]))
    return {
        "kl": sum(kl) / len(kl),
        "agreement": sum(agreed) / len(agreed),
        "cross_entropy": sum(surprise) / len(surprise),
    }


@pytest.mark.parametrize(("kind", "skip"), [("per_layer", True), ("cross_layer", False)])
def test_what_the_model_says_is_what_a_direct_computation_finds(kind: str, skip: bool):
    model, found = evaluated(kind, skip)
    whole = found.dictionaries[0]["replaced"]
    rows = measured_rows(model)
    for name, value in direct(model, None, rows).items():
        assert whole[name] == pytest.approx(value, rel=1e-9), name
    means = whole["baselines"]["means"]["cross_entropy"]
    assert means < whole["cross_entropy_itself"]  # random weights: nothing is lost to means
    assert whole["recovered"] is None
    assert ("skip" in whole["baselines"]) == skip


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_a_layer_replaced_alone_reads_the_models_own_pass(kind: str):
    model, found = evaluated(kind, kind == "per_layer")
    with text_of(model, corpus(), Settings(context=12)) as text:
        rows = list(text.batches(text.some(40)))
    for layer in range(LAYERS):
        alone = found.dictionaries[0]["layers"][layer]["alone"]
        for name, value in direct(model, layer, rows).items():
            assert alone[name] == pytest.approx(value, rel=1e-9), (layer, name)


@torch.no_grad()
def test_errors_and_firing_are_what_a_direct_computation_finds():
    model, found = evaluated("cross_layer")
    parts: dict[int, dict[str, list[Tensor]]] = {}
    for tokens in measured_rows(model):
        keep = counted(model, tokens)
        with plainly_replaced(model, -1, lambda ids: counted(model, ids), tokens) as seen:
            model.host.model(tokens)
        for layer, values in seen.items():
            for name, value in values.items():
                parts.setdefault(layer, {}).setdefault(name, []).append(value[keep])
    for layer, values in parts.items():
        figures = found.dictionaries[0]["layers"][layer]
        out, guess, active = (torch.cat(values[name]) for name in ("out", "guess", "active"))
        missed, sizes = (out - guess).square().sum(1), out.square().sum(1)
        rest = sizes.argsort()[: len(out) - math.ceil(len(out) / 100)]
        for name, some in (("total", torch.arange(len(out))), ("rest", rest)):
            spread = (out[some] - out[some].mean(0)).square().sum()
            expected = float(missed[some].sum() / spread)
            assert figures["error"][name] == pytest.approx(expected, rel=1e-5), (layer, name)
        assert figures["l0"] == pytest.approx(float((active != 0).sum(1).double().mean()))
        assert figures["dead"] == float((active == 0).all(0).double().mean())
        density = (active != 0).double().mean(0)
        assert figures["density"]["dense"] == float((density > 0.1).double().mean())
        assert sum(figures["density"]["by_power"]) == len(density)


def test_the_median_token_and_the_rest_leave_out_what_owns_the_sum():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    guess = output + 0.1 * torch.randn(200, 8, generator=generator, dtype=torch.float64)
    output[[3, 90]] *= 1000
    guess[[3, 90]] = output[[3, 90]] * 1.5
    centre = torch.zeros(8, dtype=torch.float64)
    sums = OutputSums(200, centre, 1)
    for some in (slice(0, 50), slice(50, 200)):
        sums.add(output[some], [guess[some]])
    [found] = sums.explained()
    missed = (output - guess).square().sum(1)
    ratio = missed / output.square().sum(1)
    kept = torch.ones(200, dtype=torch.bool)
    kept[[3, 90]] = False
    spread = (output[kept] - output[kept].mean(0)).square().sum()
    assert found.total == pytest.approx(0.25, rel=0.01)
    assert found.rest == pytest.approx(float(missed[kept].sum() / spread), rel=1e-4)
    assert found.median == pytest.approx(float(ratio.median()))
    assert found.rest < 0.02


def test_an_affine_layer_leaves_nothing_to_its_baseline():
    generator = torch.Generator().manual_seed(0)
    x, matrix = (torch.randn(*shape, generator=generator) for shape in ((400, 8), (8, 8)))
    y = x @ matrix + 3
    for guess in fit(x, y, maps=True).guesses(x.double()):
        torch.testing.assert_close(guess, y.double(), rtol=0, atol=0.01)
    assert fit(x, y, maps=False).maps == ()


def test_the_affine_baseline_is_fitted_on_other_rows_and_beats_the_mean():
    _, found = evaluated("per_layer", True)
    for layer in found.dictionaries[0]["layers"]:
        assert 0 < layer["affine_error"]["total"] < 1
    figures = found.figures
    assert figures["fitted_tokens"] + figures["measured_tokens"] <= 60 * 24
    assert figures["fitted_tokens"] < figures["measured_tokens"]


def test_graph_scores_are_those_of_trace_with_baselines_beside():
    model, found = evaluated("per_layer", True)
    graphs = found.dictionaries[0]["graphs"]
    with text_of(model, corpus(), Settings(context=12, prompts=2, prompt_tokens=6)) as text:
        prompts = text.prompts()
    assert len(graphs["prompts"]) == len(prompts) == 2
    for row, prompt in zip(graphs["prompts"], prompts, strict=True):
        for name, cap in (("graph", 1000), ("capped", 100)):
            graph = tracer.trace(model, prompt, max_features=cap)
            assert row[name]["replacement"] == graph.scores.replacement
            assert row[name]["completeness"] == graph.scores.completeness
        assert row["skip_alone"] == graph.metadata["skip_alone"]
        assert 0 <= row["affine_alone"]["replacement"] <= 1
    values = [row["graph"]["replacement"] for row in graphs["prompts"]]
    assert graphs["graph"]["replacement"]["mean"] == pytest.approx(sum(values) / 2)
    assert graphs["graph"]["replacement"]["least"] == min(values)


def autoencoder(stage: Stage, noise: float = 0.0) -> SparseAutoencoder:
    """Reconstructs exactly, from each entry's two signs, or not quite."""
    one = torch.eye(WIDTH, dtype=torch.float64)
    both = torch.cat([one, -one])
    generator = torch.Generator().manual_seed(0)
    rows = both + noise * torch.randn(both.shape, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(WIDTH, dtype=torch.float64)
    bias = torch.zeros(2 * WIDTH, dtype=torch.float64)
    layer = TranscoderLayer(both, bias, DenseDecoder(rows[:, None]), nothing, ReLU(), stage=stage)
    return SparseAutoencoder([layer] * LAYERS)


STAGES = (Stage.RESID_PRE, Stage.ATTN_OUT, Stage.RESID_MID, Stage.MLP_OUT)


@pytest.mark.parametrize("stage", STAGES)
def test_a_perfect_autoencoder_changes_nothing_wherever_it_stands(stage: Stage):
    model = replacement_model("gpt2", kind="per_layer")
    found = tracer.evaluate(model, corpus(), transcoders=autoencoder(stage), **SHORT)
    [one] = found.dictionaries
    assert one["replaced"]["kl"] == pytest.approx(0, abs=1e-9)
    said = one["replaced"]["cross_entropy"]
    assert said == pytest.approx(one["replaced"]["cross_entropy_itself"])
    assert {layer["place"] for layer in one["layers"]} == {stage.name.lower()}
    for layer in one["layers"]:
        assert layer["error"]["total"] == pytest.approx(0, abs=1e-12)
        assert layer["affine_error"] is None
        assert layer["alone"]["kl"] == pytest.approx(0, abs=1e-9)
    assert one["graphs"] is one["swaps"] is one["labels"] is None


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_an_autoencoder_is_spliced_in_where_it_reads(stage: Stage):
    model = replacement_model("gpt2", kind="per_layer")
    wrong = autoencoder(stage, noise=0.2)
    found = tracer.evaluate(model, corpus(), transcoders=wrong, **SHORT)
    rows = wrong.layers[0].decoder.rows(torch.arange(2 * WIDTH))[:, 0]

    def made(value: Tensor) -> Tensor:
        return torch.relu(torch.cat([value, -value], -1)) @ rows

    kl, count = 0.0, 0
    for tokens in measured_rows(model):
        keep = counted(model, tokens)
        own = model.host.model(tokens).logits.log_softmax(-1)
        other = plain_gpt2(model, tokens, keep, stage, made).log_softmax(-1)
        kl += float((own.exp() * (own - other)).sum(-1)[keep].sum())
        count += int(keep.sum())
    assert found.dictionaries[0]["replaced"]["kl"] == pytest.approx(kl / count, rel=1e-9)


def plain_gpt2(
    model: ReplacementModel, tokens: Tensor, keep: Tensor, stage: Stage, made: Callable[..., Tensor]
) -> Tensor:
    """The model's forward pass written out, with one stage of every block reconstructed."""
    whole: Any = model.host.model
    body = whole.transformer
    stream = body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))

    def at(here: Stage, value: Tensor) -> Tensor:
        return torch.where(keep[..., None], made(value), value) if here is stage else value

    mask = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)[None, None]
    for block in body.h:
        stream = at(Stage.RESID_PRE, stream)
        attended = block.attn(block.ln_1(stream), attention_mask=mask)[0]
        stream = at(Stage.RESID_MID, stream + at(Stage.ATTN_OUT, attended))
        stream = stream + at(Stage.MLP_OUT, block.mlp(block.ln_2(stream)))
    logits: Tensor = whole.lm_head(body.ln_f(stream))
    return logits


def test_the_embedded_default_is_measured_as_fidelity_measures_it(tmp_path: Path):
    model = ReplacementModel.load()
    few: dict[str, Any] = {"max_tokens": 1500, "prompt_count": 1, "alone_tokens": 0}
    found = tracer.evaluate(model, transcoders=[TINY / "plt", TINY / "clt"], **few)
    plt, clt = found.dictionaries
    with text_of(model, None, Settings(max_tokens=1500)) as text:
        expected = fidelity(model, list(text.batches(text.measured)))
    for name, figure in (("error", "error"), ("density", "l0"), ("dead", "dead")):
        got = [layer[figure] for layer in clt["layers"]]
        got = [one["total"] for one in got] if name == "error" else got
        assert got == pytest.approx(getattr(expected, name), rel=1e-5), name
    assert clt["replaced"]["kl"] == pytest.approx(expected.comparison.divergence, rel=1e-6)
    whole = clt["replaced"]
    means = whole["baselines"]["means"]["cross_entropy"]
    lost = means - whole["cross_entropy_itself"]
    assert whole["recovered"] == pytest.approx((means - whole["cross_entropy"]) / lost)
    assert whole["baselines"]["means"]["recovered"] == 0
    assert whole["agreement"] == expected.comparison.agreement
    assert clt["swaps"]["flipped"] > 0.9 > 0.1 > clt["swaps"]["flipped_by_random_features"]
    assert clt["labels"]["shown"] > 0.3
    assert clt["labels"]["true"] <= clt["labels"]["shown"]
    assert clt["replaced"]["kl"] < clt["replaced"]["baselines"]["affine"]["kl"]
    assert plt["graphs"]["graph"]["replacement"]["mean"] > 0.5
    assert found.figures["widths"] == []
    found.save(tmp_path / "a")
    again = Evaluation.load(tmp_path / "a")
    assert again.figures == found.figures
    check_page((tmp_path / "a" / PAGE).read_text(encoding="utf-8"))


def check_page(text: str) -> None:
    """A page that runs and fetches nothing."""
    assert "default-src 'none'" in text
    for tag in ("<script", "<img", "<link", "href=", "url("):
        assert tag not in text
    assert text.count("<svg ") >= 4


def test_swaps_of_a_file_are_carried_out(tmp_path: Path):
    model = ReplacementModel.load()
    prompt = "The capital of the state containing {} is"
    written = [
        {"prompt": prompt.format("Dallas"), "other": prompt.format("Oakland")},
        {"prompt": prompt.format("Dallas"), "other": prompt.format("Oakland"), "positions": [1]},
        {"prompt": prompt.format("Dallas"), "other": prompt.format("Oakland"), "answer": " the"},
    ]
    path = tmp_path / "swaps.json"
    path.write_text(json.dumps(written))
    few: dict[str, Any] = {"max_tokens": 600, "prompt_count": 0, "alone_tokens": 0}
    swaps = tracer.evaluate(model, swaps=path, **few).dictionaries[0]["swaps"]
    first, elsewhere, other = swaps["swaps"]
    assert (first["before"], first["wanted"]) == (" Austin", " Sacramento")
    assert first["after"] not in (" Austin", None)
    assert first["flipped"] == (first["after"] == " Sacramento")
    assert not first["kept"]
    assert (elsewhere["flipped"], elsewhere["kept"]) == (False, True)
    assert (other["wanted"], other["flipped"]) == (" the", False)
    assert swaps["flipped"] == pytest.approx(first["flipped"] / 3)


def test_silent_features_in_one_layer_leave_the_embedded_swaps_as_they_were():
    model = ReplacementModel.load()
    own = model.transcoder
    first, more = own.layers[0], 7
    assert isinstance(first.activation, JumpReLU)
    rows = first.decoder.rows(torch.arange(len(first.W_enc)))
    wider = replace(
        first,
        W_enc=torch.cat([first.W_enc, torch.zeros_like(first.W_enc[:more])]),
        b_enc=torch.cat([first.b_enc, first.b_enc.new_full((more,), -1.0)]),
        decoder=DenseDecoder(torch.cat([rows, rows[:more]])),
        activation=JumpReLU(torch.cat([first.activation.threshold, torch.ones(more)])),
    )
    wide = type(own)([wider, *own.layers[1:]], read=own.read, write=own.write)
    about = SimpleNamespace(model=model, layers=range(len(own.layers)), transcoder=own)
    expected = own_swaps(about, 40)  # type: ignore[arg-type]
    assert expected is not None
    assert expected["pairs"] == 40
    about.transcoder = wide
    assert own_swaps(about, 40) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1.0, 0.01, 100.0])
def test_a_feature_that_splits_is_absorbed_or_missed_where_no_child_fires(size: float):
    axes = torch.eye(6)
    narrow = axes[:3]
    wide = torch.stack(
        [
            axes[0] + 0.5 * axes[3],
            axes[0] - 0.5 * axes[3],
            axes[1],
            axes[4] + 0.3 * axes[0],
            axes[5],
        ]
    )
    wide = wide / wide.norm(dim=1, keepdim=True)
    family = Family.of(narrow, wide)
    first = torch.zeros(80, 3)
    second = torch.zeros(80, 5)
    first[:60, 0] = 1.0
    second[:25, 0] = second[25:40, 1] = 1.0
    second[40:55, 3] = 3.0
    first[60:, 1] = second[60:, 2] = 1.0
    second[[70, 71], 4] = 1.0
    family.count(first != 0, second != 0)
    family.settle()
    assert family.parent is not None
    assert family.parent.tolist() == [0, 0, 1, -1, -1]
    assert family.children().tolist() == [2, 1, 0]
    _judge(family, (_rows(narrow), _rows(size * wide)), 0, [first, second / size])
    assert family.outcome == {"child": 60, "absorbed": 15, "missed": 5}


@pytest.mark.parametrize(
    ("cosines", "written", "absorbed"),
    [
        ([0.026], [9.0], True),
        ([0.024], [9.0], False),  # not alike
        ([0.5], [0.51], True),
        ([0.5], [0.49], False),  # less than half of what the feature itself writes
        ([0.5, 0.6], [2.0, 1.9], True),
        ([0.5, 0.6, 0.7], [2.0, 1.9, 0.2], False),  # less than half of what is written
        ([0.5, 0.6, -0.7], [2.0, 1.9, -5.0], True),
        ([-0.5], [-2.0], False),
    ],
)
def test_what_absorbs_is_alike_and_writes_half_of_all_and_of_the_feature(
    cosines: list[float], written: list[float], absorbed: bool
):
    narrow = torch.eye(5)[:1]
    rows = torch.zeros(len(cosines) + 1, 5)
    for at, cosine in enumerate(cosines):
        rows[at, 0], rows[at, 1 + at] = cosine, (1 - cosine**2) ** 0.5
    rows[-1, 0] = 1.0  # never fires
    fires = torch.tensor([one / cosine for one, cosine in zip(written, cosines, strict=True)])
    active = [torch.tensor([[0.0], [1.0]]), torch.zeros(2, len(rows))]
    active[1][1, :-1] = fires
    both: Any = (_rows(narrow), _rows(rows))
    assert _absorbed(both, 0, active, torch.tensor([[1, 0]])) == absorbed


def _rows(rows: Tensor) -> Any:
    """A dictionary of which only decoder rows are asked."""

    class Rows:
        def decoder_rows(self, _: int, features: Tensor) -> Tensor:
            return rows[features][:, None]

    return Rows()


def test_widths_of_one_kind_are_compared_and_a_copy_splits_nothing():
    model = replacement_model("gpt2", kind="per_layer")
    own = model.transcoder

    def widened(layer: TranscoderLayer) -> TranscoderLayer:
        rows = layer.decoder.rows(torch.arange(len(layer.W_enc)))
        return replace(
            layer,
            W_enc=torch.cat([layer.W_enc, torch.zeros_like(layer.W_enc[:4])]),
            b_enc=torch.cat([layer.b_enc, layer.b_enc.new_full((4,), -1.0)]),
            decoder=DenseDecoder(torch.cat([rows, rows[:4]])),
        )

    wide = type(own)([widened(layer) for layer in own.layers], read=own.read, write=own.write)
    found = tracer.evaluate(model, corpus(), transcoders=[wide, own], **SHORT)
    [pair] = found.figures["widths"]
    for layer in pair["layers"]:
        assert layer["narrow_features"] + 4 == layer["wide_features"]
        assert layer["stayed"] == 1
        assert layer["split"] == layer["lost"] == layer["new"] == layer["absorbed"] == 0
    assert "beside" in found.page


def test_the_front_of_a_plot_holds_what_none_beats_in_both():
    places = {"a": (10.0, 0.5), "b": (20.0, 0.3), "c": (30.0, 0.4), "d": (40.0, 0.1)}
    assert front(places, 1) == ["a", "b", "d"]
    assert front(places, -1) == ["a"]


def test_earlier_evaluations_stand_in_the_plot(tmp_path: Path):
    model, found = evaluated("per_layer", True)
    named = Evaluation(
        {**found.figures, "dictionaries": [{**found.dictionaries[0], "name": "<b>&"}]}
    )
    named.save(tmp_path / "before")
    few: dict[str, Any] = {**SHORT, "alone_tokens": 0, "prompt_count": 0}
    again = tracer.evaluate(model, corpus(), earlier=[tmp_path / "before"], **few)
    assert [one["name"] for one in again.figures["earlier"]] == ["<b>&"]
    assert "&lt;b&gt;&amp;" in again.page
    assert "<b>" not in again.page


def test_mistakes_are_one_line(tmp_path: Path):
    model, _ = evaluated("per_layer", True)
    for wrong, said in (
        ({"max_tokens": 3}, "max_tokens is 3, expected 64 or more"),
        ({"context": 99}, "context is 99, but the model reads at most 16"),
        ({"earlier": [tmp_path]}, "holds no evaluation"),
        ({"transcoders": []}, "transcoders is empty"),
        ({"prompts": "one"}, "expected a list of prompts"),
        ({"swaps": [Swap([3, 4], [3, 4, 5])]}, "name prompts of equal length"),
        ({"swaps": [Swap([3, 4], [3, 5], (7,))]}, "position 7 is not in 0..1"),
    ):
        with pytest.raises((TraceError, ModelError), match=said) as error:
            tracer.evaluate(
                model, corpus(), **{**SHORT, "alone_tokens": 0, "prompt_count": 0, **wrong}
            )
        assert "\n" not in str(error.value)
    with pytest.raises(TraceError, match="too few to fit baselines"):
        tracer.evaluate(model, [[4, 5, 6]] * 9)
    with pytest.raises(TraceError, match="no text of this model is known"):
        tracer.evaluate(model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a list of swaps"),
        ('[{"prompt": "a"}]', "swap 0: expected an object with prompt and other"),
        ('[{"prompt": "a", "other": 3}]', "other: expected text or token ids, got 3"),
        ('[{"prompt": "a", "other": "b", "positions": [0.5]}]', "positions: expected whole"),
        ('[{"prompt": "a", "other": "b", "answer": true}]', "answer: expected a token"),
    ],
)
def test_a_file_of_swaps_that_is_wrong_is_refused(text: str, said: str, tmp_path: Path):
    model, _ = evaluated("per_layer", True)
    path = tmp_path / "swaps.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        tracer.evaluate(model, corpus(), swaps=path, **SHORT)


def test_an_evaluation_that_is_torn_or_anothers_is_refused(tmp_path: Path):
    for text in ("{", "[]", '{"format": "x", "version": 1, "dictionaries": []}', '{"format": 1}'):
        (tmp_path / FIGURES).write_text(text)
        with pytest.raises(TraceError, match=FIGURES):
            Evaluation.load(tmp_path)


def test_figures_that_are_no_numbers_are_null():
    _, found = evaluated("cross_layer")
    text = json.dumps(found.figures, allow_nan=False)
    assert "NaN" not in text
    assert found.dictionaries[0]["graphs"]["skip_alone"] is None


def test_a_layer_without_a_dictionary_keeps_its_mlp():
    model = replacement_model("gpt2", kind="per_layer", at=[1], elsewhere="error")
    found = tracer.evaluate(model, corpus(), **{**SHORT, "prompt_count": 1})
    [one] = found.dictionaries
    assert [layer["layer"] for layer in one["layers"]] == [1]
    where = Where(layers=[1])
    expected = fidelity(model, measured_rows(model), where)
    assert one["replaced"]["kl"] == pytest.approx(expected.comparison.divergence)
