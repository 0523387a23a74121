"""`benchmarks/stages.py` and `benchmarks/against.py`: they measure by names that the engine has."""

import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Config

import tracer
from benchmarks import against
from benchmarks.checkouts import checkout, revision
from benchmarks.random_shapes import VOCABULARY, drawn_config
from benchmarks.stages import PRODUCTS, STAGES, metered
from tests.random_models import PROMPT, replacement_model
from tracer.attribution import blocks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_every_stage_of_a_trace_is_met_and_all_is_put_back(kind: str):
    model, before = replacement_model("gpt2", kind=kind), blocks.sweep
    plain = tracer.trace(model, PROMPT, max_features=20)
    with metered() as meter:
        graph = tracer.trace(model, PROMPT, max_features=20)
    assert blocks.sweep is before
    assert graph.edges.equals(plain.edges)
    assert {*STAGES, *PRODUCTS} <= {name for name, seconds in meter.seconds.items() if seconds > 0}
    assert {"attention", "join", "scores of writers"} <= {
        name for name, count in meter.operations.items() if count
    }


def test_a_folder_without_a_command_line_is_no_checkout(tmp_path: Path):
    with pytest.raises(ArgumentTypeError, match="is no checkout"):
        checkout(str(tmp_path))
    assert checkout(str(ROOT)) == ROOT
    assert revision(tmp_path) == tmp_path.name


def test_drawn_shapes_are_models_and_a_seed_draws_the_same():
    for seed in range(20):
        one, two = (drawn_config(np.random.default_rng(seed)) for _ in range(2))
        assert one.to_dict() == two.to_dict()
        assert one.hidden_size % one.num_attention_heads == 0


def test_a_checkout_against_itself_gives_the_same_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = against.Case("cross_layer", 5, 9, 4, 32, "gpt2", 1)
    settings = GPT2Config(n_positions=16, n_layer=1, n_head=2, n_embd=16, vocab_size=VOCABULARY)
    monkeypatch.setattr(against, "NAMED", [tiny])
    monkeypatch.setattr(against, "config", lambda shape, layers: settings)
    monkeypatch.setattr(against, "PROFILED", 1)
    out = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv", ["against", str(ROOT), "--runs", "1", "--random", "0", "-o", str(out)]
    )
    against.main()
    assert '"difference": 0.0' in out.read_text()
