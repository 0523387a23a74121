"""Which features part two sets of texts: against a plain count, and what chance finds."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import tracer
from tests.random_models import VOCABULARY
from tests.test_cli import SMALL, refused, succeed
from tests.test_tracer_features_build import MODELS, SPECIAL
from tracer import ReplacementModel, TraceError


def drawn(count: int, seed: int, token: int | None = None) -> list[list[int]]:
    """Texts of ordinary tokens; of one that is given, every other token."""
    source = np.random.default_rng(seed)
    texts = []
    for size in source.integers(4, 12, count):
        ids = source.integers(3, VOCABULARY, size).tolist()
        if token is not None:
            ids[1::2] = [token] * len(ids[1::2])
        texts.append(ids)
    return texts


def plain(model: ReplacementModel, ids: list[int], layer: int, feature: int, how: str) -> float:
    x = model.record(ids).inputs[layer]
    values = model.transcoder.encode(layer, x)[1][:, feature].numpy()
    counts = np.array([at > 0 and one not in SPECIAL for at, one in enumerate(ids)])
    kept = values * counts
    return float(kept.max() if how == "max" else kept.sum() / max(1, counts.sum()))


@pytest.mark.parametrize(("name", "how"), [("topk", "max"), ("neurons", "mean")])
def test_figures_are_those_of_a_plain_count(name: str, how: str):
    model = MODELS[name]()
    ours, theirs = drawn(7, 0), drawn(9, 1)
    found = tracer.separating(model, ours, theirs, reading=how, limit=10_000, batch=4)
    assert found == sorted(found, key=lambda o: (o.p, -abs(o.effect), o.layer, o.feature))
    for one in found[::5]:
        first, second = (
            np.array([plain(model, ids, one.layer, one.feature, how) for ids in texts])
            for texts in (ours, theirs)
        )
        assert one.mean == pytest.approx(first.mean(), rel=1e-5, abs=1e-7)
        pairs = [(a > b) + (a == b) / 2 for a, b in product(first, second)]
        assert one.auroc == pytest.approx(np.mean(pairs), abs=0.02)  # ties are float32's
        pooled = np.sqrt((6 * first.var(ddof=1) + 8 * second.var(ddof=1)) / 14)
        assert one.effect == pytest.approx((first.mean() - second.mean()) / pooled, rel=1e-4)
    q = stats.false_discovery_control([one.p for one in found])
    assert [one.q for one in found] == pytest.approx(q)


def test_a_token_that_only_one_set_holds_is_found_and_chance_is_not():
    model = MODELS["topk"]()
    found = tracer.separating(model, drawn(40, 2, token=17), drawn(40, 3), limit=5)
    assert found[0].q < 1e-3
    assert abs(found[0].auroc - 0.5) > 0.25
    nothing = tracer.separating(model, drawn(40, 4), drawn(40, 5), limit=10_000)
    assert min(one.q for one in nothing) > 0.01
    assert min(one.p for one in nothing) < 0.05  # which the correction is for


def test_the_other_way_round_the_signs_turn():
    model = MODELS["topk"]()
    ours, theirs = drawn(6, 0), drawn(8, 1)
    there = {(o.layer, o.feature): o for o in tracer.separating(model, ours, theirs, limit=10_000)}
    back = tracer.separating(model, theirs, ours, limit=10_000)
    assert len(back) == len(there)
    for one in back:
        other = there[one.layer, one.feature]
        assert one.effect == pytest.approx(-other.effect)
        assert one.auroc == pytest.approx(1 - other.auroc)
        assert one.p == pytest.approx(other.p)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(TraceError, match="sets of 1 and 2 texts"):
        tracer.separating(MODELS["topk"](), drawn(1, 0), drawn(2, 1))
    with pytest.raises(TraceError, match="expected one of max, mean"):
        tracer.separating(MODELS["topk"](), drawn(2, 0), drawn(2, 1), reading="sum")


def test_files_of_texts_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.jsonl", 0), ("b.jsonl", 1)):
        lines = [f'{{"ids": {[one % 37 for one in ids]}}}' for ids in drawn(6, seed)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    flags = ("--files", "--field", "ids", "--limit", "3", *SMALL)
    said = succeed("features", "differ", "a.jsonl", "b.jsonl", *flags)
    assert said.startswith("feature\teffect\tAUROC\tp\tq\tfirst\tsecond\tlabel\n")
    assert said.count("\n") == 5
    assert "no such corpus" in refused("features", "differ", "a.jsonl", "none", *flags)
