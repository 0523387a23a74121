"""QK attribution, first-order effects, head scores: sums, separate passes, refusals, commands."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tracer
from graphs import AttributionGraph
from graphs.attention_words import Names, carried
from graphs.exchange.attention_json import link_heads, qk_only_nodes, qk_tracing_results
from replacement_models import ReplacementModel
from replacement_models.host import Norm
from tests.local_forward import LocalForward
from tests.random_models import (
    FAMILIES,
    LAYERS,
    PROMPT,
    WINDOW,
    language_model,
    randomised,
    replacement_model,
    transcoder,
)
from tests.test_cli import refused, succeed
from tracer import Intervention, TraceError
from tracer.attention import marginals, spot
from tracer.attention.effects import STEPS, _matrix
from tracer.attention.explained import explained
from tracer.attention.live import _norm_answers, _post_norm_answers
from tracer.attention.patterns import attention_patterns, pattern_svg, patterns_json
from tracer.attention.queries_keys import QueryKeyMap, Scores
from tracer.attention.weights import head_maps
from tracer.validation.ablation import ablations
from tracer.validation.response import Prediction, by_distance, responses
from tracer.validation.subject import subject

ROTATES_IN_FLOAT32 = ("cohere", "cohere2")
EXACT = ("gpt2", "gpt_neox", "gpt_neox_sequential", "phi", "gpt_neo", "gptj")
"""Families whose norms honour float64."""
family_case = pytest.mark.parametrize("family", FAMILIES)


@cache
def made(family: str, kind: str = "cross_layer") -> tuple[ReplacementModel, AttributionGraph]:
    model = replacement_model(family, kind=kind, skip=True)
    return model, tracer.trace(model, PROMPT)


def entering(forward: LocalForward, layer: int) -> torch.Tensor:
    """The stream entering a layer in a separate forward pass of the local model."""
    model, seen = forward.model, forward.recording
    x = forward.token[:, None] * seen.token_vectors
    if seen.position_vectors is not None:
        x = x + seen.position_vectors
    for below in range(layer):
        attended = forward._attention(below, x)
        parallel = model.host.blocks[below].parallel
        read = forward._read(below, x if parallel else x + attended)
        x = x + attended + forward._mlp(below, read)
    return x


def separate_scores(family: str, layer: int, forward: LocalForward) -> tuple[Scores, Scores]:
    """Scores as recorded, and of what attention reads in a separate pass."""
    model, graph = made(family)
    known = explained(model, graph)
    place, x = known.query_keys([layer])[layer], entering(forward, layer)
    norm = model.host.blocks[layer].attention_norm
    hidden = x if norm is None else norm.frozen(x, place.scale)
    return place.scores().scores, place.scores(hidden).scores


@family_case
def test_marginals_and_pairs_add_up_to_the_score_of_a_separate_pass(family: str):
    model, graph = made(family)
    layer, head, query = LAYERS - 1, 3, 5
    found = tracer.explain_attention(
        model, graph, layer=layer, head=head, query=query, contrast="score", top=6, pairs=True
    )
    with torch.no_grad():
        forward = LocalForward(model, model.record(PROMPT))
        clean, own = separate_scores(family, layer, forward)
        kv = clean.key_head(head)
        by_q = clean.scaling * own.queries[head, query] @ clean.keys[kv, found.key]
        by_k = clean.scaling * clean.queries[head, query] @ own.keys[kv, found.key]
    limit = 3e-6 if family in ROTATES_IN_FLOAT32 else 1e-9
    size, secant = max(map(abs, found.keys["score"].to_pylist())), found.capped / found.score
    whole = {side: sum(getattr(found, side)["weight"].to_pylist()) for side in ("q", "k", "pairs")}
    assert whole["q"] == pytest.approx(secant * float(by_q), abs=limit * size)
    assert whole["k"] == pytest.approx(secant * float(by_k), abs=limit * size)
    assert whole["pairs"] == pytest.approx(found.capped, abs=1e-9 * size)
    for side in "qk":
        rows = [row for row in found.by_position.to_pylist() if row["side"] == side]
        assert sum(row["weight"] for row in rows) == pytest.approx(whole[side], abs=1e-9)
    assert found.residual < (1e-9 if family in EXACT else 2e-5)


@family_case
def test_the_log_odds_and_the_capped_contrast_with_a_sink_add_up(family: str):
    model, graph = made(family, "per_layer")
    for contrast in ("odds", "plain"):
        found = tracer.explain_attention(
            model, graph, layer=1, head=2, query=4, contrast=contrast, pairs=True
        )
        keys = found.keys.to_pylist()
        pattern = model.record(PROMPT).layers[1].pattern[2, 4]
        for row in keys:
            assert row["pattern"] == pytest.approx(float(pattern[row["key"]]), abs=1e-6)
        mass = 1 - sum(row["pattern"] for row in keys)
        sinks = getattr(model.host.blocks[1].attention, "sinks", None)
        others = sum(row["pattern"] * row["capped"] for row in keys if row["key"] != found.key)
        others += 0.0 if sinks is None else mass * float(sinks[2].detach())
        odds = found.capped - others / (1 - found.pattern)
        assert found.log_odds == pytest.approx(odds, rel=1e-6)
        part = 1 if contrast == "odds" else 1 - found.pattern
        assert found.explained == pytest.approx(odds * part, rel=1e-6)
        assert sum(found.q["weight"].to_pylist()) == pytest.approx(found.explained, abs=1e-5)
        pair_sum = sum(found.pairs["weight"].to_pylist()) + found.sink
        assert pair_sum == pytest.approx(found.explained, abs=1e-9)
        assert bool(found.sink) == (sinks is not None)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2", "qwen3"])
def test_a_frozen_ablation_changes_the_score_as_marginals_and_pairs_say(family: str):
    model, graph = made(family)
    layer, head, query = LAYERS - 1, 1, 5
    found = tracer.explain_attention(
        model, graph, layer=layer, head=head, query=query, contrast="score", top=10**4, pairs=True
    )
    with torch.no_grad():
        recording = model.record(PROMPT)
        forward = LocalForward(model, recording)
        clean, before = separate_scores(family, layer, forward)
        features = recording.features
        names = [
            f"{layer}_{feature}_{position}"
            for layer, position, feature in zip(
                *(part.tolist() for part in (features.layer, features.position, features.feature)),
                strict=True,
            )
        ]
        sides = [dict(zip(t["node"].to_pylist(), t["weight"].to_pylist(), strict=True))
                 for t in (found.q, found.k)]  # fmt: skip
        own = {
            row["node_q"]: row["weight"]
            for row in found.pairs.to_pylist()
            if row["node_q"] == row["node_k"]
        }
        kv, size = clean.key_head(head), abs(found.score)
        for number in range(0, len(names), max(1, len(names) // 8)):
            name = names[number]
            forward.feature[number] = 0
            _, after = separate_scores(family, layer, forward)
            forward.feature[number] = 1
            score = clean.scaling * after.queries[head, query] @ after.keys[kv, found.key]
            was = clean.scaling * before.queries[head, query] @ before.keys[kv, found.key]
            gone = sides[0].get(name, 0) + sides[1].get(name, 0) - own.get(name, 0)
            gone *= found.score / found.capped  # the score before the cap
            drift = 1e-9 if family in EXACT else 2e-5
            assert float(was - score) == pytest.approx(gone, abs=max(drift, 1e-9) * max(1, size))


def residual(**place: Any) -> float:
    model, graph = made("gpt2")
    return tracer.explain_attention(model, graph, layer=2, head=1, query=5, **place).residual


def test_explanations_miss_the_score_when_something_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
):
    assert residual() < 1e-9
    real = QueryKeyMap.scores

    def no_biases(self: QueryKeyMap, hidden: Any = None, live: bool = False) -> Any:
        found = real(self, hidden, live)
        if hidden is None:
            return found
        none = replace(
            found.scores,
            queries=torch.zeros_like(found.scores.queries),
            keys=torch.zeros_like(found.scores.keys),
        )
        return replace(found, scores=none)

    with monkeypatch.context() as patch:  # no b_Q and b_K
        patch.setattr(QueryKeyMap, "scores", no_biases)
        assert residual() > 1e-3
    with monkeypatch.context() as patch:  # no norm bias
        patch.setattr(
            marginals, "pulled_to_stream",
            lambda *given: (spot_pull(*given)[0], torch.zeros(2).double()),
        )  # fmt: skip
        assert residual() > 1e-3


spot_pull = marginals.pulled_to_stream


def test_swapped_key_heads_are_noticed(monkeypatch: pytest.MonkeyPatch):
    model, graph = made("llama")
    monkeypatch.setattr(Scores, "key_head", lambda self, head: 1 - head // 2)
    with pytest.raises(TraceError, match="its scores make another pattern than was recorded"):
        tracer.explain_attention(model, graph, layer=1, head=0, query=5)


def test_leaves_of_the_constant_are_told_apart():
    model, graph = made("gpt2")
    found = tracer.explain_attention(model, graph, layer=2, head=1, query=5)
    leaves = {row["node"]: row["weight"] for row in found.q.to_pylist() if "." in row["node"]}
    assert set(leaves) == {f"constant.{name}" for name in ("positions", "biases", "skipped")}
    assert all(leaves.values())
    model, graph = made("llama")
    found = tracer.explain_attention(model, graph, layer=2, head=1, query=5)
    assert {r["node"]: r["weight"] for r in found.q.to_pylist()}["constant.positions"] == 0


def test_bad_input_is_one_line():
    model, graph = made("mistral")
    explain = tracer.explain_attention
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layer": 3, "head": 0, "query": 1}, r"layer 3 does not exist, expected 0\.\.2"),
        ({"layer": 1, "head": 4, "query": 1}, r"head 1\.4 does not exist: layer 1 has 0\.\.3"),
        ({"layer": 1, "head": 0, "query": 6}, "query is position 6, but the prompt has 6"),
        ({"layer": 1, "head": 0, "query": 2, "key": 3}, r"hides key 3 from query 2"),
        ({"layer": 1, "head": 0, "query": 5, "key": 5 - WINDOW}, "hides key 2 from query 5"),
        ({"layer": 1, "head": 0, "query": 0}, "query 0 sees key 0 alone"),
        ({"layer": 1, "head": 0, "query": 1, "contrast": "x"}, "expected one of odds, plain"),
        ({"layer": 1, "head": 0, "query": 1, "top": 0}, "top is 0, expected 1 or more"),
    ]
    for place, said in cases:
        with pytest.raises(TraceError, match=said) as caught:
            explain(model, graph, **place)
        assert "\n" not in str(caught.value)
    for layer, head, said in (
        *((3, 0, r"layer 3 does not exist"), (-1, 0, r"layer -1 does not exist")),
        *((1, 4, r"head 1\.4 does not exist"), (1, -1, r"head 1\.-1 does not exist")),
    ):
        with pytest.raises(TraceError, match=said):
            pattern_svg(model, graph, layer, head)
        with pytest.raises(TraceError, match=said):
            explain(model, graph, layer=layer, head=head, query=1)
    with pytest.raises(TraceError, match="load the model it was traced from"):
        explain(made("gpt2")[0], graph, layer=0, head=0, query=1)


def test_errors_and_tokens_have_no_inputs_and_features_and_targets_do():
    model, graph = made("gpt2")
    known = explained(model, graph)
    features = int(known.local.features.layer.numel())
    for column in (features, features + 1, len(known.ids) - 1):
        with pytest.raises(TraceError, match=f"node '{known.ids[column]}' has no inputs"):
            known.rows([known.ids[column]])
    with pytest.raises(TraceError, match="node 'nothing' has no inputs"):
        known.rows(["nothing"])
    [target, *_] = known.logits
    mixed = known.rows([target, known.ids[features - 1], known.ids[0]])
    alone = [known.rows([name]) for name in (target, known.ids[features - 1], known.ids[0])]
    assert mixed.value.tolist() == [float(one.value[0]) for one in alone]
    assert mixed.position.tolist() == [int(one.position[0]) for one in alone]


def test_a_pattern_is_drawn_up_to_each_query_and_listed_for_all_heads():
    model, graph = made("mistral")
    patterns = attention_patterns(model, graph)
    with torch.no_grad():
        held: Any = model.host.model
        truth = held(torch.tensor([PROMPT]), output_attentions=True).attentions
    for found, expected in zip(patterns, truth, strict=True):
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)
    listed = json.loads(patterns_json(model, graph))
    assert listed["tokens"] == graph.metadata["tokens"]
    assert listed["layers"] == [
        [[[round(float(one), 4) for one in row[: at + 1]] for at, row in enumerate(head)]
         for head in layer]
        for layer in patterns
    ]  # fmt: skip
    drawn = pattern_svg(model, graph, 1, 2)
    assert "attention of head 1.2: from rows to columns" in drawn
    assert drawn != pattern_svg(model, graph, 1, 1)


def test_explanations_are_kept_with_the_graph_and_replaced_by_newer_ones(tmp_path: Path):
    model, graph = made("gpt2")
    first = tracer.explain_attention(model, graph, layer=1, head=0, query=5, pairs=True)
    other = tracer.explain_attention(model, graph, layer=1, head=1, query=5)
    held = first.joined(other.joined(first.joined(graph)))
    assert held.tables["attention"].num_rows == 2
    held.save(tmp_path / "it.graph")
    again = AttributionGraph.load(tmp_path / "it.graph")
    assert {name: table.to_pylist() for name, table in again.tables.items()} == {
        name: table.to_pylist() for name, table in held.tables.items()
    }
    known = {*graph.nodes["id"].to_pylist(), "rest"}
    leaves = {f"constant.{name}" for name in ("positions", "biases", "skipped")}
    assert set(held.tables["attention_marginals"]["node"].to_pylist()) <= known | leaves


def test_five_hundred_tokens_are_explained():
    config = GPT2Config(
        vocab_size=29, n_embd=16, n_layer=3, n_head=4, n_positions=512, n_inner=32,
        attn_implementation="eager", bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = ReplacementModel.from_huggingface(
        randomised(GPT2LMHeadModel(config), torch.float32), None, transcoder(), name="long"
    )
    tokens = (np.arange(512) * 7 % 29).tolist()
    graph = tracer.trace(model, tokens, max_features=4)
    found = tracer.explain_attention(model, graph, layer=2, head=1, query=-1, pairs=True)
    assert found.residual < 1e-4
    assert sum(found.pairs["weight"].to_pylist()) == pytest.approx(found.explained, abs=1e-3)


FREE = ("gpt2", "gpt_neox", "phi", "llama", "gemma2", "olmo2", "qwen3", "gpt_oss", "gpt_neo")


@pytest.mark.parametrize("family", FREE)
def test_first_order_effects_are_the_derivative_with_mlps_clamped(family: str):
    model, graph = made(family)
    found = tracer.attention_effects(model, graph)
    whole, nodes = found.beside(graph.effect).toarray(), graph.nodes.to_pylist()
    logits = [row for row, node in enumerate(nodes) if node["kind"] == "logit"]
    features = [row for row, node in enumerate(nodes) if node["kind"] == "feature"]
    step = 1e-4 if family == "gpt2" else 2e-2  # elsewhere softmax runs in float32
    for source in features[:: len(features) // 4]:
        node = {name: nodes[source][name] for name in ("layer", "position", "feature")}
        up, down = (
            tracer.intervene(
                model, PROMPT, [Intervention(**node, scale=scale)], "constrained",
                layers=range(LAYERS), freeze_attention=False, freeze_norms=False,
            ).logits_before_cap[-1]
            for scale in (1 + step, 1 - step)
        )  # fmt: skip
        slope = (up - down) / (2 * step)
        slope = slope - slope.mean()
        for row in logits:
            expected = float(slope[nodes[row]["token"]])
            limit = 1e-8 if family == "gpt2" else 2e-3 * max(1, float(slope.abs().max()))
            assert whole[row, source] == pytest.approx(expected, abs=limit)
    assert not found.conserved
    assert abs(found.attention).max() > 1e-2
    assert abs(found.norms).max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_oss"])
def test_with_nothing_answering_the_effects_are_the_edges(family: str):
    model, graph = made(family)
    known, ids = explained(model, graph), graph.nodes["id"].to_pylist()
    rows = [r for r, k in enumerate(graph.nodes["kind"].to_pylist()) if k in ("feature", "logit")]
    columns = [row for row, name in enumerate(ids) if name in known.column]
    with torch.no_grad():
        found = _matrix(
            known,
            known.rows([ids[row] for row in rows]),
            np.array([known.column[ids[row]] for row in columns]),
            STEPS[0],
        )
    expected = graph.effect.toarray()[rows][:, columns]
    reached = expected != 0
    assert np.abs(found - expected)[reached].max() < 1e-9 * np.abs(expected).max()


@cache
def embedded() -> tuple[ReplacementModel, AttributionGraph]:
    model = ReplacementModel.load()
    return model, tracer.trace(model, "The capital of the state containing Dallas is")


def test_responses_are_predicted_better_with_what_attention_and_norms_answer():
    model, graph = embedded()
    about, found = subject(model, graph), tracer.attention_effects(model, graph)
    plain = Prediction(about)
    both = [Prediction(about, found, norms) for norms in (False, True)]
    with torch.no_grad():
        [ablated, *_] = ablations(about)
        cosine = {}
        for one in (plain, *both):
            row = by_distance(list(responses(one, ablated)))["1"]
            cosine[one.kind] = row["cosine"]
    assert list(cosine) == ["edges", "attention answers", "attention and norms answer"]
    edges, attention, norms = cosine.values()
    assert edges + 0.03 < attention < norms - 0.03
    assert norms > 0.8


def test_head_3_4_carries_most_of_austin_and_losing_it_hurts_most():
    model, graph = embedded()
    table = tracer.head_logits(model, graph).to_pylist()
    best = max(table, key=lambda row: row["through"])
    assert (best["layer"], best["head"]) == (3, 4)
    assert best["through"] == pytest.approx(7.17, abs=0.05)


def test_heads_that_do_induction_are_found_with_those_that_look_back():
    rows = tracer.head_scores(embedded()[0]).to_pylist()

    def best(kind: str, count: int) -> set[tuple[int, int]]:
        top = sorted(rows, key=lambda row: -row[kind])[:count]
        return {(row["layer"], row["head"]) for row in top}

    assert best("induction", 2) == {(3, 3), (3, 4)}
    assert best("previous", 2) == {(2, 4), (2, 5)}
    assert best("name_mover", 1) == {(3, 4)}
    assert max(row["duplicate"] for row in rows) < 0.2


def test_scores_know_what_they_cannot_say():
    model = made("gpt2")[0]
    rows = tracer.head_scores(model, length=6).to_pylist()
    assert {row["successor"] for row in rows} == {row["name_mover"] for row in rows} == {None}
    with pytest.raises(TraceError, match="give at most 7"):
        tracer.head_scores(model, length=8)
    with pytest.raises(TraceError, match="at least 2 tokens and 1 sequence"):
        tracer.head_scores(model, length=1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_composition_is_that_of_the_whole_matrices(family: str):
    model, _ = made(family)
    rows = tracer.head_composition(model).to_pylist()
    with torch.no_grad():
        low, high = head_maps(model, 0), head_maps(model, 2)
    moved = low.output[1].T @ low.value[1]
    read = {
        "q": high.key[3].T @ high.query[3],
        "k": high.query[3].T @ high.key[3],
        "v": high.output[3].T @ high.value[3],
    }
    pair = ("from_layer", "from_head", "to_layer", "to_head")
    for kind, matrix in read.items():
        expected = (matrix @ moved).norm() / matrix.norm() / moved.norm()
        [got] = [
            row["score"] for row in rows
            if [row[name] for name in pair] == [0, 1, 2, 3]
            and row["kind"] == kind
        ]  # fmt: skip
        assert got == pytest.approx(float(expected), rel=1e-9)


def test_maps_of_a_head_are_those_that_its_score_is_made_with():
    model, graph = made("llama")  # without biases in its norms; queries and keys have them
    with torch.no_grad():
        maps, known = head_maps(model, 1, offset=3), explained(model, graph)
        place = known.query_keys([1])[1]
        hiddens = (None, torch.zeros_like(place.hidden))
        own, zero = (spot._detached(place.scores(hidden).scores) for hidden in hiddens)
        stream = known.recording.residuals[1] / place.scale
    for head in range(4):
        key_head = own.key_head(head)
        mine = (maps.query[head] @ stream[5]) @ (maps.key[head] @ stream[2])
        queries, keys = (getattr(own, side) - getattr(zero, side) for side in ("queries", "keys"))
        assert float(queries[head, 5] @ keys[key_head, 2]) == pytest.approx(float(mine), rel=1e-5)


def test_features_are_connected_through_a_head_by_weights():
    model, _ = made("llama")
    forth = tracer.head_virtual_weights(model, 1, 2, (0, 5), top=10**4).to_pylist()
    for row in forth[:: len(forth) // 5]:
        reader = (row["layer"], row["feature"])
        back = tracer.head_virtual_weights(model, 1, 2, reader, top=10**4).to_pylist()
        [weight] = [r["weight"] for r in back if (r["layer"], r["feature"]) == (0, 5)]
        assert weight == pytest.approx(row["weight"], abs=1e-12)
    looks = tracer.head_virtual_weights(model, 2, 1, (0, 5), side="query", offset=3, top=10**4)
    strongest = looks.to_pylist()[0]
    seen = tracer.head_virtual_weights(
        model, 2, 1, (strongest["layer"], strongest["feature"]), side="key", offset=3, top=10**4
    )
    [weight] = [r["weight"] for r in seen.to_pylist() if (r["layer"], r["feature"]) == (0, 5)]
    assert weight == pytest.approx(strongest["weight"], abs=1e-9)
    for given, said in (
        ({"feature": (0, 99)}, "feature 0/99 does not exist"),
        ({"feature": (2, 1), "side": "key"}, r"feature 2/1 stands above head 1\.2"),
        ({"feature": (0, 1), "side": "x"}, "expected one of ov, query, key"),
    ):
        with pytest.raises(TraceError, match=said):
            tracer.head_virtual_weights(model, 1, 2, **given)


def test_commands_store_and_say_which_heads_carried_a_path_and_why(tmp_path: Path):
    _, graph = embedded()
    folder, picture, data = tmp_path / "it.graph", tmp_path / "p.svg", tmp_path / "p.json"
    graph.save(folder)
    said = succeed("heads", str(folder), "--top", "3", "--chains")
    assert "3.4" in said
    assert "all other chains" in said
    said = succeed("attention", str(folder), "-o", str(picture))
    assert "log-odds against the other keys" in said
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    shown = succeed("show", str(folder), "--paths", "5")
    assert "head 3.4 carries" in shown
    assert "looking from “is” at “Dallas” because of" in shown
    place = ("--layer", "3", "--head", "4", "--query", "8", "--key", "7")
    said = succeed("attention", str(folder), *place, "--pairs", "-o", str(data))
    assert "from “is” (8) to “Dallas” (7)" in said
    layers = json.loads(data.read_text(encoding="utf-8"))["layers"]
    assert len(layers[3][4]) == 9
    assert len(layers[3][4][8]) == 9
    heads = tmp_path / "heads"
    succeed("attention", str(folder), *place, "-o", str(heads))
    one = json.loads((heads / "heads" / "L3H4.json").read_text(encoding="utf-8"))
    assert one["pattern"] == layers[3][4]
    assert {row["key"] for row in one["explanations"]} >= {7}
    assert "exists already" in refused("attention", str(folder), *place, "-o", str(heads))
    ids = graph.nodes["id"].to_pylist()
    split = succeed("heads", str(folder), "--edge", f"{ids[7]}:{ids[-1]}")
    assert "stays" in split


def test_web_json_has_explanations_at_the_node_they_carried_to_with_both_signs():
    model, graph = embedded()
    held = tracer.head_loadings(model, graph)
    found = tracer.explain_attention(model, held, layer=3, head=4, query=8, key=7, pairs=True)
    held = found.joined(held)
    results = qk_tracing_results(held.tables)
    [austin] = [n["id"] for n in graph.nodes.to_pylist() if n["kind"] == "logit"]
    assert set(results) == {austin}
    assert qk_only_nodes(results, graph.nodes) == []
    missing = qk_only_nodes(results, graph.prune(0.1).nodes)
    assert missing
    pairs = results[austin]["pair_wise_contributors"]
    assert {np.sign(weight) for *_, weight in pairs} == {-1, 1}
    assert [abs(pair[2]) for pair in pairs] == sorted((abs(p[2]) for p in pairs), reverse=True)
    for names in results[austin]["top_q_marginal_contributors"]:
        assert names[0] in graph.nodes["id"].to_pylist()
    heads = link_heads(held.tables)
    small = graph.prune()
    ids = small.nodes["id"].to_pylist()
    ends = {(ids[e["source"]], ids[e["target"]]) for e in small.edges.to_pylist()}
    assert set(heads) <= ends
    assert [3, 4] in [row[:2] for rows in heads.values() for row in rows]
    assert qk_tracing_results({}) == link_heads({}) == {}


def test_commands_refuse_in_one_line(tmp_path: Path):
    folder = tmp_path / "it.graph"
    embedded()[1].save(folder)
    at = str(folder)
    assert "head 3.9 does not exist" in refused("attention", at, "--layer", "3", "--head", "9")
    assert "give --layer and --head together" in refused("attention", at, "--layer", "3")
    assert "expected a suffix of .svg or .json" in refused("attention", at, "-o", "x.png")
    assert "is not S:T" in refused("heads", at, "--edge", "a")
    assert "no edge from 'a' to 'b'" in refused("heads", at, "--edge", "a:b")
    assert "without FOLDER" in refused("heads", at, "-o", "x.svg")
    assert "need FOLDER" in refused("heads", "--chains")


def test_heads_of_checkpoints_are_plotted(tmp_path: Path):
    model = language_model("gpt2", torch.float32, max_position_embeddings=64)
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    plot = tmp_path / "heads.svg"
    said = succeed(
        "heads", "--checkpoint", str(tmp_path / "one"), "--checkpoint", str(tmp_path / "two"),
        "-o", str(plot),
    )  # fmt: skip
    assert "induction" in said
    assert plot.read_text(encoding="utf-8").count("<polyline") == 3


def test_what_no_table_knows_is_left_out_of_the_words():
    _, graph = embedded()
    names = Names(graph.nodes, graph.metadata["tokens"])
    assert carried({}, names, [["a", "b"]]) == []
    assert names("constant.biases") == "biases"
    assert names("1_-1_7") in ("error (L1, at “Dallas”)", names("1_-1_7"))
    assert names("2_5_99") == "feature 5 (L2, at position 99)"


@pytest.mark.parametrize("centred", [False, True])
def test_gradients_through_a_norm_with_its_denominator_are_those_of_autograd(centred: bool):
    torch.manual_seed(0)
    weight = torch.randn(8, dtype=torch.float64)
    weight[:2] = 1.0
    norm = Norm(torch.nn.Identity(), weight, None, 1e-3, centred)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, 8, dtype=torch.float64)
    scale = norm.scale(x)
    live = norm.frozen(x, scale)
    wanted = [torch.autograd.grad((live * one).sum(), x, retain_graph=True)[0] for one in gradient]
    x, scale = x.detach(), scale.detach()
    pulled = norm.centre(gradient * weight) / scale
    found = _norm_answers(norm, x, scale, pulled)
    torch.testing.assert_close(found, torch.stack(wanted))
    scored = _post_norm_answers(norm, x, scale, gradient)
    torch.testing.assert_close(norm.centre(scored * weight) / scale, torch.stack(wanted))
    weight[3] = 0.0
    assert torch.equal(_post_norm_answers(norm, x, scale, gradient)[..., 3], gradient[..., 3])
