"""The replacement model, run: against a plain forward pass, its laws, and what it refuses."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from replacement_models import (
    DenseDecoder,
    ModelError,
    ReadPoint,
    ReplacementModel,
    TopK,
    TranscoderLayer,
    WritePoint,
)
from replacement_models.dictionaries.neurons import neurons
from replacement_models.fidelity import compare, fidelity
from replacement_models.hosts import host_of
from replacement_models.replaced import (
    Where,
    Writes,
    counted,
    replaced,
    run,
    special_tokens,
)
from tests.random_models import FAMILIES, LAYERS, PROMPT, language_model, replacement_model

EXACT = ("gpt2", "gpt_neox", "gpt_neox_sequential", "gpt_neo", "gptj", "phi")
"""Families whose norms honour float64; others run RMSNorm in float32 inside transformers."""
TOKENS = torch.tensor([PROMPT, (1, 5, 2, 9, 7, 11), (3, 8, 21, 0, 14, 1)])
"""Ids 0, 1 and 2 are special to the random models."""
EVERYWHERE = Where(skip_positions=0, keep_tokens=())


def logits_of(model: ReplacementModel, tokens: Tensor = TOKENS) -> Tensor:
    """The unmodified model's."""
    return run(model, tokens, Where(layers=())).logits


@cache
def neural(family: str) -> ReplacementModel:
    model = language_model(family)
    return ReplacementModel.from_huggingface(model, None, neurons(host_of(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_neurons_as_dictionary_nothing_changes(family: str):
    model = neural(family)
    own, other = logits_of(model), run(model, TOKENS, EVERYWHERE)
    limit = (1e-9 if family in EXACT else 2e-5) * float(own.abs().max())
    torch.testing.assert_close(other.logits, own, rtol=0, atol=limit)
    assert list(other.layers) == [0, 1, 2]
    found = fidelity(model, [TOKENS])
    assert max(found.error) < 1e-9
    assert found.comparison.agreement == 1
    assert abs(found.comparison.divergence) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_with_nothing_replaced_every_bit_is_the_models(family: str):
    model = replacement_model(family)
    with torch.no_grad():
        own = model.host.run(PROMPT, patterns=False)
    tokens = torch.tensor([PROMPT])
    for where in (Where(layers=()), Where(positions=()), Where(skip_positions=len(PROMPT))):
        assert torch.equal(run(model, tokens, where).logits[0], own)
    assert not torch.equal(run(model, tokens).logits[0], own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replacement_at_one_position_leaves_earlier_ones_alone(family: str):
    model = replacement_model(family)
    own, other = logits_of(model), run(model, TOKENS, Where(positions=[4])).logits
    assert torch.equal(other[:, :4], own[:, :4])
    assert (other[:, 4:] != own[:, 4:]).any(-1).all()


class Remembering(nn.Module):
    """In a norm's place: the same, and what it read stays to be looked at."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.inner(x)


class StandIn(nn.Module):
    """In the place of an MLP (or of what follows it): its dictionary, feature by feature."""

    def __init__(
        self, plain: "Plain", layer: int, inner: nn.Module, mlp: Remembering | None = None
    ) -> None:
        super().__init__()
        self.plain, self.layer, self.inner, self.mlp = plain, layer, inner, mlp

    def forward(self, x: Tensor) -> Tensor:
        own, plain, model = self.inner(x), self.plain, self.plain.model
        read, layer = self.read(x), self.layer
        weights = model.transcoder.layers[layer]
        plain.active[layer] = weights.activation(read @ weights.W_enc.T + weights.b_enc)
        out = own.clone()
        for row, position in plain.places:
            total = weights.b_dec.clone()
            if weights.W_skip is not None:
                total += read[row, position] @ weights.W_skip
            for source, active in plain.active.items():
                if layer in model.transcoder.targets(source):
                    rows = model.transcoder.layers[source].decoder.weight
                    slot = layer - model.transcoder.targets(source)[0]
                    for feature, amount in enumerate(active[row, position].tolist()):
                        total += amount * rows[feature, slot]
            out[row, position] = total
        return out

    def read(self, x: Tensor) -> Tensor:
        model = self.plain.model
        norm = model.host.blocks[self.layer].mlp_norm
        normed = x if self.mlp is None else self.mlp.seen
        if model.transcoder.read is ReadPoint.NORMED or norm is None:
            return normed
        residual = self.plain.norms[self.layer].seen
        if model.transcoder.read is ReadPoint.RESIDUAL:
            return residual
        return norm.centre(residual) / norm.scale(residual)


class Plain:
    """Modules put in the places of others, no hook: which layers, and which (row, position)."""

    def __init__(self, model: ReplacementModel, layers: list[int], places: list[tuple[int, int]]):
        self.model, self.layers, self.places = model, layers, places
        self.active: dict[int, Tensor] = {}
        self.norms: dict[int, Remembering] = {}

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        with self.swapped():
            return self.model.host.model(input_ids=tokens, use_cache=False).logits

    @contextmanager
    def swapped(self) -> Iterator[None]:
        put: list[tuple[nn.Module, str, nn.Module]] = []

        def swap(block: nn.Module, module: nn.Module, stand_in: nn.Module) -> None:
            [name] = [name for name, child in block.named_children() if child is module]
            put.append((block, name, module))
            setattr(block, name, stand_in)

        for layer in self.layers:
            block = self.model.host.blocks[layer]
            if block.mlp_norm is not None:
                self.norms[layer] = Remembering(block.mlp_norm.module)
                swap(block.module, block.mlp_norm.module, self.norms[layer])
            if self.model.transcoder.write is WritePoint.POST_NORM:
                assert block.mlp_post_norm is not None
                mlp = Remembering(block.mlp)
                swap(block.module, block.mlp, mlp)
                after = block.mlp_post_norm.module
                swap(block.module, after, StandIn(self, layer, after, mlp))
            else:
                swap(block.module, block.mlp, StandIn(self, layer, block.mlp))
        try:
            yield
        finally:
            for block_module, name, module in reversed(put):
                setattr(block_module, name, module)


DICTIONARIES: list[dict[str, Any]] = [
    {"kind": "cross_layer", "skip": True, "read": ReadPoint.NORMED_UNWEIGHTED},
    {"kind": "per_layer", "skip": True, "read": ReadPoint.RESIDUAL, "activation": "topk"},
    {"kind": "cross_layer", "activation": "jump_relu"},
]
POST_NORM: dict[str, Any] = {"write": WritePoint.POST_NORM, "activation": "topk"}


@pytest.mark.parametrize("layers", [None, [0, 2], [1]])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, options) for family in ("gpt2", "gpt_neox") for options in DICTIONARIES),
        *(
            (family, {**options, **more})
            for family in ("gemma2", "olmo2")
            for more in ({}, POST_NORM)
            for options in DICTIONARIES
        ),
    ],
)
def test_logits_are_those_of_a_forward_pass_written_out(
    family: str, options: dict[str, Any], layers: list[int] | None
):
    model = replacement_model(family, **options)
    for where in (
        Where(layers=layers, skip_positions=0, keep_tokens=()),
        Where(layers=layers, positions=[1, 2, 4], skip_positions=2),
    ):
        kept = {0, 1, 2} if where.keep_tokens is None else set()
        places = [
            (row, position)
            for row, ids in enumerate(TOKENS.tolist())
            for position in where.positions or range(len(PROMPT))
            if position >= where.skip_positions and ids[position] not in kept
        ]
        plain = Plain(model, list(range(LAYERS)) if layers is None else layers, places)
        found = run(model, TOKENS, where)
        expected = plain(TOKENS)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-9 * scale)
        assert list(found.layers) == plain.layers
        for layer, seen in found.layers.items():
            torch.testing.assert_close(seen.activations, plain.active[layer], rtol=0, atol=1e-9)


def test_a_cross_layer_feature_writes_to_replaced_layers_only():
    model = replacement_model("gpt2")
    found = run(model, TOKENS, Where(layers=[0, 2], skip_positions=0, keep_tokens=()))
    first, last = found.layers[0].activations, found.layers[2].activations
    decoders = [layer.decoder.weight for layer in model.transcoder.layers]  # type: ignore[attr-defined]
    expected = first @ decoders[0][:, 2] + last @ decoders[2][:, 0]
    expected = expected + model.transcoder.layers[2].b_dec
    torch.testing.assert_close(found.layers[2].reconstruction, expected, rtol=0, atol=1e-12)


def test_writes_of_all_layers_are_what_the_dictionary_decodes():
    model = replacement_model("llama", skip=True)
    found = run(model, TOKENS, Where(positions=())).layers
    expected = model.transcoder.decode(
        [seen.activations for seen in found.values()], [seen.inputs for seen in found.values()]
    )
    writes = Writes(model.transcoder)
    for layer, seen in found.items():
        writes.add(layer, torch.arange(seen.activations.shape[-1]), seen.activations)
        got = writes.output(layer, seen.inputs)
        torch.testing.assert_close(got, expected[layer], rtol=0, atol=1e-12)
        torch.testing.assert_close(seen.reconstruction, expected[layer], rtol=0, atol=1e-12)


def test_only_writes_that_are_asked_for_are_worked_out():
    writes = Writes(replacement_model("gpt2").transcoder, [2])
    writes.add(0, torch.tensor([3, 5]), torch.ones(1, 2, dtype=torch.float64))
    assert list(writes.pending) == [2]


def test_special_tokens_and_the_first_positions_are_left_alone():
    model = replacement_model("gpt2")
    assert special_tokens(model) == {0, 1, 2}
    own, other = logits_of(model), run(model, TOKENS, Where(layers=[2])).logits
    same = (own == other).all(-1)
    assert torch.equal(~same, counted(model, TOKENS))
    assert same.tolist() == [
        [True, False, False, False, False, False],
        [True, False, True, False, False, False],
        [True, False, False, True, False, True],
    ]


class Tokenizer:
    """As much of one as is asked here."""

    all_special_ids = (1, 9)


def test_a_tokenizer_says_which_tokens_are_special():
    model = replacement_model("gpt2")
    named = ReplacementModel.from_huggingface(model.host.model, Tokenizer(), model.transcoder)
    assert special_tokens(named) == {1, 9}


def hooks_on(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_hooks_are_gone_after_a_pass_and_after_one_that_failed(family: str):
    model = replacement_model(family)
    run(model, TOKENS)
    fidelity(model, [TOKENS])
    assert hooks_on(model.host.model) == 0
    before = run(model, TOKENS).logits
    handle = model.host.blocks[1].mlp.register_forward_hook(fail)
    for attempt in (run, compare):
        with pytest.raises(RuntimeError, match="out of memory"):
            attempt(model, TOKENS)
        assert hooks_on(model.host.model) == 1
    handle.remove()
    with pytest.raises(RuntimeError, match="mine"), replaced(model):
        raise RuntimeError("mine")
    assert hooks_on(model.host.model) == 0
    assert torch.equal(run(model, TOKENS).logits, before)


def test_any_number_of_passes_may_run_inside_the_block():
    model = replacement_model("gpt2", skip=True)
    alone = [run(model, TOKENS).logits, run(model, TOKENS[:1, :4]).logits]
    with torch.no_grad(), replaced(model):
        for tokens, expected in zip((TOKENS, TOKENS[:1, :4]), alone, strict=True):
            assert torch.equal(model.host.model(tokens).logits, expected)


def test_gradients_reach_the_dictionary():
    model = replacement_model("gpt2")
    weight = model.transcoder.layers[0].W_enc.requires_grad_()
    with replaced(model):
        model.host.model(TOKENS).logits.square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_a_comparison_is_the_textbooks_divergence_and_agreement():
    model, top = replacement_model("llama"), Where(layers=[2])
    found, where = compare(model, TOKENS, top), counted(model, TOKENS)
    own = logits_of(model)[where].softmax(-1)
    other = run(model, TOKENS, top).logits[where].softmax(-1)
    assert found.tokens == len(own) == 12
    assert found.divergence == pytest.approx(float((own * (own / other).log()).sum()) / 12)
    assert found.agreement == float((own.argmax(-1) == other.argmax(-1)).sum()) / 12
    assert 0 < found.agreement < 1


def test_fidelity_over_batches_is_that_of_the_whole():
    model = replacement_model("gpt2", activation="topk")
    apart = fidelity(model, [TOKENS[:1], TOKENS[1:2], TOKENS[2:]])
    whole = fidelity(model, [TOKENS])
    assert apart.error == pytest.approx(whole.error, rel=1e-12)
    assert (apart.density, apart.dead) == (whole.density, whole.dead)
    assert apart.comparison.divergence == pytest.approx(whole.comparison.divergence, rel=1e-9)


def with_negative_features() -> ReplacementModel:
    """So many winners that some lie below zero."""
    model = replacement_model("gpt2", skip=True)
    layers = [replace(layer, activation=TopK(20)) for layer in model.transcoder.layers]
    return replace(model, transcoder=type(model.transcoder)(layers))


@pytest.mark.parametrize("layers", [None, [1, 2]])
def test_fidelity_counts_what_the_models_own_pass_makes_of_features(layers: list[int] | None):
    model, where = with_negative_features(), Where(layers=layers)
    found = fidelity(model, [TOKENS[:2], TOKENS[2:]], where)
    clean, places = run(model, TOKENS, Where(layers, positions=())), counted(model, TOKENS)
    assert found.layers == tuple(clean.layers)
    for index, seen in enumerate(clean.layers.values()):
        output, guess = seen.output[places], seen.reconstruction[places]
        power = (output - output.mean(0)).square().sum()
        assert found.error[index] == pytest.approx(float((output - guess).square().sum() / power))
        active = seen.activations[places]
        assert (active < 0).any()
        assert found.density[index] == 20
        assert found.dead[index] == float((~(active != 0).any(0)).double().mean())
    together = compare(model, TOKENS, where)
    assert found.comparison.tokens == together.tokens == 12
    assert found.comparison.divergence == pytest.approx(together.divergence)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Where(layers=[0, 3]), "layer 3 has no dictionary; those that have one are 0, 1, 2"),
        (Where(positions=[6]), r"position 6 is not in 0\.\.5"),
        (Where(positions=[-1]), r"position -1 is not in 0\.\.5"),
        (Where(skip_positions=6), "every position is skipped or holds a special token"),
    ],
)
def test_what_is_not_there_is_refused(where: Where, message: str):
    model = replacement_model("gpt2")
    for attempt in (compare, lambda *given: fidelity(given[0], [given[1]], given[2])):
        with pytest.raises(ModelError, match=message):
            attempt(model, TOKENS, where)
    assert hooks_on(model.host.model) == 0


def with_a_gap(kind: str, elsewhere: str) -> tuple[ReplacementModel, ReplacementModel]:
    """A model with a dictionary at every layer, and one whose middle layer has none."""
    places: dict[str, Any] = {
        "read": ReadPoint.NORMED_UNWEIGHTED,
        "write": WritePoint.POST_NORM,
    }
    whole = replacement_model("gemma2", kind=kind, skip=True, **places)
    layers = list(whole.transcoder.layers)
    layers[1] = TranscoderLayer.empty(layers[1].b_dec, 1)
    if kind == "cross_layer":  # which writes to no layer without a dictionary
        rows = layers[0].decoder.weight[:, [0, 2]]  # type: ignore[attr-defined]
        layers[0] = replace(layers[0], decoder=DenseDecoder(rows))
    gappy = type(whole.transcoder)(layers, **places)
    host = whole.host.model
    return whole, ReplacementModel.from_huggingface(host, None, gappy, elsewhere=elsewhere)


@pytest.mark.parametrize("kind", ["cross_layer", "per_layer"])
def test_a_layer_without_a_dictionary_stays_the_hosts_own(kind: str):
    whole, gappy = with_a_gap(kind, "error")
    found = run(gappy, TOKENS)
    assert torch.equal(found.logits, run(whole, TOKENS, Where(layers=[0, 2])).logits)
    assert fidelity(gappy, [TOKENS]) == fidelity(whole, [TOKENS], Where(layers=[0, 2]))
    with pytest.raises(ModelError, match="layer 1 has no dictionary; those that have one are 0, 2"):
        run(gappy, TOKENS, Where(layers=[1]))


@pytest.mark.parametrize("kind", ["cross_layer", "per_layer"])
def test_neurons_that_fill_a_gap_are_the_hosts_own_layer(kind: str):
    whole, filled = with_a_gap(kind, "neurons")
    assert list(run(filled, TOKENS).layers) == [0, 1, 2]
    own = run(filled, TOKENS, Where(layers=[1]))
    limit = 2e-5 * float(own.logits.abs().max())
    torch.testing.assert_close(own.logits, logits_of(whole), rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"tokens have shape \(6,\), expected \(rows, positions\)"),
        (TOKENS[:0], r"tokens have shape \(0, 6\), expected"),
        (TOKENS + 10, r"tokens 10 to 32 are not all in 0\.\.28"),
    ],
)
def test_tokens_that_are_no_rows_of_ids_are_refused(tokens: Tensor, message: str):
    for attempt in (run, compare):
        with pytest.raises(ModelError, match=message):
            attempt(replacement_model("gpt2"), tokens)


def test_an_output_that_does_not_vary_has_no_error_share():
    found = fidelity(replacement_model("gpt2"), [TOKENS[:1, :2]])
    assert all(math.isnan(error) for error in found.error)
    assert found.comparison.tokens == 1
