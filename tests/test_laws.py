"""The engine's laws: conservation, edge = intervention, reproduction, roots; and that they bite."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import tracer
from graphs import AttributionGraph
from replacement_models import ModelError, ReadPoint, ReplacementModel, WritePoint, replacement
from tests.local_forward import LocalForward
from tests.random_models import FAMILIES, PROMPT, replacement_model
from tracer import Intervention
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import feature_rows, logit_targets
from tracer.interventions.intervene import stacked

EXACT = ("gpt2", "gpt_neox", "gpt_neox_sequential", "phi")
"""Families whose norms honour float64; RMSNorm runs in float32 inside transformers."""
POST_NORM = ("gemma2", "gemma3", "gemma3_text", "glm4", "olmo2")


class Case(NamedTuple):
    """A family and a dictionary."""

    family: str
    kind: str = "cross_layer"
    skip: bool = True
    read: ReadPoint = ReadPoint.NORMED
    activation: str = "relu"
    write: WritePoint = WritePoint.MLP_OUTPUT
    at: tuple[int, ...] = (0, 1, 2)
    """Layers that have a dictionary."""
    elsewhere: str | None = None

    @property
    def tolerance(self) -> float:
        """Of what transformers records, relative to the largest entry."""
        return 1e-9 if self.family in EXACT else 2e-5


CASES = [
    *(
        Case(family, *dictionary)
        for family in ("gpt2", "llama")
        for dictionary in (
            ("per_layer", False, ReadPoint.NORMED, "jump_relu"),
            ("per_layer", True, ReadPoint.NORMED, "topk"),
            ("per_layer", True, ReadPoint.RESIDUAL, "relu"),
            ("cross_layer", False, ReadPoint.RESIDUAL, "relu"),
            ("cross_layer", True, ReadPoint.NORMED, "jump_relu"),
            ("cross_layer", True, ReadPoint.NORMED_UNWEIGHTED, "relu"),
        )
    ),
    *(Case(family) for family in FAMILIES if family not in ("gpt2", "llama")),
    Case("gpt_neox", "per_layer", read=ReadPoint.RESIDUAL),
    Case("gpt_neox", read=ReadPoint.NORMED_UNWEIGHTED),
    *(
        Case(family, kind, True, read, "topk", write)
        for family in POST_NORM
        for kind, read, write in (
            ("per_layer", ReadPoint.NORMED_UNWEIGHTED, WritePoint.MLP_OUTPUT),
            ("cross_layer", ReadPoint.RESIDUAL, WritePoint.POST_NORM),
        )
    ),
    Case("gpt2", "per_layer", at=(1,), elsewhere="error"),
    Case("gpt2", at=(0, 1), elsewhere="error"),
    Case("llama", at=(1, 2), elsewhere="error"),
    Case("gpt_neox", at=(1,), elsewhere="error"),
    Case("gpt2", at=(0, 1), elsewhere="neurons"),
    Case("gpt_neox", "per_layer", at=(1,), elsewhere="neurons"),
    Case("llama", at=(1, 2), read=ReadPoint.RESIDUAL, elsewhere="neurons"),
    Case(
        "gemma2",
        at=(0, 1),
        read=ReadPoint.NORMED_UNWEIGHTED,
        write=WritePoint.POST_NORM,
        elsewhere="neurons",
    ),
]
case = pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(map(str, case)))


@cache
def model_of(options: Case) -> ReplacementModel:
    return replacement_model(**options._asdict())


@cache
def graph_of(options: Case) -> AttributionGraph:
    return tracer.trace(model_of(options), PROMPT)


def deviation(effect: np.ndarray, targets: list[dict[str, Any]], moved: torch.Tensor, logits: Any):
    """Largest difference between the effects on some nodes and what a forward pass moved."""
    features = [(n["layer"], n["position"], n["feature"]) for n in targets if n["token"] is None]
    tokens = [n["token"] for n in targets if n["token"] is not None]
    expected = torch.cat([moved[tuple(torch.tensor(features).T)], logits[tokens] - logits.mean()])
    return np.abs(effect - expected.numpy()).max()


def off_interventions(model: ReplacementModel, graph: AttributionGraph, count: int) -> float:
    """Largest difference of effects from what doubling their features moves, some features tried.

    Args:
        model: what was traced.
        graph: the graph of PROMPT.
        count: about how many features, spread over all.
    """
    nodes = graph.nodes.to_pylist()
    rows = [index for index, node in enumerate(nodes) if node["kind"] in ("feature", "logit")]
    effect = graph.effect.toarray()[rows]
    features = [index for index in rows if nodes[index]["kind"] == "feature"]
    assert features
    worst = 0.0
    for source in features[:: max(1, len(features) // count)]:
        node = nodes[source]
        doubled = Intervention(
            layer=node["layer"], position=node["position"], feature=node["feature"], scale=2.0
        )
        change = tracer.intervene(model, PROMPT, [doubled], mode="direct")
        moved = change.pre_activations - change.base.pre_activations
        logits = (change.logits_before_cap - change.base.logits_before_cap)[-1]
        targets = [nodes[index] for index in rows]
        worst = max(worst, deviation(effect[:, source], targets, moved, logits))
    return worst


def row_sums(model: ReplacementModel, change: Callable[[LocalModel], LocalModel] | None = None):
    """Sum and local-forward value of every row, in units of the largest value."""
    with torch.no_grad():
        recording = model.record(PROMPT)
        local = linearise(model, recording, skip_positions=1)
        pre_activations, logits = LocalForward(model, recording)()
        found = local.features
        rows = feature_rows(model, recording, local, np.arange(len(found)))
        targets = logit_targets(model, recording, None, 10, 0.95)
        local = local if change is None else change(local)
        sums = [
            effects.sources.sum(1) + effects.constant
            for effects in (sweep(local, rows), sweep(local, targets.rows))
        ]
    features = [
        pre_activations[layer][position, feature]
        for layer, position, feature in zip(
            found.layer.tolist(), found.position.tolist(), found.feature.tolist(), strict=True
        )
    ]
    last = logits[-1]
    values = torch.stack([*features, *(last[token] - last.mean() for token in targets.token)])
    return torch.cat(sums) / values.abs().max(), values / values.abs().max()


@case
def test_every_row_sums_to_what_a_separate_forward_pass_reads(options: Case):
    got, expected = row_sums(model_of(options))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@case
def test_the_local_replacement_model_reproduces_the_logits(options: Case):
    model = model_of(options)
    with torch.no_grad():
        recording = model.record(PROMPT)
        _, logits = LocalForward(model, recording)()
    expected = recording.logits_before_cap
    error = float((logits - expected).abs().max() / expected.abs().max())
    assert error < options.tolerance
    torch.testing.assert_close(recording.logits, model.host.cap(expected), rtol=0, atol=1e-5)


@case
def test_a_free_intervention_that_changes_nothing_reproduces_the_logits(options: Case):
    model = model_of(options)
    recording = model.record(PROMPT)
    same = Intervention(layer=1, position=2, feature=3, scale=1.0)
    change = tracer.intervene(model, PROMPT, [same], mode="free")
    assert torch.equal(change.logits, change.base.logits)
    assert torch.equal(change.logits, recording.logits)


@case
def test_a_direct_intervention_that_changes_nothing_reproduces_the_logits(options: Case):
    change = tracer.intervene(model_of(options), PROMPT, [], mode="direct")
    expected = model_of(options).record(PROMPT).logits
    size = float(expected.abs().max())
    torch.testing.assert_close(change.logits, expected, rtol=0, atol=options.tolerance * size)


@case
def test_an_edge_is_what_a_direct_intervention_changes(options: Case):
    assert off_interventions(model_of(options), graph_of(options), 8) < 1e-9


@case
def test_edges_from_tokens_and_errors_are_what_removing_them_changes(options: Case):
    model, graph = model_of(options), graph_of(options)
    nodes = graph.nodes.to_pylist()
    rows = [index for index, node in enumerate(nodes) if node["kind"] in ("feature", "logit")]
    effect = graph.effect.toarray()[rows]
    with torch.no_grad():
        forward = LocalForward(model, model.record(PROMPT))
        before, logits = forward()
        for source, node in enumerate(nodes):
            if node["kind"] not in ("embedding", "error"):
                continue
            scale = forward.token if node["kind"] == "embedding" else forward.error[node["layer"]]
            scale[node["position"]] = 0
            after, logits_after = forward()
            scale[node["position"]] = 1
            moved = stacked(before) - stacked(after)
            targets = [nodes[index] for index in rows]
            changed = (logits - logits_after)[-1]
            assert deviation(effect[:, source], targets, moved, changed) < 1e-9


@case
def test_influence_of_the_roots_adds_up_to_the_weights(options: Case):
    nodes = graph_of(options).nodes.to_pydict()
    kind = np.array(nodes["kind"])
    roots = np.isin(kind, ["embedding", "error"])
    influence = np.array(nodes["influence"])
    weights = [p for p in nodes["probability"] if p is not None]
    assert influence[roots].sum() == pytest.approx(sum(weights), rel=1e-9)


ERROR, CONSTANT = 0, 1
"""Among what a layer writes besides features."""


def _without(layer: int, which: int, first: int = 0) -> Callable[[LocalModel], LocalModel]:
    """Nothing of one kind is written at a layer, from position `first` on."""

    def change(local: LocalModel) -> LocalModel:
        writers, every = local.writers[layer], list(local.writers)
        rows = [end - writers.others + which for end in writers.start[first + 1 :]]
        gone = writers.vectors.index_fill(0, torch.tensor(rows), 0.0)
        every[layer] = replace(writers, vectors=gone)
        return replace(local, writers=every)

    return change


def _without_attention_bias(local: LocalModel) -> LocalModel:
    carried = local.layers[1].carried.clone()
    carried[:, -1] = 0
    local = _without(1, local.writers[1].others - 1)(local)
    return _with_layer(local, 1, carried=carried)


def _with_layer(local: LocalModel, layer: int, **changes: Any) -> LocalModel:
    layers = list(local.layers)
    layers[layer] = replace(layers[layer], **changes)
    return replace(local, layers=layers)


def _without_head(local: LocalModel) -> LocalModel:
    pattern = local.layers[1].pattern.clone()
    pattern[0, :, 0] = 0
    return _with_layer(local, 1, pattern=pattern)


MUTATIONS: dict[str, Callable[[LocalModel], LocalModel]] = {
    "decoder bias": _without(0, CONSTANT),
    "attention bias": _without_attention_bias,
    "linear skip": lambda local: _with_layer(local, 1, skip=None),
    "one head": _without_head,
    "one layer's errors": _without(0, ERROR, first=1),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("dropped", MUTATIONS)
def test_conservation_fails_when_something_is_dropped(dropped: str, kind: str, family: str):
    model = replacement_model(family, kind=kind, skip=True)
    got, expected = row_sums(model, MUTATIONS[dropped])
    assert float((got - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("dropped", ["value_bias", "output_bias"])
def test_conservation_fails_when_a_host_forgets_a_bias(
    monkeypatch: pytest.MonkeyPatch, dropped: str
):
    monkeypatch.setattr(replacement, "check_layout", lambda *_: None)
    model = replacement_model("gpt2")
    blocks = [replace(block, **{dropped: None}) for block in model.host.blocks]
    host = replace(model.host, blocks=blocks)
    honest = tracer.trace(model, PROMPT).metadata["conservation"]
    broken = tracer.trace(replace(model, host=host), PROMPT).metadata["conservation"]
    assert honest["relative"] < 1e-9
    assert broken["relative"] > 1e-3


def test_one_part_in_a_hundred_of_attention_is_noticed_and_one_in_a_million_is_not():
    model = replacement_model("gpt2")
    for factor, refused in ((1.01, True), (1 + 1e-6, False)):
        blocks = [replace(block, output=block.output * factor) for block in model.host.blocks]
        changed = replace(model, host=replace(model.host, blocks=blocks))
        if refused:
            with pytest.raises(ModelError, match="computes something else"):
                changed.record(PROMPT)
        else:
            changed.record(PROMPT)


def test_a_forgotten_value_bias_is_noticed_before_the_trace():
    model = replacement_model("gpt2")
    blocks = [replace(block, value_bias=None) for block in model.host.blocks]
    with pytest.raises(ModelError, match="layer 0 computes something else"):
        tracer.trace(replace(model, host=replace(model.host, blocks=blocks)), PROMPT)


def test_edges_differ_from_interventions_when_a_head_is_dropped():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT)
    broken = replace(model)
    output = broken.folded[1].output.clone()
    output[:4] = 0
    broken.__dict__["folded"] = (
        broken.folded[0],
        replace(broken.folded[1], output=output),
        broken.folded[2],
    )
    wrong = tracer.trace(broken, PROMPT)
    assert abs(graph.effect - wrong.effect).max() > 1e-3


@pytest.mark.parametrize("skip_positions", [0, 2, len(PROMPT)])
def test_conservation_holds_whatever_is_skipped(skip_positions: int):
    for family in ("gpt2", "llama"):
        model = replacement_model(family, kind="cross_layer", skip=True)
        graph = tracer.trace(model, PROMPT, skip_positions=skip_positions)
        limit = 1e-9 if family == "gpt2" else 2e-5
        assert graph.metadata["conservation"]["relative"] < limit
        positions = {n["position"] for n in graph.nodes.to_pylist() if n["kind"] == "error"}
        assert positions == set(range(skip_positions, len(PROMPT)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(dtype: torch.dtype):
    model = replacement_model("gpt2", dtype, kind="cross_layer")
    relative = tracer.trace(model, PROMPT).metadata["conservation"]["relative"]
    assert relative < {torch.float32: 2e-6, torch.bfloat16: 0.1}[dtype]


def test_a_cap_leaves_out_what_it_does_not_explain():
    model = replacement_model("gpt2", kind="cross_layer")
    whole = tracer.trace(model, PROMPT)
    capped = tracer.trace(model, PROMPT, max_features=5, rank_every=2)
    assert capped.metadata["active_features"] == whole.metadata["active_features"]
    assert sum(kind == "feature" for kind in capped.nodes["kind"].to_pylist()) == 5
    assert capped.metadata["conservation"]["relative"] < 1e-9
    by_id = {node["id"]: node for node in whole.nodes.to_pylist()}
    row = {name: index for index, name in enumerate(whole.nodes["id"].to_pylist())}
    kept = set(capped.nodes["id"].to_pylist())
    dropped = [i for name, i in row.items() if name not in kept]
    for node in capped.nodes.to_pylist():
        if node["kind"] in ("feature", "logit"):
            lost = whole.effect[[row[node["id"]]]].toarray()[0, dropped]
            assert node["left_out"] == pytest.approx(lost.sum(), abs=1e-9)
            assert node["left_out_absolute"] == pytest.approx(np.abs(lost).sum(), abs=1e-9)
            assert node["constant"] == pytest.approx(by_id[node["id"]]["constant"], abs=1e-9)
