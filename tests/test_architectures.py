"""What `benchmarks.architectures` and `benchmarks.written` say of a run, on random models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tracer
from benchmarks import architectures
from benchmarks.architectures import Laboratory, Plan, main
from benchmarks.written import apart
from replacement_models import load_transcoder
from tests.random_models import COMMON, PROMPT, VOCABULARY, replacement_model

CASES = (
    ("SAE, attention output", "Gated"),
    ("per-layer, skip", "Matryoshka"),
    ("cross-layer, window of 2", "TopK"),
)
PLAN = Plan(
    features=24, l0=3.0, prefixes=(4, 12), tokens=4096, text=2048, fresh=600, batch=64, context=12,
    prompt=6, cases=CASES,
)  # fmt: skip
LAYERS = {"cross-layer, window of 2": [1, 2, 3]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, corpus, runs and what the benchmark wrote."""
    folder = tmp_path_factory.mktemp("architectures")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**COMMON, "num_hidden_layers": 6})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    documents = rng.integers(3, VOCABULARY, (150, 30)).tolist()
    text = "".join(f"{json.dumps({'text': document})}\n" for document in documents)
    (folder / "corpus.jsonl").write_text(text, "utf-8")
    main(arguments(folder), PLAN)
    return folder


def arguments(folder: Path) -> list[str]:
    """Of the command line."""
    return [*(str(folder / name) for name in ("model", "corpus.jsonl", "runs")),
            "-o", str(folder / "out.json")]  # fmt: skip


def found_in(folder: Path) -> list[dict[str, Any]]:
    """Rows of the result."""
    rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text("utf-8"))["rows"]
    return rows


def test_every_case_has_a_row_of_its_layers(measured: Path):
    rows = found_in(measured)
    assert [(row["kind"], row["activation"]) for row in rows] == list(CASES)
    for row in rows:
        layers = LAYERS.get(row["kind"], [3])
        assert len(row["l0"]) == len(row["error"]) == len(row["dead"]) == len(layers)
        assert row["met"] == all(abs(one - 3) <= 0.3 for one in row["l0"])
        assert (row["affine"] is None) == (row["trace"] is None) == row["kind"].startswith("SAE")


def test_text_that_is_measured_on_is_not_trained_on(measured: Path):
    parts = [
        (measured / "runs" / f"{name}.jsonl").read_text("utf-8").splitlines()
        for name in ("training", "fresh")
    ]
    whole = (measured / "corpus.jsonl").read_text("utf-8").splitlines()
    assert [len(part) for part in parts] == [135, 15]
    assert sorted([*parts[0], *parts[1]]) == sorted(whole)


def test_figures_are_those_of_the_files_on_that_text(measured: Path):
    row = found_in(measured)[1]
    laboratory = Laboratory(*arguments(measured)[:2], measured / "runs", PLAN)
    config = laboratory.config(row["kind"], row["activation"])
    assert config.dictionary.prefixes == PLAN.prefixes
    held = laboratory.fresh(config)
    x, y = held.inputs[0], held.outputs[0]
    dictionary = load_transcoder(Path(config.output) / "transcoder")
    assert dictionary.present == (3,)
    _, active = dictionary.encode(3, x)
    assert row["l0"][0] == pytest.approx(float(active.count_nonzero(1).float().mean()))
    silent = (active == 0).all(0).float().mean()
    assert row["dead"][0] == pytest.approx(float(silent))
    layer = dictionary.layers[3]
    assert layer.W_skip is not None
    guess = active @ layer.decoder.rows(torch.arange(24))[:, 0] + x @ layer.W_skip + layer.b_dec
    missed = (y - guess).square().sum() / (y - y.mean(0)).square().sum()
    assert row["error_unweighted"][0] == pytest.approx(float(missed), rel=1e-4)
    assert row["error"][0] < 1.05 * row["affine"][0]  # which its skip begins with


def test_graphs_keep_the_law_and_say_what_nothing_scores(measured: Path):
    for row in found_in(measured)[1:]:
        graph = row["trace"]
        assert graph["conservation"] < 1e-5
        assert 0 < graph["carried_by_features"] < 1
        assert graph["of_nothing"]["completeness"] < graph["completeness"]


def test_what_was_measured_is_not_trained_again(measured: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    before = found_in(measured)
    monkeypatch.setattr(architectures.tracer, "train", never)
    main(arguments(measured), PLAN)
    assert found_in(measured) == before


def test_graphs_are_the_same_where_nodes_and_effects_are():
    model = replacement_model("llama", kind="cross_layer")
    graph = tracer.trace(model, list(PROMPT), skip_positions=0)
    nodes = graph.nodes.to_pylist()
    order = {kind: number for number, kind in enumerate(("feature", "error", "embedding", "logit"))}
    at = sorted(
        range(len(nodes)),
        key=lambda n: (order[nodes[n]["kind"]], nodes[n]["layer"], nodes[n]["position"], n),
    )
    theirs = {
        "features": np.array(
            [[nodes[n][name] for name in ("layer", "position", "feature")]
             for n in at if nodes[n]["kind"] == "feature"]
        ),
        "logits": np.array([nodes[n]["token"] for n in at if nodes[n]["kind"] == "logit"]),
        "adjacency": graph.effect.toarray()[np.ix_(at, at)],
    }  # fmt: skip
    same = apart(graph, theirs)
    assert (same["only_ours"], same["only_theirs"], same["difference"]) == (0, 0, 0)
    largest = np.abs(theirs["adjacency"]).max()
    theirs["adjacency"][-1, 0] += 0.01 * largest
    assert apart(graph, theirs)["difference"] == pytest.approx(0.01, rel=0.05)
    theirs["features"][0, 2] = 1000
    changed = apart(graph, theirs)
    assert (changed["only_ours"], changed["only_theirs"]) == (1, 1)
