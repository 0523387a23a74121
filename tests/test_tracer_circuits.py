"""Circuits: what is held, what is subtracted, the evidence for them, and what is said of it."""

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import tracer
from graphs import AttributionGraph
from graphs.pictures import captions
from graphs.pictures.scene import Style, compose
from graphs.validation_summary import sentences, subtitle, tables
from replacement_models import ReplacementModel
from tests.random_models import LAYERS, PROMPT, replacement_model
from tracer import Intervention
from tracer.validation.circuit import Circuit, circuit_of, leads
from tracer.validation.composition import composition
from tracer.validation.faithfulness import (
    THRESHOLDS,
    _columns,
    _minimal,
    _Plan,
    above,
    faithfulness,
)
from tracer.validation.held import ATTENTION, HELD, NORMS, NOTHING
from tracer.validation.means import Means, corpus_means
from tracer.validation.response import Prediction
from tracer.validation.specificity import specificity
from tracer.validation.spread import spread
from tracer.validation.subject import Subject, subject
from tracer.validation.verdict import _scrubbing, verdict

CORPUS = [PROMPT, (1, 3, 12, 8, 22, 4), (1, 6, 2, 11), (1, 20, 13, 5)]
NAMES = {"target": " Austin", "rival": " Dallas", "answer": " Austin"}


@cache
def made(family: str = "gpt2", **options: Any) -> tuple[Subject, Means]:
    model = replacement_model(family, **options)
    graph = tracer.trace(model, PROMPT)
    return subject(model, graph), corpus_means(model, CORPUS)


@cache
def demo() -> tracer.Validation:
    model = ReplacementModel.load()
    graph = tracer.trace(model, "The capital of the state containing Dallas is")
    return tracer.validate(model, graph)


def test_the_demos_circuit_fails_because_attention_moves():
    kept = demo().summary["faithfulness"]
    shares = {held: kept["held"][held]["circuit"] for held in HELD}
    assert shares[NOTHING] < 0.5 < shares[NORMS]
    assert shares[ATTENTION] > 0.8
    assert kept["circuit"] == shares[NOTHING]
    empty = {held: kept["held"][held]["empty"] for held in HELD}
    for held in HELD:
        expected = (shares[held] - empty[held]) / (1 - empty[held])
        assert kept["held"][held]["above_empty"] == pytest.approx(expected)


def test_the_demos_verdict_says_so_in_two_sentences():
    said, held = sentences(demo().graph.metadata), demo().summary["faithfulness"]["held"]
    left, nothing = held[NOTHING]["circuit"], held[NOTHING]["empty"]
    assert re.sub("says “[^”]+”", "says “X”", said) == (
        f"Kept alone, this circuit does not give the answer: it says “X”, and {left:.0%} of the "
        f"lead of “Austin” over “Nashville” is left (with nothing kept {nothing:.0%}). Attention "
        f"moves when the rest is ablated: with attention held it keeps "
        f"{held[ATTENTION]['circuit']:.0%}, with norms held too {held[NORMS]['circuit']:.0%}, so "
        "what steers attention is missing from it."
    )
    entries = {one["kind"]: one for one in demo().summary["verdict"]["evidence"]}
    kinds = ["necessity", "sufficiency", "composition", "specificity", "scrubbing"]
    assert list(entries) == kinds
    assert [entries[kind]["measured"] for kind in kinds] == [True, True, True, True, False]
    assert entries["scrubbing"]["says"] == "not measured: needs hypotheses"
    assert entries["necessity"]["value"] < 0 < entries["necessity"]["control"]
    assert entries["composition"]["value"] < entries["composition"]["control"]
    assert entries["specificity"]["value"] < 0.1 < 0.9 < entries["specificity"]["control"]


def test_a_summary_is_about_thirty_lines():
    listed = list(tables(demo().summary))
    assert sum(len(table.rows) + 2 for table in listed) + 3 <= 32
    assert {len(row) for table in listed for row in table.rows} <= {3, 4}
    for table in listed:
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_picture_says_what_was_measured_and_of_which_circuit():
    graph = demo().graph
    alone, held = (
        demo().summary["faithfulness"]["held"][how]["circuit"] for how in (NOTHING, ATTENTION)
    )
    short = f"circuit alone keeps {alone:.0%} of the lead ({held:.0%} with attention held)"
    assert subtitle(graph.prune().metadata) == short
    assert subtitle(graph.prune(0.9).metadata) == f"{short} (of thresholds 0.8 and 0.98)"
    assert subtitle(graph.metadata) == f"{short} (of thresholds 0.8 and 0.98)"
    assert short in facts(graph.prune())
    about, _ = made()
    assert subtitle(about.graph.metadata) is None
    assert "alone" not in facts(about.graph.prune())


