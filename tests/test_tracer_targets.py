"""What may be explained, and what is refused with one line."""

import pytest
import torch

import tracer
from replacement_models import ModelError
from replacement_models.sites import Site
from tests.random_models import PROMPT, VOCABULARY, WIDTH, replacement_model
from tracer import Difference, Direction, TraceError


@pytest.fixture(scope="module")
def model():
    return replacement_model("gpt2", kind="cross_layer", skip=True)


def logits_of(graph) -> list[dict]:
    return [node for node in graph.nodes.to_pylist() if node["kind"] == "logit"]


def test_the_likeliest_tokens_are_the_smallest_set_with_the_mass(model):
    probability = model.record(PROMPT).logits[-1].softmax(-1).sort(descending=True)
    found = logits_of(tracer.trace(model, PROMPT, logit_mass=0.6))
    assert [node["token"] for node in found] == probability.indices[: len(found)].tolist()
    assert sum(node["probability"] for node in found) >= 0.6
    assert sum(node["probability"] for node in found[:-1]) < 0.6
    assert len(logits_of(tracer.trace(model, PROMPT, logit_mass=1.0, max_logits=3))) == 3
    every = tracer.trace(model, PROMPT, logit_mass=1.0, max_logits=VOCABULARY + 1)
    assert len(logits_of(every)) == VOCABULARY


def test_a_difference_is_the_difference_of_its_tokens(model):
    graph = tracer.trace(model, PROMPT, targets=[4, 9, Difference(4, 9, weight=0.5)])
    four, nine, both = logits_of(graph)
    effect = graph.effect.toarray()[-3:]
    torch.testing.assert_close(
        torch.tensor(effect[2]), torch.tensor(effect[0] - effect[1]), atol=1e-9, rtol=0
    )
    assert both["token"] is None
    assert both["probability"] == 0.5
    assert both["id"] == f"4_{VOCABULARY + 2}_{len(PROMPT) - 1}"
    assert both["pre_activation"] == pytest.approx(four["pre_activation"] - nine["pre_activation"])
    assert graph.metadata["conservation"]["relative"] < 1e-9


def test_an_unembedding_row_as_a_direction_is_the_token_before_demeaning(model):
    rows = model.host.unembedding
    direction = Direction((rows[4] - rows.mean(0)).tolist(), "four", weight=2.0)
    graph = tracer.trace(model, PROMPT, targets=[4, direction])
    token, user = graph.effect.toarray()[-2:]
    torch.testing.assert_close(torch.tensor(token), torch.tensor(user), atol=1e-9, rtol=0)
    assert graph.metadata["conservation"]["relative"] < 1e-9


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_direction_in_the_residual_stream_explains_what_stands_there(model, layer: int):
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer)).double()
    graph = tracer.trace(model, PROMPT, targets=[Direction(vector, "somewhere", layer=layer)])
    value = model.record(PROMPT).residuals[layer][-1] @ vector
    node = logits_of(graph)[0]
    assert node["pre_activation"] == pytest.approx(float(value), abs=1e-9)
    assert graph.metadata["conservation"]["relative"] < 1e-9
    layers = {
        graph.nodes["layer"][source].as_py()
        for source in graph.effect[[graph.nodes.num_rows - 1]].nonzero()[1].tolist()
    }
    assert max(layers) < layer


def test_an_earlier_position_sees_nothing_after_it(model):
    graph = tracer.trace(model, PROMPT, position=2)
    shorter = tracer.trace(model, PROMPT[:3])
    assert graph.nodes["id"].to_pylist() == shorter.nodes["id"].to_pylist()
    assert abs(graph.effect - shorter.effect).max() < 1e-9
    assert len(graph.metadata["tokens"]) == len(PROMPT)
    assert graph.metadata["position"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_logits": 0}, "max_logits is 0, expected 1 or more"),
        ({"logit_mass": 0.0}, "logit_mass is 0.0"),
        ({"logit_mass": float("nan")}, "logit_mass is nan"),
        ({"max_features": -1}, "max_features is -1, expected 0 or more"),
        ({"edge_floor": 1.0}, "edge_floor is 1.0, expected a share from 0"),
        ({"rank_every": 0}, "rank_every is 0, expected 1 or more"),
        ({"skip_positions": -1}, "skip_positions is -1"),
        ({"position": len(PROMPT)}, "position is 6, but the prompt has 6 tokens"),
        ({"targets": []}, "targets is an empty list"),
        ({"targets": [VOCABULARY]}, "target 29 is not in 0..28"),
        ({"targets": [3, 3]}, "token 3 is named twice"),
        ({"targets": ["word"]}, "this model has no tokenizer"),
        ({"targets": [Difference(1, -1)]}, "target -1 is not in"),
        ({"targets": [Difference(1, 2, weight=-1.0)]}, "target weight is -1.0"),
        ({"targets": [Direction([1.0], "short")]}, "expected (16,), finite"),
        ({"targets": [Direction([0.0] * WIDTH, "deep", layer=4)]}, "layer 4 is not in 0..3"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(model, options, said: str):
    with pytest.raises(TraceError) as error:
        tracer.trace(model, PROMPT, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "prompt is empty"),
        ([1, 29], "token id 29 is not in 0..28"),
        ([-1], "token id -1"),
        ([1] * 17, "17 tokens, but random-gpt2 reads at most 16"),
        ("text", "this model has no tokenizer"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_in_one_line(model, prompt, said: str):
    with pytest.raises(ModelError) as error:
        tracer.trace(model, prompt)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resid_pre.0", "resid_mid.0", "resid_mid.2", "resid_pre.3"])
def test_a_direction_is_read_at_any_site_of_the_stream(model, name: str):
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)).double()
    graph = tracer.trace(model, PROMPT, targets=[Direction(vector, "somewhere", site=name)])
    value = model.record(PROMPT).stream(Site.parse(name))[-1] @ vector
    [node] = logits_of(graph)
    assert node["pre_activation"] == pytest.approx(float(value), abs=1e-9)
    assert graph.metadata["conservation"]["relative"] < 1e-9
    assert graph.metadata["settings"]["targets"] == [
        {"direction": "somewhere", "weight": 1.0, "layer": None, "site": name}
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"site": "mlp_out.1"},
            "cannot be read at mlp_out.1; expected one of resid_pre.0, resid_m",
        ),
        ({"site": "resid_pre.4"}, "cannot be read at resid_pre.4"),
        ({"site": "resid_pre.1", "layer": 1}, "has a layer and a site; give one of them"),
        ({"site": "somewhere"}, "site 'somewhere' is not known"),
    ],
)
def test_a_direction_elsewhere_is_refused(model, wrong: dict, message: str):
    with pytest.raises((TraceError, ModelError), match=message):
        tracer.trace(model, PROMPT, targets=[Direction([1.0] * WIDTH, "d", **wrong)])
