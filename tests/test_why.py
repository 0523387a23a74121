"""Why one token and not another: the difference of two logits, with paths for and against."""

import inspect
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import tracer
from graphs import AttributionGraph, GraphError
from graphs.paths import strongest, strongest_of_sign
from tests.graph_samples import dallas
from tests.test_cli import defaults, refused, succeed
from tracer import ReplacementModel, TraceError, Why, why

PROMPT = "The opposite of hot is"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder and must reach no network."""

    def no_network(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", no_network)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    """The embedded default."""
    return ReplacementModel.load()


@pytest.fixture(scope="module")
def hot(model: ReplacementModel) -> Why:
    """Why the opposite of hot is cold and not hot."""
    return why(model, PROMPT, " hot")


def every_path(signed: np.ndarray, node: int, end: int) -> Iterator[tuple[list[int], float]]:
    """Every path between two nodes and the product of its shares."""
    if node == end:
        yield [node], 1.0
    for target in np.flatnonzero(signed[:, node]).tolist():
        for path, size in every_path(signed, target, end):
            yield [node, *path], size * signed[target, node]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_strongest_paths_of_a_sign_are_those_of_all_paths(seed: int):
    rng = np.random.default_rng(seed)
    signed = np.tril(rng.uniform(-1, 1, (6, 6)) * (rng.random((6, 6)) < 0.7), -1)
    weight = np.array([0, 0, 0, 0, 0, 0.5])
    signed[:, 5] = 0
    root = np.array([True, True, False, False, False, False])
    signed[:2] = 0
    paths = [one for start in (0, 1) for one in every_path(signed, start, 5)]
    for sign in (1, -1):
        expected = sorted((abs(size) / 2 for _, size in paths if sign * size > 0), reverse=True)
        found = strongest_of_sign(sparse.csr_array(signed), weight, root, 4, sign)
        assert [path.strength for path in found] == pytest.approx(expected[:4])
    both = [path.strength for sign in (1, -1) for path in
            strongest_of_sign(sparse.csr_array(signed), weight, root, 4, sign)]  # fmt: skip
    whole = strongest(sparse.csr_array(np.abs(signed)), weight, root, 4)
    assert sorted(both, reverse=True)[:4] == pytest.approx([path.strength for path in whole])


def test_both_signs_together_are_all_that_flows_from_the_roots():
    graph = dallas()
    excite, suppress = graph.by_sign()
    scores = graph.scores
    assert excite + suppress == pytest.approx(1 - scores.leak, abs=1e-9)
    assert min(excite, suppress) > 0
    with pytest.raises(GraphError, match="sign is 2"):
        graph.paths(3, sign=2)


def test_what_speaks_for_and_against_adds_up_to_the_difference_of_the_logits(
    model: ReplacementModel, hot: Why
):
    logits = model.record(model.tokenize(PROMPT)).logits_before_cap[-1]
    cold, other = (
        model.tokenizer(text, add_special_tokens=False).input_ids[0] for text in (" cold", " hot")
    )
    assert (hot.said, hot.instead) == (" cold", " hot")
    assert hot.difference == pytest.approx(float(logits[cold] - logits[other]), abs=1e-5)
    assert sum(hot.sums().values()) == pytest.approx(hot.difference, abs=1e-4)
    assert hot.sums()["suppressing"] < 0 < hot.sums()["exciting"]


def test_every_path_has_the_sign_it_is_listed_under(hot: Why):
    for sign in (1, -1):
        paths = hot.graph.paths(20, sign)
        assert len(paths) == 20
        for path in paths:
            effects = [hot.graph.effect[end, start] for start, end in pairwise(path.nodes)]
            assert np.sign(np.prod(np.sign(effects))) == sign
    lines = hot.sentences(2)
    at = lines.index("For “cold” over “hot”:")
    assert lines[at + 3] == "Against it, for “hot”:"
    assert lines[at + 1].startswith("  “hot” → ")
    assert " “cold” over “hot”   " in lines[at + 1]
    for row in hot.strongest(-1, 5):
        assert row["effect"] < 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"instead": " cold"}, "the model does say ' cold' here"),
        ({"instead": "nonsense"}, "is 7 tokens, expected one"),
        ({"instead": " hot", "targets": [" cold"]}, "why has its own target"),
        ({"instead": " hot", "position": 99}, r"position 99 is not in the prompt's 0\.\.5"),
    ],
)
def test_what_cannot_be_asked_is_refused(model: ReplacementModel, given: Any, said: str):
    with pytest.raises(TraceError, match=said):
        why(model, PROMPT, **given)


def test_the_other_way_round_every_sign_turns(model: ReplacementModel, hot: Why):
    back = why(model, PROMPT, " cold", said=" hot")
    assert back.difference == pytest.approx(-hot.difference, abs=1e-5)
    assert back.graph.by_sign() == pytest.approx(hot.graph.by_sign()[::-1], abs=1e-5)
    assert "lower" in back.sentences(1)[0]


def test_the_command_says_what_the_call_says_and_saves_the_graph(hot: Why):
    text = succeed("why", PROMPT, "--not", " hot", "--top", "3", "-o", "why.graph")
    for line in hot.sentences(3):
        assert line in text
    assert AttributionGraph.load("why.graph").nodes.num_rows == hot.graph.nodes.num_rows
    assert "does say" in refused("why", PROMPT, "--not", " cold")
    shown = defaults("why")
    for name in ("position", "max_features"):
        assert shown[name] == inspect.signature(tracer.trace).parameters[name].default