def facts(graph: AttributionGraph) -> str:
    return "".join(captions.captions(compose(graph._content, Style())))


def by_hand(about: Subject, means: Means, held: str) -> float:
    """GPT-2 with every MLP at its mean, written out: no hook and none of our norms or patterns."""
    model: Any = about.model.host.model
    with torch.no_grad():
        clean = model(torch.tensor([PROMPT]), output_attentions=True, output_hidden_states=True)
        x = clean.hidden_states[0][0]
        for layer, block in enumerate(model.transformer.h):
            read = clean.hidden_states[layer][0]
            h = norm(block.ln_1, x, read if held == NORMS else x)
            pattern = clean.attentions[layer][0] if held != NOTHING else attended(block, h)
            value = (h @ block.attn.c_attn.weight + block.attn.c_attn.bias)[:, -x.shape[1] :]
            heads = value.unflatten(-1, (4, -1)).transpose(0, 1)
            mixed = (pattern @ heads).transpose(0, 1).flatten(1)
            x = x + mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
            own = block.mlp(block.ln_2(x))
            bias = about.model.transcoder.layers[layer].b_dec
            mean = (means.written[layer] + means.errors[layer] + bias).expand_as(own[1:])
            x = x + torch.cat([own[:1], mean])
        final = stream(about)
        x = norm(model.transformer.ln_f, x, final if held == NORMS else x)
        return float(about.aim.lead(model.lm_head(x)[-1:]))


def norm(module: Any, x: torch.Tensor, sized: torch.Tensor) -> torch.Tensor:
    size = (sized.var(-1, correction=0, keepdim=True) + module.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / size * module.weight + module.bias


def attended(block: Any, h: torch.Tensor) -> torch.Tensor:
    width = h.shape[-1]
    q, k = (h @ block.attn.c_attn.weight + block.attn.c_attn.bias)[:, : 2 * width].split(width, -1)
    q, k = (one.unflatten(-1, (4, -1)).transpose(0, 1) for one in (q, k))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    seen = torch.ones(len(h), len(h)).tril().bool()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def stream(about: Subject) -> torch.Tensor:
    """What the final norm reads in the clean run."""
    found: list[torch.Tensor] = []
    model: Any = about.model.host.model
    handle = model.transformer.ln_f.register_forward_pre_hook(lambda _, x: found.append(x[0][0]))
    model(torch.tensor([PROMPT]))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("held", HELD)
def test_what_is_held_is_held_and_the_rest_is_recomputed(held: str):
    about, means = made()
    [kept] = leads(about, means, [Circuit(frozenset(), frozenset())], held)
    assert kept == pytest.approx(by_hand(about, means, held), abs=1e-9)


@pytest.mark.parametrize("held", [ATTENTION, NORMS])
def test_responses_are_measured_with_what_they_say_is_held(held: str):
    about, _ = made()
    found = tracer.validate(about.model, about.graph)
    place = {node["id"]: node for node in about.graph.nodes.to_pylist()}
    rows = [row for row in found.responses.to_pylist() if row["frozen"] == held]
    for row in rows[::23]:
        node = {name: place[row["id"]][name] for name in ("layer", "position", "feature")}
        change = tracer.intervene(
            about.model,
            PROMPT,
            [Intervention(**node, value=0.0)],
            "free",
            freeze_attention=True,
            freeze_norms=held == NORMS,
        )
        layer = node["layer"] + row["distance"]
        moved = change.activations[layer] - change.base.activations[layer]
        assert row["measured"] == pytest.approx(float(moved.norm()), abs=1e-9)


def test_a_share_above_nothing_by_hand():
    assert above(0.75, 0.5) == pytest.approx(0.5)
    assert above(-0.5, -0.5) == 0
    assert above(1.0, -3.0) == 1
    assert above(0.45, 0.9 - 0.01) == pytest.approx(-4)
    assert above(1.0, 0.91) is None
    assert above(1.0, 1.2) is None


def test_a_spread_by_hand():
    assert spread([4.0, 0.0, 1.0, 0.5, 0.25]) == {
        "median": 0.5, "lower": 0.25, "upper": 1.0, "below_half": 0.4, "count": 5,
    }  # fmt: skip
    assert spread([])["count"] == 0
    assert spread([])["median"] is None


def test_random_circuits_differ_and_their_spread_is_told():
    about, means = made()
    kept = faithfulness(about, means, draws=5, seed=3)
    random, whole = np.random.default_rng(3), circuit_of(about.graph)
    clean = float(about.aim.lead(about.recording.logits_before_cap[-1:]))
    for row, nodes in zip(kept.curves[NOTHING], THRESHOLDS, strict=True):
        circuit = circuit_of(about.graph.prune(nodes, 0.98))
        drawn = [circuit.drawn(whole, random) for _ in range(5)]
        shares = leads(about, means, drawn) / clean
        assert row["random"] == pytest.approx(shares.mean())
        assert row["random_spread"] == pytest.approx(spread(shares))
        assert nodes == 1.0 or shares.min() < shares.max()


def test_nodes_matter_whichever_way_they_move_the_lead():
    about, means = made()
    circuit = circuit_of(about.graph.prune(0.8, 0.98))
    clean = float(about.aim.lead(about.recording.logits_before_cap[-1:]))
    [whole] = leads(about, means, [circuit]) / clean
    smaller = [Circuit(circuit.features - {one}, circuit.errors) for one in circuit.features]
    smaller += [Circuit(circuit.features, circuit.errors - {one}) for one in circuit.errors]
    moved = leads(about, means, smaller) / clean - whole
    assert (moved > 0.01).any()
    assert (moved < -0.01).any()
    expected = (np.abs(moved) >= 0.01).mean()
    assert faithfulness(about, means, 1).summary()["minimal"] == pytest.approx(expected)


def test_effects_of_a_prediction_are_in_the_models_numbers():
    """A graph is in float32 where the model is in bfloat16: products of both would be refused."""
    graph = SimpleNamespace(effect=sparse.csr_array(np.float32([[0, 0, 0], [3, 0, 0], [0, 2, 0]])))
    model = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cpu"))
    about: Any = SimpleNamespace(graph=graph, rows=np.array([0, 1]), model=model)
    expected = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.bfloat16)
    assert torch.equal(Prediction(about).effects, expected)


