"""What steers attention: found with a model, stored with its graph, kept by pruning."""

from typing import Any

import numpy as np
import pytest
import torch

import tracer
from graphs import AttributionGraph, steering
from graphs.validation_summary import sentences, subtitle
from tests.random_models import PROMPT, replacement_model
from tracer import TraceError
from tracer.attention.effects import ODDS, STEPS, answers
from tracer.attention.live import _moved
from tracer.validation.circuit import circuit_of
from tracer.validation.faithfulness import faithfulness
from tracer.validation.held import NOTHING
from tracer.validation.means import corpus_means
from tracer.validation.subject import subject
from tracer.validation.verdict import verdict

CORPUS = [PROMPT, (1, 3, 12, 8, 22, 4), (1, 6, 2, 11), (1, 20, 13, 5)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "cohere"])
def test_the_table_has_the_first_order_effects_and_nothing_runs_backward(family: str):
    model = replacement_model(family)
    graph = tracer.trace(model, PROMPT)
    found = tracer.keep_attention(model, graph)
    expected = tracer.attention_effects(model, graph)
    table, count = found.tables[steering.NAME], graph.nodes.num_rows
    dense = np.zeros((2, count, count))
    for row in table.to_pylist():
        assert row["source"] < row["target"]
        dense[:, row["target"], row["source"]] = row["attention"], row["norms"]
    for mine, theirs in zip(dense, (expected.attention, expected.norms), strict=True):
        assert mine == pytest.approx(theirs.toarray(), abs=1e-14)
    both = abs(expected.attention.toarray()) + abs(expected.norms.toarray())
    assert steering.matrix(table, count).toarray() == pytest.approx(both, abs=1e-14)
    assert found.metadata["settings"] == graph.metadata["settings"] | {"keep_attention": True}
    assert found.effect is graph.effect


def test_a_trace_that_keeps_attention_is_the_trace_with_its_table():
    model = replacement_model("llama")
    asked, plain = tracer.trace(model, PROMPT, keep_attention=True), tracer.trace(model, PROMPT)
    assert "keep_attention" not in plain.metadata["settings"]
    assert not plain.tables
    assert asked.tables[steering.NAME].equals(
        tracer.keep_attention(model, plain).tables[steering.NAME]
    )
    assert asked.nodes.equals(plain.nodes)
    assert asked.prune().metadata["pruned"]["keep_attention"] is True
    assert asked.prune(keep_attention=False).nodes.equals(plain.prune().nodes)


def test_of_a_pruned_graph_nothing_more_can_be_kept():
    model = replacement_model("gpt2")
    small = tracer.trace(model, PROMPT).prune()
    with pytest.raises(TraceError, match="graph is pruned, and what steered its attention"):
        tracer.keep_attention(model, small)


def test_circuits_of_a_validation_keep_what_the_graph_was_made_to_keep():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT, keep_attention=True)
    means = corpus_means(model, CORPUS)
    kept = faithfulness(subject(model, graph), means, draws=1)
    for row in kept.curves[NOTHING]:
        circuit = circuit_of(graph.prune(row["nodes"], 0.98, keep_attention=True))
        assert (row["features"], row["errors"]) == (len(circuit.features), len(circuit.errors))
    report = tracer.validate(model, graph, CORPUS, draws=1)
    assert report.summary["keep_attention"] is True
    assert report.summary["verdict"]["keep_attention"] is True
    said = subtitle(report.graph.prune().metadata)
    assert said is None or said.startswith("circuit alone with what steers attention keeps")
    plain = tracer.validate(model, tracer.trace(model, PROMPT), CORPUS, draws=1)
    assert "keep_attention" not in plain.summary


def told(keep: bool, free: float, attention: float) -> dict[str, Any]:
    part = {"empty": 0.0, "ablated": 0.0, "random_ablated": {"median": 1.0},
            "random_spread": {"median": 0.0}}  # fmt: skip
    held = {
        "nothing": part | {"circuit": free},
        "attention": part | {"circuit": attention},
        "attention and norms": part | {"circuit": attention},
    }
    summary = {
        "faithfulness": {"clean": 1.0, "held": held}, "composition": None, "specificity": None,
    }  # fmt: skip
    return summary | ({"keep_attention": True} if keep else {})


def test_the_verdict_says_that_what_steers_attention_was_kept():
    names = {"target": " Austin", "rival": " Dallas", "answer": " Austin"}
    found = verdict(told(True, 0.3, 1.0), names)
    assert found["text"].startswith("Kept alone, this circuit, what steers attention kept, gives")
    assert "to the first order what steers it is kept, so it takes more" in found["text"]
    assert found["short"] == (
        "circuit alone with what steers attention keeps 30% of the lead (100% with attention held)"
    )
    metadata = {"validation": {"verdict": found}, "pruned": {"nodes": 0.8, "edges": 0.98}}
    assert "thresholds" in (subtitle(metadata) or "")
    metadata["pruned"]["keep_attention"] = True
    assert "thresholds" not in (subtitle(metadata) or "")
    assert sentences(metadata) == found["text"]
    plain = verdict(told(False, 0.3, 1.0), names)
    assert "keep_attention" not in plain
    assert plain["text"].startswith("Kept alone, this circuit gives")


@pytest.mark.parametrize("odds", [False, True])
def test_scores_are_worth_what_attention_or_log_odds_would_change(odds: bool):
    """Autograd through the softmax: of values, and of log-odds weighted by what is carried."""
    torch.manual_seed(0)
    scores = torch.randn(2, 4, 4, dtype=torch.float64).requires_grad_()
    values = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    hidden = ~torch.ones(4, 4, dtype=torch.bool).tril()
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    for row in range(3):
        if odds:
            seen = (pattern.detach() > 0) & (pattern.detach() < 1)
            safe = torch.where(seen, pattern, 0.5)
            carried = torch.where(seen, pattern.detach() * values[row], 0.0)
            whole = (carried * (safe.log() - (1 - safe).log())).sum()
        else:
            whole = (pattern * values[row]).sum()
        [expected] = torch.autograd.grad(whole, scores, retain_graph=True)
        found = _moved(pattern.detach(), values[row : row + 1], odds)[0]
        assert torch.allclose(found, expected, atol=1e-12)


def test_qk_attribution_is_another_answer_than_the_slope():
    model = replacement_model("gpt2")
    graph = tracer.trace(model, PROMPT)
    slope, odds = (answers(model, graph, steps).attention for steps in (STEPS, ODDS))
    assert slope.shape == odds.shape
    assert abs(slope - odds).max() > 1e-3 * abs(slope).max()


def test_a_graph_made_to_keep_attention_loads_and_keeps_it(tmp_path: Any):
    model = replacement_model("llama")
    graph = tracer.trace(model, PROMPT, keep_attention=True)
    graph.save(tmp_path / "a.graph")
    back = AttributionGraph.load(tmp_path / "a.graph")
    assert back.keeps_attention
    assert back.prune().nodes.equals(graph.prune().nodes)


def test_an_explanation_joins_a_graph_that_keeps_attention():
    model = replacement_model("llama")
    graph = tracer.trace(model, PROMPT, keep_attention=True)
    found = tracer.explain_attention(model, graph, layer=1, head=0, query=4, key=2)
    joined = found.joined(graph)
    assert joined.tables[steering.NAME] is graph.tables[steering.NAME]
    assert joined.tables["attention"].num_rows == 1
    assert set(joined.prune().tables) == set(joined.tables)
