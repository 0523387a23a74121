"""The engine's own promises: chunks, caps, edge cases, and no trace left on the model."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import sparse

import tracer
from graphs.influence import influence
from graphs.schema import number
from replacement_models import JumpReLU, ReplacementModel
from tests.random_models import PROMPT, replacement_model, transcoder
from tracer import Intervention, TraceError
from tracer.attribution import blocks, chunks, sweep
from tracer.attribution import trace as attribute
from tracer.attribution.finished import WholeRun
from tracer.attribution.frontier import Frontier
from tracer.attribution.local_model import Reach


@pytest.mark.parametrize("budget", [1, 7, 50, 10**6])
def test_the_chunk_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, budget: int):
    model = replacement_model("llama", kind="cross_layer", skip=True)
    whole = tracer.trace(model, PROMPT)
    monkeypatch.setattr(chunks, "CHUNK", budget)
    monkeypatch.setattr(chunks, "ROWS", 1)
    monkeypatch.setattr(blocks, "BLOCK", max(1, budget // 3))
    again = tracer.trace(model, PROMPT)
    assert again.nodes["id"].to_pylist() == whole.nodes["id"].to_pylist()
    assert abs(again.effect - whole.effect).max() < 1e-12


def test_no_gradient_is_larger_than_the_chunk(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2", kind="per_layer")
    seen = []
    attention = sweep._attention

    def watched(maps, pattern, read, *others):
        seen.append(read.shape[0] * read.shape[1])
        return attention(maps, pattern, read, *others)

    monkeypatch.setattr(sweep, "_attention", watched)
    monkeypatch.setattr(chunks, "CHUNK", 24)
    monkeypatch.setattr(chunks, "ROWS", 1)
    tracer.trace(model, PROMPT)
    assert max(seen) <= 24


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patterns_made_anew_and_mixed_in_blocks_give_the_same_graph(
    monkeypatch: pytest.MonkeyPatch, family: str
):
    model = replacement_model(family, kind="cross_layer", skip=True)
    whole = tracer.trace(model, PROMPT)
    monkeypatch.setattr(attribute, "PATTERNS", 0)
    monkeypatch.setattr(sweep, "KEYS", 2)
    again = tracer.trace(model, PROMPT)
    assert not isinstance(model.record(PROMPT, keep_patterns=False).layers[0].pattern, torch.Tensor)
    assert again.nodes["id"].to_pylist() == whole.nodes["id"].to_pylist()
    assert abs(again.effect - whole.effect).max() < 1e-12


def test_an_edge_floor_drops_small_effects_and_says_so():
    model = replacement_model("gpt2", kind="cross_layer")
    whole = tracer.trace(model, PROMPT)
    rough = tracer.trace(model, PROMPT, edge_floor=0.02)
    assert rough.metadata["conservation"]["relative"] < 1e-9
    assert 0 < rough.metadata["floored_share"] < 0.5
    assert rough.effect.nnz < whole.effect.nnz
    kept = rough.effect.toarray()
    share = np.abs(whole.effect.toarray())
    share /= np.maximum(share.sum(1, keepdims=True), 1e-300)
    np.testing.assert_array_equal(kept != 0, share >= 0.02)
    assert rough.scores.replacement <= whole.scores.replacement
    assert rough.scores.completeness <= whole.scores.completeness


def test_progress_is_told_and_an_interrupted_trace_keeps_what_is_finished(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(blocks, "BLOCK", 5)
    model = replacement_model("gpt2")
    told: list[tuple[int, int]] = []

    def stop_at_ten(done: int, total: int) -> None:
        told.append((done, total))
        if done >= 10:
            raise KeyboardInterrupt

    graph = tracer.trace(model, PROMPT, progress=stop_at_ten, keep_partial=True)
    total = graph.metadata["active_features"]
    assert told == [(0, total), (5, total), (10, total)]
    assert graph.metadata["partial"] == {"features": 10}
    assert graph.metadata["conservation"]["relative"] < 1e-9
    with pytest.raises(KeyboardInterrupt):
        tracer.trace(model, PROMPT, progress=stop_at_ten)


def test_a_cap_without_need_changes_nothing():
    model = replacement_model("gpt2")
    whole = tracer.trace(model, PROMPT)
    capped = tracer.trace(model, PROMPT, max_features=10**6, rank_every=1)
    assert abs(whole.effect - capped.effect).max() == 0


def test_no_features_at_all_is_a_graph_too():
    graph = tracer.trace(replacement_model("gpt2"), PROMPT, max_features=0)
    assert "feature" not in graph.nodes["kind"].to_pylist()
    assert graph.metadata["conservation"]["relative"] < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prompt_of_one_token(family: str):
    model = replacement_model(family, kind="cross_layer")
    graph = tracer.trace(model, [5])
    assert set(graph.nodes["kind"].to_pylist()) == {"embedding", "logit"}
    assert graph.metadata["conservation"]["relative"] < 2e-5
    assert graph.prune().nodes.num_rows == graph.nodes.num_rows
    more = tracer.trace(model, [5], skip_positions=0)
    assert {"feature", "error"} <= set(more.nodes["kind"].to_pylist())
    assert more.metadata["conservation"]["relative"] < 2e-5


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_a_dictionary_in_which_nothing_fires(kind: str):
    model = silenced(replacement_model("gpt2", kind=kind, activation="jump_relu"), None)
    graph = tracer.trace(model, PROMPT)
    assert "feature" not in graph.nodes["kind"].to_pylist()
    assert graph.metadata["conservation"]["relative"] < 1e-9
    assert graph.scores.replacement > 0


def test_a_feature_silent_everywhere_but_at_one_position():
    loud = replacement_model("gpt2", activation="jump_relu")
    hidden = loud.record(PROMPT).inputs[1] @ loud.transcoder.layers[1].W_enc[3]
    only = int(hidden[1:].argmax()) + 1
    rest = hidden + loud.transcoder.layers[1].b_enc[3]
    level = float(rest.sort().values[-2:].mean())
    model = silenced(loud, level)
    graph = tracer.trace(model, PROMPT)
    features = [node for node in graph.nodes.to_pylist() if node["kind"] == "feature"]
    assert [(f["layer"], f["feature"]) for f in features] in ([(1, 3)], [])
    assert all(f["position"] == only for f in features)
    assert graph.metadata["conservation"]["relative"] < 1e-9


def silenced(model: ReplacementModel, level: float | None) -> ReplacementModel:
    """The model with thresholds nothing reaches, but `level` for feature 3 of layer 1."""
    layers = list(model.transcoder.layers)
    for index, layer in enumerate(layers):
        threshold = torch.full_like(layer.b_enc, 1e9)
        if level is not None and index == 1:
            threshold[3] = level
        layers[index] = type(layer)(
            layer.W_enc, layer.b_enc, layer.decoder, layer.b_dec, JumpReLU(threshold), layer.W_skip
        )
    quiet = type(model.transcoder)(layers, read=model.transcoder.read)
    return ReplacementModel.from_huggingface(model.host.model, None, quiet)


def test_the_frontier_takes_the_most_influential_first_and_breaks_ties_by_index():
    frontier = Frontier.over(np.array([2, 0, 1]), columns=4)
    whole = Reach.of(np.arange(4))
    rows = [WholeRun(whole, np.array([[1.0, 1.0, 1.0, 5.0]]))]
    frontier.add(rows, np.array([8.0]), (np.array([6]), np.array([-1])), np.array([1.0]))
    assert frontier.next(3).tolist() == [2, 0, 1]
    below = [WholeRun(Reach.of(np.array([0, 3])), np.array([[3.0, 1.0]]))]
    frontier.add(below, np.array([4.0]), (np.array([3]), np.array([1])), np.array([0.0]))
    assert frontier.next(3).tolist() == [0, 2]


def test_the_same_trace_twice_is_the_same_bytes(tmp_path):
    model = replacement_model("gpt2", kind="cross_layer")
    for name in ("a.zip", "b.zip"):
        tracer.trace(model, PROMPT).save(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"layer": 3, "position": 0, "feature": 0, "value": 1.0}, "layer 3 is not in 0..2"),
        ({"layer": 0, "position": 9, "feature": 0, "value": 1.0}, "position 9 is not in -6..5"),
        ({"layer": 0, "position": 0, "feature": 24, "value": 1.0}, "feature 24 is not in 0..23"),
        ({"layer": 0, "position": slice(9, 12), "feature": 0, "add": 1.0}, "holds none of 6"),
        ({"layer": 0, "position": 0, "feature": 0}, "give exactly one of value, scale, add"),
        ({"layer": 0, "position": 0, "feature": 0, "add": float("nan")}, "is no finite number"),
    ],
)
def test_interventions_that_name_nothing_are_refused(wanted, said: str):
    model = replacement_model("gpt2")
    with pytest.raises(TraceError, match=said.replace("(", r"\(")):
        tracer.intervene(model, PROMPT, [Intervention(**wanted)])


def test_an_unknown_mode_is_refused():
    said = "mode is 'gentle', expected one of direct, constrained, free"
    with pytest.raises(TraceError, match=said):
        tracer.intervene(replacement_model("gpt2"), PROMPT, [], mode="gentle")


def test_set_scale_and_add_say_the_same_thing():
    model = replacement_model("llama", kind="cross_layer", skip=True)
    found = model.record(PROMPT).features
    at = int((found.position == 4).nonzero()[0])
    layer, feature = int(found.layer[at]), int(found.feature[at])
    value = float(found.activation[at])
    place = {"layer": layer, "position": 4, "feature": feature}
    for mode in ("direct", "free"):
        changes = [
            tracer.intervene(model, PROMPT, [Intervention(**place, **how)], mode=mode)
            for how in ({"value": 3 * value}, {"scale": 3.0}, {"add": 2 * value})
        ]
        for change in changes[1:]:
            torch.testing.assert_close(change.logits, changes[0].logits, atol=1e-9, rtol=0)
        assert (changes[0].logits - changes[0].base.logits).abs().max() > 1e-3


def test_nothing_changed_is_the_original_model():
    model = replacement_model("gpt2", kind="cross_layer", skip=True)
    logits = model.record(PROMPT).logits
    for mode in ("direct", "free"):
        change = tracer.intervene(model, PROMPT, [], mode=mode)
        torch.testing.assert_close(change.logits, logits, atol=1e-9, rtol=0)


def test_a_slice_reaches_every_position_in_it():
    model = replacement_model("gpt2", kind="per_layer")
    ones = [Intervention(layer=1, position=p, feature=2, add=0.5) for p in (3, 4, 5)]
    together = Intervention(layer=1, position=slice(-3, None), feature=2, add=0.5)
    apart = tracer.intervene(model, PROMPT, ones, mode="free")
    once = tracer.intervene(model, PROMPT, [together], mode="free")
    torch.testing.assert_close(apart.logits, once.logits, atol=1e-9, rtol=0)


def test_the_dictionary_is_gathered_once_and_the_model_runs_once(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2", kind="cross_layer")
    passes = []
    handle = model.host.model.register_forward_hook(lambda *_: passes.append(1))
    encoded = []
    encode = type(model.transcoder).encode
    monkeypatch.setattr(
        type(model.transcoder),
        "encode",
        lambda self, layer, x: encoded.append(layer) or encode(self, layer, x),
    )
    try:
        tracer.trace(model, PROMPT, max_features=9, rank_every=2)
    finally:
        handle.remove()
    assert len(passes) == 1
    assert encoded == [0, 1, 2]


def test_transcoder_options_do_not_leak_between_models():
    assert transcoder(seed=1).layers[0].W_enc.equal(transcoder(seed=1).layers[0].W_enc)
    assert not transcoder(seed=1).layers[0].W_enc.equal(transcoder(seed=2).layers[0].W_enc)


def test_a_capped_trace_scores_what_the_whole_one_says_of_its_nodes():
    """Influence in the whole graph, stopped where the capped one has no node."""
    model = replacement_model("llama", kind="cross_layer")
    whole = tracer.trace(model, PROMPT)
    for cap in (0, 4, 20):
        capped = tracer.trace(model, PROMPT, max_features=cap, rank_every=2)
        kept = np.isin(whole.nodes["id"].to_pylist(), capped.nodes["id"].to_pylist())
        share = whole.edges["share"].to_numpy()
        open_row = kept[whole.edges["target"].to_numpy()]
        stopped = sparse.csr_array(
            (np.abs(share) * open_row, whole.effect.indices, whole.effect.indptr)
        )
        weight = number(whole.nodes, "probability")
        ends = influence(stopped, weight)
        kind = np.array(whole.nodes["kind"].to_pylist())
        found, everything = capped.scores, weight.sum()
        assert found.uncovered == pytest.approx(ends[~kept].sum() / everything, abs=1e-12)
        tokens = ends[kind == "embedding"].sum()
        assert found.replacement == pytest.approx(tokens / everything, abs=1e-12)
        assert found.replacement < found.among_nodes.replacement
        assert found.replacement < whole.scores.replacement
    assert whole.scores.uncovered == 0


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_the_skip_alone_scores_as_a_dictionary_in_which_nothing_fires(family: str, kind: str):
    model = replacement_model(family, kind=kind, skip=True, activation="jump_relu")
    quiet = tracer.trace(silenced(model, None), PROMPT)
    assert quiet.metadata["skip_alone"] == pytest.approx(
        asdict(quiet.scores.among_nodes), abs=1e-14
    )
    assert quiet.scores.replacement == quiet.scores.among_nodes.replacement
    for options in ({}, {"max_features": 3}, {"edge_floor": 0.1}, {"recompute_patterns": True}):
        loud = tracer.trace(model, PROMPT, **options)
        assert loud.metadata["skip_alone"] == pytest.approx(quiet.metadata["skip_alone"], abs=1e-9)


def test_all_that_features_write_is_error_where_the_skip_stands_alone():
    """Per-layer features write at one place: their effects join that of the error there."""
    model = replacement_model("llama", kind="per_layer", skip=True)
    graph = tracer.trace(model, PROMPT)
    place = {name: graph.nodes[name].to_numpy() for name in ("layer", "position")}
    kind, weight = np.array(graph.nodes["kind"].to_pylist()), number(graph.nodes, "probability")
    tokens = errors = 0.0
    for row in np.flatnonzero(kind == "logit"):
        effect = graph.effect[[row]].toarray()[0]
        at = place["layer"] * 100 + place["position"]
        written = np.isin(kind, ["feature", "error"])
        sums = np.abs([effect[written & (at == one)].sum() for one in np.unique(at[written])]).sum()
        token = np.abs(effect[kind == "embedding"]).sum()
        tokens += weight[row] * token / (token + sums)
        errors += weight[row] * sums / (token + sums)
    found = graph.metadata["skip_alone"]
    assert found["replacement"] == pytest.approx(tokens / (tokens + errors), abs=1e-12)
    through = weight.sum() + tokens + errors
    assert found["completeness"] == pytest.approx((through - errors) / through, abs=1e-12)


def test_without_a_skip_nothing_is_said_of_one():
    assert "skip_alone" not in tracer.trace(replacement_model("llama"), PROMPT).metadata
    some = replacement_model("llama", skip=True, at=[1], elsewhere="neurons")
    assert "skip_alone" in tracer.trace(some, PROMPT).metadata


def test_weightless_targets_have_no_score_of_the_skip():
    target = [tracer.Difference(1, 2, weight=0.0)]
    graph = tracer.trace(replacement_model("llama", skip=True), PROMPT, targets=target)
    assert graph.metadata["skip_alone"] == {"replacement": None, "completeness": None}