def test_a_node_matters_from_a_hundredth_of_the_lead_on():
    smaller = [Circuit(frozenset(), frozenset())] * 4
    plan = _Plan([], [[] for _ in THRESHOLDS], [], smaller)
    kept = np.array([9.0, 0.0, 0.01, -0.01, 0.0099, 0.0])  # nothing, the default, without a node
    assert _minimal(plan, kept, 2) == 0.5
    assert _minimal(_Plan([], plan.rows, [], []), kept[:2], 2) is None


def test_what_is_the_same_whatever_is_held_has_one_column():
    parts = {"lower": 0.1, "median": 0.2, "upper": 0.3, "below_half": 0.4}
    row = {"nodes": 0.8, "features": 7, "circuit": 0.9, "random": 0.2, "random_spread": parts}
    shares = {"circuit": 0.9, "random": 0.2}
    shares |= {f"random_{name}": value for name, value in parts.items()}
    assert dict(_columns(row, "")) == {"nodes": 0.8, "features": 7, **shares}
    held = {f"{name}_held": value for name, value in shares.items()}
    assert dict(_columns(row, "_held")) == held


def test_a_circuit_taken_away_leaves_all_else_as_it_was():
    about, means = made()
    circuit = circuit_of(about.graph.prune(0.8, 0.98))
    pending: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Any:
        def write(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            put = held_at_mean(about, means, circuit, layer, inputs[0][0], pending)
            return torch.cat([output[:, :1], put[None, 1:]], dim=1)

        return write

    blocks = about.model.host.blocks
    handles = [block.mlp.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    with torch.no_grad():
        expected = float(about.aim.lead(about.model.host.run(PROMPT)[-1:]))
    for handle in handles:
        handle.remove()
    [kept] = leads(about, means, [circuit.removed(LAYERS, len(PROMPT))])
    assert kept == pytest.approx(expected, abs=1e-9)


def held_at_mean(
    about: Subject,
    means: Means,
    circuit: Circuit,
    layer: int,
    x: torch.Tensor,
    pending: dict[int, torch.Tensor],
) -> torch.Tensor:
    """One layer's output, written out, with a circuit's features and errors at their mean."""
    dictionary, error = about.model.transcoder, about.errors[layer].clone()
    weights = dictionary.layers[layer]
    active = (x @ weights.W_enc.T + weights.b_enc).relu()
    for at, position, feature in circuit.features:
        if at == layer:
            active[position, feature] = means.activations[layer][feature]
    for at, position in circuit.errors:
        if at == layer:
            error[position] = means.errors[layer]
    rows = dictionary.decoder_rows(layer, torch.arange(len(weights.b_enc)))
    for slot, target in enumerate(dictionary.targets(layer)):
        pending[target] = pending.get(target, 0) + active @ rows[:, slot]
    return pending[layer] + weights.b_dec + error


@pytest.mark.parametrize("options", [{}, {"family": "llama", "seed": 5}])
def test_cut_edges_are_those_of_the_circuit_between_features(options: dict[str, Any]):
    about, _ = made(**options)
    found = composition(Prediction(about))
    assert found is not None
    small = about.graph.prune(0.8, 0.98)
    nodes, weight = small.nodes.to_pylist(), dict[Any, float]()
    for edge in small.edges.to_pylist():
        source, target = nodes[edge["source"]], nodes[edge["target"]]
        if source["kind"] == target["kind"] == "feature":
            weight[source["id"], target["id"]] = edge["weight"]
    assert found["edges"] == len(weight)
    cut = {target: 0.0 for _, target in weight}
    for (_, target), one in weight.items():
        cut[target] += one
    known = {node["id"]: node for node in about.graph.nodes.to_pylist()}
    changes = [
        Intervention(
            layer=node["layer"],
            position=node["position"],
            feature=node["feature"],
            value=max(0.0, node["pre_activation"] - cut[name]),
        )
        for name, node in known.items()
        if name in cut
    ]
    assert not options or any(change.value == 0 for change in changes), "none is cut to nothing"
    clean = float(about.aim.lead(about.recording.logits_before_cap[-1:]))
    for held in HELD:
        frozen = {"freeze_attention": held != NOTHING, "freeze_norms": held == NORMS}
        change = tracer.intervene(about.model, PROMPT, changes, "free", **frozen)
        left = float(about.aim.lead(change.logits_before_cap[-1:])) / clean
        assert found["cut"][held] == pytest.approx(left, abs=1e-9)


def test_other_edges_are_all_into_the_same_features_that_the_circuit_leaves_out():
    about, _ = made()
    found, small = composition(Prediction(about)), about.graph.prune(0.8, 0.98)
    assert found is not None
    kinds, names = small.nodes["kind"].to_pylist(), small.nodes["id"].to_pylist()
    inside = {
        (names[edge["source"]], names[edge["target"]])
        for edge in small.edges.to_pylist()
        if kinds[edge["source"]] == kinds[edge["target"]] == "feature"
    }
    targets = {target for _, target in inside}
    kinds, names = about.graph.nodes["kind"].to_pylist(), about.graph.nodes["id"].to_pylist()
    every = {
        (names[edge["source"]], names[edge["target"]])
        for edge in about.graph.edges.to_pylist()
        if kinds[edge["source"]] == "feature" and names[edge["target"]] in targets
    }
    assert found["other_edges"] == len(every - inside)


def test_a_circuit_is_ablated_in_other_prompts_wherever_it_fires():
    about, means = made()
    circuit = circuit_of(about.graph.prune(0.8, 0.98))
    found = specificity(about, means, circuit, CORPUS)
    assert found is not None
    changes = [
        Intervention(
            layer=layer,
            position=slice(1, None),
            feature=feature,
            value=float(means.activations[layer][feature]),
        )
        for layer, feature in {(layer, feature) for layer, _, feature in circuit.features}
    ]
    changed, left = [], []
    for prompt in CORPUS[1:]:
        run = tracer.intervene(about.model, prompt, changes, "free")
        before, after = run.base.logits_before_cap[1:], run.logits_before_cap[1:]
        (top, second), rows = before.topk(2).indices.T, range(len(before))
        changed += (after.argmax(-1) != top).tolist()
        lead = [x[rows, top] - x[rows, second] for x in (before, after)]
        left += (lead[1] / lead[0]).tolist()
    assert found["changed"] == pytest.approx(np.mean(changed))
    assert found["lead"] == pytest.approx(spread(left))
    assert (found["prompts"], found["positions"]) == (3, len(changed))
    run = tracer.intervene(about.model, PROMPT, changes, "free")
    own = [about.aim.lead(x.logits_before_cap[-1:]) for x in (run, run.base)]
    assert found["own"] == pytest.approx(float(own[0] / own[1]))


def test_without_other_prompts_or_features_nothing_is_said_of_specificity():
    about, means = made()
    circuit = circuit_of(about.graph.prune())
    assert specificity(about, means, circuit, [PROMPT, (*PROMPT, 5), (1,)]) is None
    assert specificity(about, means, Circuit(frozenset(), circuit.errors), CORPUS) is None
    found = tracer.validate(about.model, about.graph, means, draws=1)
    assert found.summary["specificity"] is None
    again = tracer.validate(about.model, about.graph, means, others=CORPUS, draws=1)
    assert again.summary["specificity"] == specificity(about, means, circuit, CORPUS)


def summary_of(**changes: Any) -> dict[str, Any]:
    part = {
        "circuit": 0.9, "empty": 0.0, "ablated": 0.1,
        "random_spread": spread([0.1]), "random_ablated": spread([0.9]),
    }  # fmt: skip
    held = {name: part | changes.get(name, {}) for name in HELD}
    return {
        "features": 40,
        "spearman": {"influence": 0.8125},
        "faithfulness": {"clean": changes.get("clean", 5.0), "held": held},
        "composition": None,
        "specificity": None,
    }


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({}, "gives the answer: 90% of the lead of “Austin” over “Dallas” is left", "Without it"),
        ({NOTHING: {"circuit": 0.5}}, "gives the answer, but weakly: 50%", "Attention moves"),
        (
            {NOTHING: {"circuit": 0.95, "empty": 0.93}},
            "gives the answer, but so does nothing at all: 95% of the lead",
            "Attention moves",
        ),
        (
            {name: {"circuit": 0.2} for name in (NOTHING, ATTENTION)},
            "but weakly: 20%",
            "Attention and norms move when the rest is ablated",
        ),
        (
            {name: {"circuit": 0.2} for name in HELD},
            "but weakly: 20%",
            "Holding attention does not mend it: with attention held it keeps 20%",
        ),
        ({"clean": -1.0}, "does not put “Austin” before “Dallas”", "correlation of 0.81"),
    ],
)
def test_every_outcome_has_its_two_sentences(changes: Any, first: str, second: str):
    found = verdict(summary_of(**changes), NAMES)
    one, other = found["text"].split(". ", 1)
    assert first in one
    assert second in other
    assert (found["short"] is None) == ("clean" in changes)


