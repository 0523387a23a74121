"""The laws on every type of family_configs.py, and that they bite where a part is dropped."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from graphs import AttributionGraph
from replacement_models import ModelError, ReplacementModel, replacement
from replacement_models.around import Factors, Watch
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hooks import first_of, forward_hooks
from replacement_models.host import Block, Host
from tests.family_configs import EXACT, FLOAT32, KNOWN, WITHOUT_NEURONS, model_of_family
from tests.local_forward import LocalForward
from tests.random_models import PROMPT, transcoder
from tests.test_laws import off_interventions, row_sums

every = pytest.mark.parametrize("name", KNOWN)


@cache
def traced(name: str) -> ReplacementModel:
    return ReplacementModel.from_huggingface(model_of_family(name), None, transcoder(skip=True))


@cache
def graph_of(name: str) -> AttributionGraph:
    return tracer.trace(traced(name), PROMPT)


@every
def test_rows_add_up_and_the_local_model_is_the_model(name: str):
    model, law = traced(name), 1e-5 if name in FLOAT32 else 1e-9
    got, expected = row_sums(model)
    torch.testing.assert_close(got, expected, rtol=0, atol=law)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    own = recording.logits_before_cap
    error = float((logits - own).abs().max() / own.abs().max())
    assert error < (1e-9 if name in EXACT else 2e-5)


@every
def test_an_edge_is_what_a_direct_intervention_changes(name: str):
    off = off_interventions(traced(name), graph_of(name), 2)
    assert off < (1e-4 if name in FLOAT32 else 1e-9)


@every
def test_neurons_leave_nothing_over_or_are_refused(name: str):
    host = traced(name).host
    if name in WITHOUT_NEURONS:
        with pytest.raises(ModelError, match=r"^neurons: .*(not known|not supported)"):
            neurons(host)
        return
    model = ReplacementModel(host, neurons(host))
    recording, dictionary = model.record(PROMPT), model.transcoder
    with torch.no_grad():
        active = [dictionary.encode(layer, x)[1] for layer, x in enumerate(recording.inputs)]
        outputs = dictionary.decode(active, recording.inputs)
    for got, expected in zip(outputs, recording.outputs, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def _every_block(**changes: Any) -> Callable[[Host], Host]:
    return lambda host: replace(host, blocks=[replace(one, **changes) for one in host.blocks])


def _ungated(host: Host) -> Host:
    return replace(host, blocks=[_without_factors(block) for block in host.blocks])


def _without_factors(block: Block) -> Block:
    assert block.watch is not None
    ones = Factors(values=torch.ones(1, 1, 1, dtype=block.value.dtype))
    return replace(block, watch=Watch(block.watch.modules, lambda calls: ones))


DROPPED: dict[tuple[str, str], Callable[[Host], Host]] = {
    ("opt", "value bias"): _every_block(value_bias=None),
    ("opt", "output bias"): _every_block(output_bias=None),
    ("opt", "positions"): lambda host: replace(host, position_embedding=None),
    ("bloom", "norm of embeddings"): lambda host: replace(host, embedding_norm=None),
    ("nanochat", "norm of embeddings"): lambda host: replace(host, embedding_norm=None),
    ("falcon_new", "output bias"): _every_block(output_bias=None),
    ("granite", "multiplier of attention"): _every_block(attention_post_norm=None),
    ("granite", "multiplier of the MLP"): _every_block(mlp_post_norm=None),
    ("granite", "multiplier of embeddings"): lambda host: replace(host, embedding_scale=1.0),
    ("granitemoeshared", "experts"): _every_block(mlp_beside=None),
    ("gpt_neox_japanese", "bias outside"): _every_block(attention_post_norm=None),
    ("kolibri1", "post norm"): _every_block(mlp_post_norm=None),
    ("deepseek_v3", "norm in the middle"): _ungated,
    ("deepseek_v3", "value bias"): _every_block(value_bias=None),
    ("afmoe", "gate"): _ungated,
    ("laguna", "gate"): _ungated,
    ("bitnet", "norm behind heads"): _ungated,
    ("minicpm3", "scaled depth"): _every_block(mlp_post_norm=None),
    ("nemotron", "value bias"): _every_block(value_bias=None),
}


@pytest.mark.parametrize(("name", "part"), DROPPED, ids=lambda part: part.replace(" ", "_"))
def test_a_dropped_part_is_noticed_and_breaks_the_law(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
):
    model = traced(name)
    broken = replace(model, host=DROPPED[name, part](model.host))
    with pytest.raises(ModelError, match="computes something else"):
        broken.record(PROMPT)
    monkeypatch.setattr(replacement, "check_layout", lambda *_: None)
    recording = broken.record(PROMPT)
    with torch.no_grad():
        _, logits = LocalForward(broken, recording)()
    own = recording.logits_before_cap
    apart = float((logits - own).abs().max() / own.abs().max())
    unequal = tracer.trace(broken, PROMPT).metadata["conservation"]["relative"]
    assert max(apart, unequal) > 1e-3


GOLDEN = ((1, 7, 12, 5, 22, 9), (3, 3, 8, 1, 20, 14, 2), (28, 6, 17, 4))


@pytest.mark.parametrize("prompt", GOLDEN, ids=len)
@pytest.mark.parametrize("name", ["opt", "falcon", "falcon_new", "granite", "deepseek_v3"])
def test_edges_are_what_autograd_makes_of_the_model_itself(
    name: str, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    """Softmax, norm denominators and MLPs detached; no part of the engine or of a host."""
    hf = model_of_family(name)
    dictionary = transcoder("per_layer", skip=False)
    model = ReplacementModel.from_huggingface(hf, None, dictionary)
    graph = tracer.trace(model, prompt)
    nodes, effect = graph.nodes.to_pylist(), graph.effect.toarray()
    streams = _by_autograd(hf, prompt, monkeypatch)
    size = abs(effect).max()
    for target, node in enumerate(nodes):
        if node["kind"] == "feature":
            row = dictionary.layers[node["layer"]].W_enc[node["feature"]]
            reached = streams["read"][node["layer"]][node["position"]] @ row
        elif node["kind"] == "logit":
            reached = streams["logits"][node["token"]] - streams["logits"].mean()
        else:
            continue
        slopes = torch.autograd.grad(
            reached, [streams["token"], *streams["written"]], retain_graph=True, allow_unused=True
        )
        for source, other in enumerate(nodes):
            if other["kind"] == "embedding":
                slope = slopes[0]
                write = streams["token"].detach()[other["position"]]
            elif other["kind"] == "feature":
                slope = slopes[1 + other["layer"]]
                rows = dictionary.layers[other["layer"]].decoder.rows
                write = other["activation"] * rows(torch.tensor([other["feature"]]))[0, 0]
            else:
                continue
            expected = 0.0 if slope is None else float(slope[other["position"]] @ write)
            limit = 1e-9 if name in EXACT else 1e-5
            assert abs(effect[target, source] - expected) < limit * size


def _by_autograd(
    hf: Any, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    softmax = nn.functional.softmax
    frozen = lambda *args, **options: softmax(*args, **options).detach()  # noqa: E731
    monkeypatch.setattr(nn.functional, "softmax", frozen)
    found: dict[str, Any] = {"read": [], "written": []}

    def embedded(inputs: Any, output: torch.Tensor) -> torch.Tensor:
        found["token"] = output[0].detach().requires_grad_()
        return found["token"][None]

    def read(inputs: Any, output: Any) -> None:
        x = next(one for one in inputs if isinstance(one, torch.Tensor))
        found["read"].append(x.reshape(-1, x.shape[-1]))

    def written(inputs: Any, output: Any) -> Any:
        own = first_of(output)
        leaf = own.detach().clone().reshape(-1, own.shape[-1]).requires_grad_()
        found["written"].append(leaf)
        return leaf.view(own.shape).clone()

    hooks: list[Any] = [(hf.get_input_embeddings(), embedded)]
    for module in hf.modules():
        if "Norm" in type(module).__name__:
            hooks.append((module, _held(module)))
        kind = type(module).__name__
        if kind == "OPTDecoderLayer":
            hooks += [(module.fc1, read), (module.fc2, written)]
        elif hasattr(module, "mlp") and isinstance(module.mlp, nn.Module):
            hooks += [(module.mlp, read), (module.mlp, written)]
    hf.set_experts_implementation("eager")
    with torch.enable_grad(), forward_hooks(hooks):
        found["logits"] = hf(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    return found


def _held(module: Any) -> Any:
    centred = isinstance(module, nn.LayerNorm)
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon

    def hold(inputs: Any, output: Any) -> torch.Tensor:
        x = inputs[0] - inputs[0].mean(-1, keepdim=True) if centred else inputs[0]
        scale = (x.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        out = x / scale * module.weight
        return out + module.bias if getattr(module, "bias", None) is not None else out

    return hold
