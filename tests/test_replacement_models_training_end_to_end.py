"""The end-to-end stage: what stands in for MLPs is the dictionary that will be written."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.replaced import Where, counted, logits_of, replaced
from replacement_models.training.config import TrainConfig
from replacement_models.training.divergence import Standing, divergence
from replacement_models.training.fold import folded
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Trainee
from replacement_models.training.wiring import Wiring
from tests.random_models import LAYERS, replacement_model

TOKENS = torch.tensor([[1, 7, 12, 5, 22, 9], [1, 4, 0, 4, 9, 0]])
WHERE = Where(skip_positions=1, keep_tokens=(0,))
"""The start and the fill of the second row stay as the model has them."""
KINDS: dict[str, dict[str, Any]] = {
    "per layer, skip": {"kind": "per_layer", "skip": True},
    "some layers": {"kind": "per_layer", "layers": [0, 2]},
    "cross-layer": {"kind": "cross_layer"},
    "span 2": {"kind": "cross_layer", "span": 2},
    "tied": {"kind": "cross_layer", "tied": True},
    "widths": {"kind": "cross_layer", "widths": [12, 24, 18]},
}
ACTIVATIONS = ("jump_relu", "relu", "topk", "batch_topk", "gated")


def filled(model: ReplacementModel, **dictionary: Any) -> Trainee:
    """Random parameters, some features firing at each token."""
    torch.manual_seed(0)
    chosen = TrainConfig.of({"dictionary": {"features": 24, "l0": 4.0} | dictionary})
    wiring = Wiring.of(chosen.dictionary, LAYERS)
    wide = model.transcoder.d_model
    scales = [
        [Scale.of(0.5 + torch.randn(40, wide, dtype=torch.float64), 20.0) for _ in wiring.layers]
        for _ in range(2)
    ]
    trainee = Trainee(chosen, wiring, *scales).double()
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for threshold in trainee.threshold:
            threshold.copy_(0.5 + 0.2 * torch.rand_like(threshold))
        trainee.limit.fill_(0.4)
    return trainee


def standing_in(
    model: ReplacementModel, trainee: Trainee, sparse: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and gradients of the divergence."""
    trainee.zero_grad()
    ways = [sparse] * len(trainee.wiring.layers)
    away, sharp = divergence(model, trainee, TOKENS, WHERE, sharp=True, sparse=ways)
    (away + sharp).backward()
    with torch.no_grad(), replaced(model, WHERE, stand_in=Standing(trainee, ways)):
        logits = logits_of(model, TOKENS)
    named = trainee.named_parameters()
    return logits, {name: one.grad.clone() for name, one in named if one.grad is not None}


@pytest.mark.parametrize(("kind", "activation"), list(product(KINDS, ACTIVATIONS)))
def test_what_stands_in_is_what_will_be_written(kind: str, activation: str):
    model = replacement_model()
    trainee = filled(model, activation=activation, **KINDS[kind])
    written = replace(model, transcoder=folded(trainee, LAYERS, ""))
    with replaced(written, WHERE):
        expected = logits_of(written, TOKENS)
    own = logits_of(model, TOKENS)
    assert (own - expected).abs().max() > 0.1
    found, gradients = {}, {}
    for sparse in (False, True):
        found[sparse], gradients[sparse] = standing_in(model, trainee, sparse)
        torch.testing.assert_close(found[sparse], expected, rtol=1e-9, atol=1e-9)
    assert gradients[False].keys() == gradients[True].keys() >= {"W_enc.0", "W_dec.0", "b_dec.0"}
    for name, grad in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], grad, rtol=1e-4, atol=1e-7)
    assert all(gradients[True][f"W_enc.{at}"].any() for at in range(len(trainee.W_enc)))
    if activation == "jump_relu":
        assert gradients[True]["threshold.0"].any()


def test_gradients_are_those_of_the_divergence():
    """Against differences, in weights that no threshold hangs on."""
    model = replacement_model()
    trainee = filled(model, activation="jump_relu", kind="cross_layer")
    _, gradients = standing_in(model, trainee, True)
    way, step = torch.randn_like(trainee.W_dec[1]), 1e-3

    def cost(factor: float) -> float:
        with torch.no_grad():
            trainee.W_dec[1].add_(factor * step * way)
            away, sharp = divergence(model, trainee, TOKENS, WHERE, sharp=True)
            trainee.W_dec[1].sub_(factor * step * way)
        return float(away + sharp)

    slope = (cost(1) - cost(-1)) / (2 * step)
    assert float((gradients["W_dec.1"] * way).sum()) == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("sparse", [False, True])
def test_kept_positions_are_not_computed(sparse: bool):
    model = replacement_model()
    trainee = filled(model, kind="cross_layer")
    standing = Standing(trainee, [sparse] * LAYERS)
    kept = counted(model, TOKENS, WHERE)
    assert int(kept.sum()) == 8
    standing.begin(kept)
    inputs = torch.randn(*TOKENS.shape, model.transcoder.d_model, dtype=torch.float64)
    values = standing.read(0, inputs)
    assert len(values) == 8 if not sparse else len(values) < 8 * 24
    made = standing.output(0, inputs)
    assert made[kept].abs().min(1).values.sum() > 0
    assert not made[~kept].any()