def test_another_answer_is_named_and_nothing_measured_is_said():
    other = verdict(summary_of(), NAMES | {"answer": " Houston"})["text"]
    assert "does not give the answer: it says “Houston”, and 90% of the lead" in other
    bare = summary_of() | {"faithfulness": None}
    found = verdict(bare, NAMES)
    assert "was not measured: that needs a corpus" in found["text"]
    assert found["short"] is None
    assert [one["measured"] for one in found["evidence"]] == [False] * 5
    assert all(one["says"].startswith("not measured: ") for one in found["evidence"])
    few = bare | {"spearman": {"influence": None}}
    assert "too few features to compare" in verdict(few, NAMES)["text"]


def test_scrubbing_counts_by_its_worst_hypothesis():
    one, two = ({"name": name, "survives": survives, "control": 0.1}
                for name, survives in (("texas", 0.9), ("capital", 0.4)))  # fmt: skip
    alone = _scrubbing([one])
    assert (alone["measured"], alone["value"], alone["control"]) == (True, 0.9, 0.1)
    assert alone["says"] == "of the gap under 'texas'; control: the prompt mislabelled"
    worst = _scrubbing([one, two, {"name": "none", "survives": None, "control": None}])
    assert worst["value"] == 0.4
    assert "under 'capital', the worst of 2 hypotheses; control" in worst["says"]
    assert _scrubbing([])["says"] == "not measured: needs hypotheses"


def test_a_summary_of_an_older_version_can_be_read():
    kept = {
        "features": 3, "errors": 1, "clean": 5.0, "circuit": 0.5, "silent_left": 0.6,
        "without_errors": 0.4, "random": 0.1, "rest": 0.0, "empty": 0.0, "minimal": None,
    }  # fmt: skip
    ranks = {"influence": 0.5, "top_half": 0.4, "feature_to_feature": None, "feature_targets": 0}
    steps = {"1": {"cosine": 0.7, "cosine_median": 0.8, "error_median": 0.3, "count": 4}}
    old = {
        "features": 3,
        "spearman": ranks | {"activation": 0.1, "direct": 0.2},
        "responses": {"nothing": steps},
        "faithfulness": kept,
        "scrubbing": [{"name": "h", "survives": 0.5}],
    }
    cells = [cell for table in tables(old) for row in table.rows for cell in row]
    assert {"circuit keeps", "0.500", "0.700", "h"} <= set(cells)
    assert sentences({"validation": old}) is None
    assert subtitle({"validation": old}) is None
    assert subtitle({}) is None
