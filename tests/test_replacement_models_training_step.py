"""The training step: over active pairs alone it gives what dense autograd gives."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement_models.training import product as encoder_product
from replacement_models.training import sparsity
from replacement_models.training.config import TrainConfig
from replacement_models.training.firing import DenseActive, Firing, active, batch_threshold
from replacement_models.training.fold import folded
from replacement_models.training.losses import island_loss, penalty_of
from replacement_models.training.pairs import Pairs, decode, encode
from replacement_models.training.product import product_of
from replacement_models.training.ridge import affine, decoder
from replacement_models.training.scales import Scale
from replacement_models.training.sparsity import _strongest, calibrate
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring

WIDTH, FEATURES, TOKENS, LAYERS = 12, 40, 50, 3
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae"},
    "per layer": {"kind": "per_layer"},
    "per layer, skip": {"kind": "per_layer", "skip": True},
    "cross-layer": {"kind": "cross_layer"},
    "span 2": {"kind": "cross_layer", "span": 2},
    "tied": {"kind": "cross_layer", "tied": True, "skip": True},
    "nested": {"kind": "cross_layer", "prefixes": [8, 20]},
}
ACTIVATIONS = ("jump_relu", "relu", "topk", "batch_topk", "gated")


def config(penalty: str = "tanh", **dictionary: Any) -> TrainConfig:
    found = {"features": FEATURES, "l0": 4.0} | dictionary
    loss = {"dead_after": 10, "penalty": penalty}
    return TrainConfig.of({"dictionary": found, "loss": loss})


def filled(given: TrainConfig, dtype: torch.dtype, dead: bool) -> tuple[Trainee, Batch]:
    """A trainee with random parameters, and a batch."""
    torch.manual_seed(0)
    sides = [
        [3 + 2 * torch.randn(TOKENS, WIDTH, dtype=dtype) for _ in range(LAYERS)] for _ in range(2)
    ]
    sides[1][0][3] *= 40  # an outlier
    batch = Batch(*(sides if given.dictionary.kind != "sae" else [sides[0]] * 2))
    scales = [[Scale.of(x, 20.0) for x in side] for side in (batch.inputs, batch.outputs)]
    trainee = Trainee(given, Wiring.of(given.dictionary, LAYERS), *scales).to(dtype)
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
        for threshold in trainee.threshold:
            threshold.copy_(0.5 + 0.2 * torch.rand_like(threshold))
    if dead:
        trainee.silent[:, ::5] = 100.0
    return trainee, batch


def gradients(trainee: Trainee, batch: Batch, sparse: bool) -> dict[str, Tensor]:
    weights = torch.full((LAYERS,), 0.05, dtype=batch.inputs[0].dtype)
    for island in trainee.wiring.islands:
        loss, _ = island_loss(
            trainee, batch, island, product_of("float32"), [sparse] * LAYERS, weights
        )
        loss.backward()
    found = {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in trainee.named_parameters()
    }
    trainee.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(("kind", "activation"), list(product(KINDS, ACTIVATIONS)))
def test_gradients_over_pairs_are_those_of_dense_autograd(kind: str, activation: str):
    given = config(**KINDS[kind], activation=activation)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        trainee, batch = filled(given, dtype, dead=True)
        dense, sparse = (gradients(trainee, batch, way) for way in (False, True))
        largest = max(float(one.abs().max()) for one in dense.values())
        assert largest > 0
        for name, one in dense.items():
            assert float((one - sparse[name]).abs().max()) <= tolerance * largest, (name, dtype)


def test_a_layer_of_another_width_gets_the_same_gradients_both_ways():
    given = config(kind="cross_layer", widths=(40, 9, 20))
    trainee, batch = filled(given, torch.float64, dead=False)
    assert [len(one) for one in trainee.W_dec] == [40, 9, 20]
    dense, sparse = (gradients(trainee, batch, way) for way in (False, True))
    for name, one in dense.items():
        assert torch.allclose(one, sparse[name], rtol=1e-11, atol=1e-13), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_thresholds_are_set_on_batches_too_where_few_tokens_are_held_out(
    activation: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sparsity, "CALIBRATED", 4 * TOKENS - 20)
    given = config(activation=activation)
    given = replace(given, run=replace(given.run, batch=TOKENS))
    trainee, held = filled(given, torch.float32, dead=False)
    parts = [
        Batch(*([x.roll(number, 1) * (1 + number) for x in side] for side in (held.inputs,) * 2))
        for number in range(1, 6)
    ]
    for enough in (False, True):
        monkeypatch.setattr(sparsity, "CALIBRATED", TOKENS if enough else 4 * TOKENS - 20)
        stream = iter(parts)
        moved = calibrate(trainee, held, stream)
        drawn = 0 if enough or activation == "topk" else 3
        assert len(list(stream)) == 5 - drawn
        if activation == "topk":
            assert moved == [0.0] * LAYERS
            continue
        dictionary = folded(trainee, LAYERS, "")
        for at in range(LAYERS):
            x = torch.cat([one.inputs[at] for one in (held, *parts[:drawn])])
            fired = int(dictionary.encode(at, x)[1].count_nonzero())
            assert abs(fired - 4 * len(x)) <= 1, (at, fired / len(x))


def test_features_that_are_not_there_never_die():
    trainee, _ = filled(config(widths=(40, 9, 20)), torch.float64, dead=False)
    trainee.heard(1, torch.tensor([1.0, *[0.0] * 8]), tokens=50)
    assert (trainee.silent[1] > 10).tolist() == [False, *[True] * 8, *[False] * 31]


def test_firing_often_costs_more_under_tanh_quad():
    """One feature on all tokens or ten on a tenth each: the sum of tanh cannot tell them apart."""
    trainee, batch = filled(config("tanh_quad"), torch.float64, dead=False)
    x = trainee.reads[0].normalised(batch.inputs[0])
    for sparse in (False, True):
        found = trainee.active(0, x, product_of("float32"), sparse)
        share = torch.tanh(torch.relu(found.values) * found.of_feature(trainee.norms(0)))
        share = found.by_feature(share) / TOKENS
        expected = (share + share.square() / 0.01).sum()
        assert torch.isclose(penalty_of(trainee, 0, found), expected)
    given = config("tanh_quad", kind="cross_layer")
    dense, sparse = (gradients(*filled(given, torch.float64, True), way) for way in (False, True))
    for name, one in dense.items():
        assert torch.allclose(one, sparse[name], rtol=1e-11, atol=1e-13), name


def test_what_learns_does_learn():
    trainee, batch = filled(config(kind="cross_layer", skip=True), torch.float64, dead=False)
    for name, one in gradients(trainee, batch, True).items():
        assert float(one.abs().max()) > 0, name
    trainee, batch = filled(config(activation="gated"), torch.float64, dead=False)
    for name, one in gradients(trainee, batch, True).items():
        assert float(one.abs().max()) > 0, name


def test_a_threshold_learns_through_its_window_alone():
    hidden = torch.tensor([[0.35, 0.45, 0.65, 0.9]], dtype=torch.float64)
    x, weight = torch.ones(1, 1, dtype=torch.float64), hidden.T.clone().requires_grad_()
    threshold = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64)
    found = active(
        Firing("jump_relu", 1, 0.2), x, weight, bias, threshold, product_of("float32"), True
    )
    assert found.counts().tolist() == [0, 0, 1, 1]
    found.values.sum().backward()
    assert threshold.grad is not None
    assert weight.grad is not None
    assert torch.allclose(threshold.grad, torch.tensor([0.0, -2.5, 0.0, 0.0], dtype=torch.float64))
    assert weight.grad[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_an_empty_batch_of_pairs_has_no_effect():
    pairs = Pairs.of(torch.zeros(3, 5, dtype=torch.bool))
    weight = torch.randn(5, 2, requires_grad=True)
    x, hidden = torch.randn(3, 2), torch.zeros(3, 5)
    written = decode(encode(x, weight, torch.zeros(5), hidden, pairs), weight, pairs)
    assert not written.any()
    written.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_products_without_sparse_kernels_are_the_same(monkeypatch: pytest.MonkeyPatch):
    trainee, batch = filled(config(kind="cross_layer"), torch.float64, dead=True)
    fast = gradients(trainee, batch, True)
    place = "replacement_models.training.pairs"
    monkeypatch.setattr(f"{place}.has_sparse_products", lambda device, dtype: False)
    monkeypatch.setattr(f"{place}.AT_ONCE", 24)
    slow = gradients(trainee, batch, True)
    for name, one in fast.items():
        assert torch.allclose(one, slow[name], rtol=1e-11, atol=1e-13), name


def test_inputs_get_gradients_where_asked():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    hidden = (x @ weight.T + bias).detach()
    pairs = Pairs.of(hidden > 0)
    encode(x, weight, bias, hidden, pairs).square().sum().backward()
    assert x.grad is not None
    found = x.grad.clone()
    x.grad = None
    (x @ weight.T + bias).relu().square().sum().backward()
    assert torch.allclose(found, x.grad)


def test_a_batch_threshold_keeps_so_many():
    hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert int((hidden > batch_threshold(hidden, 3.0)).sum()) == 3 * 64
    assert float(batch_threshold(-hidden.abs(), 3.0)) == 0
    assert float(batch_threshold(hidden, 32.0)) == 0


def test_dense_and_sparse_count_the_same():
    trainee, batch = filled(config(activation="topk"), torch.float32, dead=False)
    x = trainee.reads[0].normalised(batch.inputs[0])
    both = [trainee.active(0, x, product_of("float32"), way) for way in (True, False)]
    assert isinstance(both[1], DenseActive)
    assert both[0].counts().tolist() == both[1].counts().tolist()
    assert int(both[0].counts().sum()) == 4 * TOKENS


def test_outliers_weigh_less_and_scales_are_of_the_rest():
    torch.manual_seed(0)
    data = torch.randn(1000, WIDTH) + 1
    away = data.clone()
    away[:5] *= 1e4
    plain, kept = Scale.of(data, 20.0), Scale.of(away, 20.0)
    assert abs(float(kept.deviation / plain.deviation) - 1) < 0.2
    weight = kept.weight(away, 20.0)
    assert float(weight[:5].max()) < 1e-5
    assert weight[5:].eq(1).float().mean() > 0.99
    normal = plain.normalised(data)
    assert abs(float(normal.square().sum(1).mean()) / WIDTH - 1) < 1e-3


@pytest.mark.parametrize("silent", [0.0, 0.6, 0.99, 1.0])
def test_an_mlp_that_writes_nothing_at_most_tokens_has_a_scale(silent: float):
    torch.manual_seed(0)
    data = torch.randn(1000, WIDTH)
    data[: int(silent * len(data))] = 0
    scale = Scale.of(data, 20.0)
    assert all(part.isfinite().all() for part in scale.tensors().values())
    assert scale.normalised(data).isfinite().all()
    assert scale.weight(data, 20.0).eq(1).float().mean() > 0.9


def test_the_affine_map_is_found_where_there_is_one():
    torch.manual_seed(0)
    x, matrix = torch.randn(400, 6), torch.randn(6, 3)
    y = x @ matrix + 2
    found, bias = affine(x, y, torch.ones(400))
    assert torch.allclose(found, matrix, atol=2e-3)
    assert torch.allclose(bias, torch.full((3,), 2.0), atol=2e-2)


def test_a_decoder_is_found_where_there_is_one():
    torch.manual_seed(0)
    hidden = torch.randn(600, 10, dtype=torch.float64)
    pairs, rows = Pairs.of(hidden > 1), torch.randn(10, 4, dtype=torch.float64)
    values = pairs.take(hidden)
    target = decode(values, rows, pairs)
    found = decoder([(pairs, values)], target, torch.ones(600, dtype=torch.float64))
    assert float((found - rows).abs().max()) < 0.01


def test_a_decoder_of_noise_is_hardly_worse_than_the_best_penalty():
    """Where rows of rare features would fit noise; tokens of weight 0 say nothing."""
    torch.manual_seed(0)
    hidden = torch.randn(3000, 300, dtype=torch.float64)
    limits = torch.linspace(1.0, 3.2, 300, dtype=torch.float64)
    pairs, rows = Pairs.of(hidden > limits), torch.randn(300, 8, dtype=torch.float64)
    values, weight = pairs.take(hidden), torch.ones(3000, dtype=torch.float64)
    clean = decode(values, rows, pairs)
    target = clean + 6 * torch.randn_like(clean)
    weight[:200], target[:200] = 0.0, 1e3
    active = hidden * (hidden > limits)
    seen = active[:2700] * weight[:2700, None]
    gram, right = seen.T @ seen, seen.T @ target[:2700]

    def error(found: Tensor) -> float:
        return float((active @ found - clean)[200:].square().mean())

    mean, one = gram.diagonal().mean(), torch.eye(300, dtype=torch.float64)
    tried = [torch.linalg.solve(gram + part * mean * one, right) for part in (1e-3, 1e-2, 0.1, 1.0)]
    least, most = min(map(error, tried)), error(tried[0])
    halves = [Pairs.of((hidden > limits)[:, some]) for some in (slice(0, 100), slice(100, 300))]
    beside = [
        (some, some.take(part))
        for some, part in zip(halves, hidden.split([100, 200], 1), strict=True)
    ]
    found = decoder([(pairs, values)], target, weight)
    assert error(found) < 1.1 * least < most
    assert torch.allclose(decoder(beside, target, weight), found, atol=1e-9)


def test_the_largest_are_found_without_sorting_all():
    torch.manual_seed(0)
    flat = torch.randn(3000, 40)
    flat[:, 0] += 8  # one feature owns them
    found = _strongest(flat, 2.0).sort(descending=True).values
    assert len(found) >= 6 * 2 * 3000
    assert len(found) < flat.numel()
    assert torch.equal(found, flat.flatten().topk(len(found)).values)
    assert len(_strongest(flat[:10], 2.0)) == 400


def shapes() -> Iterator[tuple[dict[str, Any], list[list[int]]]]:
    yield {"kind": "per_layer"}, [[0], [1], [2]]
    yield {"kind": "cross_layer"}, [[0, 1, 2], [1, 2], [2]]
    yield {"kind": "cross_layer", "span": 2}, [[0, 1], [1, 2], [2]]


@pytest.mark.parametrize(("given", "slots"), list(shapes()))
def test_layers_write_where_their_kind_says(given: dict[str, Any], slots: list[list[int]]):
    wiring = Wiring.of(config(**given).dictionary, LAYERS)
    assert [list(wiring.slots(at)) for at in range(LAYERS)] == slots


def test_which_numbers_are_faster_is_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(encoder_product, "_settled", {})
    taken = {encoder_product._float32: 1.0, encoder_product._bfloat16: 0.5}
    monkeypatch.setattr(encoder_product, "_seconds", lambda way, *_: taken[way])
    like = torch.zeros(8)

    def found(precision: str = "auto", tokens: int = 256) -> str:
        return encoder_product.chosen(precision, tokens, 64, like)

    assert found() == "bfloat16"
    taken[encoder_product._bfloat16] = 0.8
    assert found() == "bfloat16"
    encoder_product._settled.clear()
    assert found() == "bfloat16"
    assert found(tokens=128) == "float32"
    assert found("float32") == "float32"
    encoder_product._settled.clear()
    [kept] = (tmp_path / "tracer").glob("products-*.json")
    kept.write_text(kept.read_text().replace('"bfloat16"', '"float8"'))
    assert found() == "float32"
    encoder_product._settled.clear()
    taken[encoder_product._bfloat16] = 0.1
    assert found() == "float32"
