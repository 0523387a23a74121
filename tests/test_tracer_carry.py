"""What is carried forward instead of swept, and that a trace does nothing twice."""

import pytest
import torch

import tracer
from tests.random_models import PROMPT, replacement_model
from tracer.attribution import carry, sweep
from tracer.attribution import local_model as linear
from tracer.attribution import trace as attribute


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("skip_positions", [0, 1, 2])
def test_what_is_carried_forward_equals_what_is_swept(
    monkeypatch: pytest.MonkeyPatch, family: str, skip_positions: int
):
    model = replacement_model(family, kind="cross_layer", skip=True)
    carried = tracer.trace(model, PROMPT, skip_positions=skip_positions)
    monkeypatch.setattr(carry, "LIFTED", 0)
    monkeypatch.setattr(linear, "start_of", lambda recording, skip: 0)
    swept = tracer.trace(model, PROMPT, skip_positions=skip_positions)
    assert swept.nodes["id"].to_pylist() == carried.nodes["id"].to_pylist()
    assert abs(swept.effect - carried.effect).max() < 1e-12
    constants = [graph.nodes["constant"].drop_null().to_numpy() for graph in (swept, carried)]
    assert abs(constants[0] - constants[1]).max() < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("skip", [False, True])
def test_shortcuts_through_virtual_weights_and_mixed_gradients_change_nothing(
    monkeypatch: pytest.MonkeyPatch, family: str, skip: bool
):
    model = replacement_model(family, kind="cross_layer", skip=skip)
    taken: list[str] = []
    for name in ("projected_below", "score_mixed"):
        original = getattr(sweep, name)

        def counted(*args, name=name, original=original):
            found = original(*args)
            if (args[1] if name == "score_mixed" else found) is not None:
                taken.append(name)
            return found

        monkeypatch.setattr(sweep, name, counted)
    graphs = []
    for traces, share in ((0, 0.0), (10**9, 10**9)):
        taken.clear()
        monkeypatch.setattr(linear, "TRACES", traces)
        monkeypatch.setattr(linear, "MIXED", share)
        graphs.append(tracer.trace(model, PROMPT))
        expected = set() if not traces else {"projected_below", "score_mixed"}
        if skip and family != "gpt_neox":
            expected.discard(
                "projected_below"
            )  # what the output map reads is no longer what attention left
        if family == "gpt_neox":
            expected.discard("score_mixed")  # tokens pass the bottom block, which is not lifted
        assert set(taken) == expected
    plain, short = graphs
    assert plain.nodes["id"].to_pylist() == short.nodes["id"].to_pylist()
    assert abs(plain.effect - short.effect).max() < 1e-12
    constants = [graph.nodes["constant"].drop_null().to_numpy() for graph in graphs]
    assert abs(constants[0] - constants[1]).max() < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_few_held_positions_are_carried_like_many(family: str):
    folded = replacement_model(family).folded[0]
    d_model, kv_heads = len(folded.value), 2
    group = len(folded.output) // folded.value.shape[1]
    torch.manual_seed(0)
    pattern = torch.rand(kv_heads, 40, group, 40, dtype=torch.float64)
    held = torch.rand(40, 3, d_model, dtype=torch.float64)
    held[1:] = 0
    few, many = (carry.carry(folded, pattern, held[:count]) for count in (1, 40))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_nothing_happens_twice(monkeypatch: pytest.MonkeyPatch, kind: str):
    model = replacement_model("gpt2", kind=kind)
    happened: list[tuple[object, ...]] = []

    def count(owner: object, name: str, *arguments: int) -> None:
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            happened.append((name, *(args[which] for which in arguments)))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    forward = model.host.model.register_forward_pre_hook(lambda *_: happened.append(("forward",)))
    count(type(model.transcoder), "encode", 1)
    count(linear, "gather")
    count(attribute, "linearise")
    tracer.trace(model, PROMPT, max_features=20, rank_every=4)
    forward.remove()
    layers = len(model.host.blocks)
    assert sorted(happened, key=str) == [
        *(("encode", layer) for layer in range(layers)),
        ("forward",),
        ("gather",),
        ("linearise",),
    ]
