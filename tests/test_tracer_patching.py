"""Patching: exact, to first order, along edges; ablations; one table and one picture."""

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import tracer
from graphs import NodeKind
from graphs.pictures import charts
from replacement_models import ReplacementModel
from tests.random_hybrids import hybrid
from tests.random_models import FAMILIES as SOFTMAX
from tests.random_models import LAYERS, PROMPT
from tests.random_models import replacement_model as softmax
from tracer import Intervention, TraceError
from tracer.patching import (
    Kind,
    PatchSite,
    ablate,
    batches,
    divergence,
    heat_map,
    logit_difference,
    patch,
    path_patch,
    probability,
    sites_of,
)
from tracer.patching.exact import patched
from tracer.patching.first_order import estimated
from tracer.patching.patch_sites import Values, _keep_mlp, values_of

OTHER = (1, 3, 12, 8, 22, 4)
HYBRIDS = ["jamba", "nemotron_h", "qwen3_next"]
FAMILIES = ["gpt2", "gpt_neox", "llama", "gemma2", "gpt_oss", *HYBRIDS]
ASIDE = ["zamba", "zamba2"]
"""Their stream is not all that later layers read."""


def replacement_model(family: str, **options: Any) -> ReplacementModel:
    return softmax(family, **options) if family in SOFTMAX else hybrid(family, **options)


def everything(site: Kind) -> list[PatchSite]:
    return [PatchSite(site, layer) for layer in range(LAYERS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_stream_from_the_clean_run_is_the_clean_run(family: str):
    model = replacement_model(family)
    table = patch(
        model, PROMPT, OTHER, logit_difference(model, 3, 4), sites=everything(Kind.RESIDUAL)
    )
    np.testing.assert_allclose(table["recovered"].to_numpy(), 1, atol=2e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *ASIDE])
def test_all_heads_together_are_the_attention_output(family: str):
    model = replacement_model(family)
    clean, metric = values_of(model, PROMPT), logit_difference(model, 3, 4)
    heads = [
        (site, clean.at(site))
        for site in sites_of(model, Kind.HEAD, [clean])
        if site.layer == 1 and site.position == 4
    ]
    whole = PatchSite(Kind.ATTENTION, 1, 4)
    apart, once = patched(model, OTHER, [heads, [(whole, clean.at(whole))]], metric)
    assert apart == pytest.approx(once, abs=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("kind", [*Kind])
def test_rows_of_a_pass_are_what_memory_holds_and_change_no_result(
    family: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
):
    model, passes = replacement_model(family), []
    metric = logit_difference(model, 3, 4)
    whole = patch(model, PROMPT, OTHER, metric, sites=kind)
    rows = min(whole.num_rows, 7)
    some = [
        PatchSite(kind, row["layer"], row["position"], row["index"])
        for row in whole.slice(0, rows).to_pylist()
    ]
    handle = model.host.embedding.register_forward_hook(
        lambda module, inputs, output: passes.append(len(inputs[0]))
    )
    need = batches.row_bytes(model, len(OTHER)) / batches.SHARE
    for free, expected in ((None, [7]), (3.5 * need, [3, 3, 1]), (0.1 * need, [1] * 7)):
        monkeypatch.setattr(batches, "free_on", lambda device, free=free: free and int(free))
        passes.clear()
        after = patch(model, PROMPT, OTHER, metric, sites=some)["after"]
        assert passes[2:] == expected  # after the clean and the corrupted prompt
        np.testing.assert_allclose(after, whole["after"].to_numpy()[:rows], atol=1e-6)
    handle.remove()


def test_scans_beside_softmax_are_patched_as_far_as_they_are_one_module():
    model = replacement_model("falcon_h1")
    metric = logit_difference(model, 3, 4)
    table = patch(model, PROMPT, OTHER, metric, sites=everything(Kind.RESIDUAL))
    np.testing.assert_allclose(table["recovered"].to_numpy(), 1, atol=2e-5)
    for kind in (Kind.ATTENTION, Kind.HEAD):
        with pytest.raises(TraceError, match=f"layer 0 .* side by side: sites of kind {kind}"):
            patch(model, PROMPT, OTHER, metric, sites=kind)


def test_a_row_is_reckoned_with_what_it_takes():
    model, longer = replacement_model("gpt2"), 2 * len(OTHER)
    vocabulary, width = model.host.vocabulary, len(model.transcoder.layers[0].b_enc)
    least = len(OTHER) * model.dtype.itemsize * (vocabulary + width + model.host.d_model)
    assert batches.row_bytes(model, len(OTHER)) > least
    assert batches.row_bytes(model, longer) > 2 * batches.row_bytes(model, len(OTHER))


def sized(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """What memory is reckoned from: 2 layers of 5 and 7 features, of 2 and 3 heads."""
    return SimpleNamespace(
        device=torch.device(device), dtype=dtype,
        host=SimpleNamespace(vocabulary=10, d_model=4,
                             blocks=[SimpleNamespace(output=range(heads)) for heads in (2, 3)]),
        transcoder=SimpleNamespace(layers=[SimpleNamespace(b_enc=range(n)) for n in (5, 7)],
                                   targets=lambda layer: range(layer, 2)),
    )  # fmt: skip


def test_the_bytes_of_a_row_by_hand():
    """6 positions of logits and features twice, 16 + 2 vectors; three patterns of 3 heads."""
    numbers = 6 * (2 * 10 + 2 * 7 + (16 + 2) * 4) + 3 * 3 * 6**2
    assert batches.row_bytes(sized("cpu"), 6) == 4 * numbers
    assert batches.row_bytes(sized("cpu", torch.float64), 6) == 8 * numbers


@pytest.mark.parametrize(
    ("device", "free", "rows"),
    [("cpu", None, 64), ("cpu", 1e12, 64), ("cuda", None, 64), ("cuda", 1e12, 1024),
     ("cpu", 20.5, 10), ("cuda", 20.5, 10), ("cpu", 0.1, 1), ("cuda", 0.0, 1)],
)  # fmt: skip
def test_half_of_the_free_memory_is_taken_up_to_what_keeps_a_device_busy(
    device: str, free: float | None, rows: int, monkeypatch: pytest.MonkeyPatch
):
    """`free` in rows."""
    model = sized(device)
    held = None if free is None else int(free * batches.row_bytes(model, 6))
    monkeypatch.setattr(batches, "free_on", lambda device: held)
    assert batches.rows_that_fit(model, 6) == rows


def test_a_patched_feature_is_a_free_intervention():
    model = replacement_model("gpt2")
    metric = logit_difference(model, 3, 4)
    table = patch(model, PROMPT, OTHER, metric, sites="feature")
    clean = values_of(model, PROMPT)
    for row in table.slice(0, 5).to_pylist():
        place = {"layer": row["layer"], "position": row["position"], "feature": row["index"]}
        value = float(clean.feature[row["layer"]][row["position"], row["index"]])
        change = tracer.intervene(model, OTHER, [Intervention(**place, value=value)], "free")
        assert row["after"] == pytest.approx(float(metric(change.logits[-1:])), abs=1e-9)


@pytest.mark.parametrize("family", [*FAMILIES, *ASIDE])
@pytest.mark.parametrize("kind", Kind)
def test_attribution_patching_is_the_slope_of_exact_patching(family: str, kind: Kind):
    model = replacement_model(family)
    exact = family == "gpt2"
    step, metric = 1e-4 if exact else 1e-2, logit_difference(model, 3, 4)
    clean, base = values_of(model, PROMPT), values_of(model, OTHER)
    sites = sites_of(model, kind, [clean, base])[::7]
    up, down = (
        [[(s, base.at(s) + sign * step * (clean.at(s) - base.at(s)))] for s in sites]
        for sign in (1, -1)
    )
    slope = (patched(model, OTHER, up, metric) - patched(model, OTHER, down, metric)) / (2 * step)
    far = [[(site, clean.at(site))] for site in sites]
    found = estimated(model, OTHER, base, far, metric) - float(metric(base.logits[None]))
    limit = 1e-9 + (1e-5 if exact else 1e-2) * np.abs(found).max()
    np.testing.assert_allclose(found, slope, rtol=0, atol=limit)


def test_attribution_patching_takes_one_forward_and_one_backward_pass():
    model = replacement_model("gpt2")
    passes = []
    handles = [
        model.host.model.register_forward_hook(lambda *_: passes.append("forward")),
        model.host.embedding.register_full_backward_hook(lambda *_: passes.append("backward")),
    ]
    try:
        table = patch(
            model, PROMPT, OTHER, probability(model, 3), sites="head", method="attribution"
        )
    finally:
        for handle in handles:
            handle.remove()
    assert passes.count("forward") == 3  # two to know the values, one to differentiate
    assert table.num_rows == LAYERS * 4 * len(PROMPT)


@pytest.mark.parametrize("kind", Kind)
def test_dictionaries_are_encoded_only_where_features_are_patched(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
):
    model, metric = replacement_model("gpt2"), logit_difference(replacement_model("gpt2"), 3, 4)
    clean, base = values_of(model, PROMPT), values_of(model, OTHER)
    sites = [site for site in sites_of(model, kind, [clean]) if site.layer == 1][:2]
    rows = [[(site, clean.at(site))] for site in sites]
    encode, layers = type(model.transcoder).encode, list[int]()
    monkeypatch.setattr(
        type(model.transcoder),
        "encode",
        lambda self, layer, x: layers.append(layer) or encode(self, layer, x),
    )
    estimated(model, OTHER, base, rows, metric)
    assert layers == []
    patched(model, OTHER, rows, metric)
    assert layers == ([1] if kind is Kind.FEATURE else [])


def test_a_head_at_zero_adds_nothing():
    model = replacement_model("gpt2")
    metric = logit_difference(model, 3, 4)
    table = ablate(model, PROMPT, metric, sites=[PatchSite(Kind.HEAD, 1, None, 2)])
    host = model.host.model
    weight = host.transformer.h[1].attn.c_proj.weight
    before = weight.data.clone()
    weight.data[8:12] = 0
    try:
        with torch.no_grad():
            expected = float(metric(model.host.run(PROMPT)[-1:]))
    finally:
        weight.data = before
    assert table["after"][0].as_py() == pytest.approx(expected, abs=1e-9)


def test_mean_and_resample_ablation_put_in_what_they_say():
    model = replacement_model("gpt2")
    metric = logit_difference(model, 3, 4)
    site = PatchSite(Kind.MLP, 0, 5)
    same = ablate(model, PROMPT, metric, sites=[site], using="resample", prompts=[PROMPT])
    assert same["effect"][0].as_py() == pytest.approx(0, abs=1e-9)
    other = values_of(model, OTHER)
    [expected] = patched(model, PROMPT, [[(site, other.mlp[0][1:].mean(0))]], metric)
    mean = ablate(model, PROMPT, metric, sites=[site], using="mean", prompts=[OTHER])
    assert mean["after"][0].as_py() == pytest.approx(expected)
    drawn = ablate(
        model, PROMPT, metric, sites="mlp", using="resample", prompts=[PROMPT, OTHER], seed=1
    )
    again = ablate(
        model, PROMPT, metric, sites="mlp", using="resample", prompts=[PROMPT, OTHER], seed=1
    )
    assert drawn.equals(again)
    others = [
        ablate(
            model, PROMPT, metric, sites="mlp", using="resample", prompts=[PROMPT, OTHER], seed=n
        )
        for n in range(2, 5)
    ]
    assert not all(drawn.equals(other) for other in others)


def test_a_path_to_a_logit_carries_the_weight_of_its_edge():
    model = replacement_model("gpt2", kind="cross_layer")
    graph = tracer.trace(model, PROMPT)
    nodes, effect = graph.nodes.to_pylist(), graph.effect.toarray()
    features = [n for n, node in enumerate(nodes) if node["kind"] == NodeKind.FEATURE]
    target = len(nodes) - 1
    token = nodes[target]["token"]

    def demeaned(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, token] - logits.mean(-1)

    source = max(features, key=lambda row: abs(effect[target, row]))
    end = max(features, key=lambda row: effect[row, features].max())
    start = max(features, key=lambda row: effect[end, row])
    edges = [(nodes[source]["id"], nodes[target]["id"]), (nodes[start]["id"], nodes[end]["id"])]
    table = path_patch(model, graph, edges, demeaned, scale=0.9).to_pylist()
    assert table[0]["effect"] == pytest.approx(-0.1 * effect[target, source], abs=1e-9)
    moved = table[1]["patched_activation"] - table[1]["activation"]
    assert moved == pytest.approx(-0.1 * effect[end, start], abs=1e-9)
    assert abs(table[1]["effect"]) > 1e-9
    removed = path_patch(model, graph, edges, demeaned)
    assert removed.equals(path_patch(model, graph, edges, demeaned, scale=0.0))
    with pytest.raises(TraceError, match="no node has the id 'x'"):
        path_patch(model, graph, [("x", nodes[target]["id"])], demeaned)
    with pytest.raises(TraceError, match="is of kind logit, expected feature"):
        path_patch(model, graph, [(nodes[target]["id"], nodes[target]["id"])], demeaned)


def test_a_receiver_is_set_to_what_it_does_not_to_what_it_reads():
    model = replacement_model("gpt2", kind="cross_layer")
    graph = tracer.trace(model, PROMPT)
    nodes = graph.nodes.to_pylist()
    features = [node for node in nodes if node["kind"] == NodeKind.FEATURE]
    pairs = [
        (start, end)
        for start in features
        for end in features
        if start["layer"] < end["layer"] and start["position"] <= end["position"]
    ][::97]
    edges = [(start["id"], end["id"]) for start, end in pairs]
    metric = logit_difference(model, 3, 4)
    table = path_patch(model, graph, edges, metric, scale=-6.0).to_pylist()
    silenced = 0
    for (start, end), row in zip(pairs, table, strict=True):
        place = {name: start[name] for name in ("layer", "position", "feature")}
        change = tracer.intervene(model, PROMPT, [Intervention(**place, scale=-6.0)], "direct")
        at = end["layer"], end["position"], end["feature"]
        assert row["patched_activation"] == pytest.approx(float(change.activations[at]), abs=1e-12)
        silenced += row["patched_activation"] == 0.0
    assert silenced  # below its threshold a feature reads something and does nothing


def test_a_path_ends_at_the_token_that_its_graph_explains():
    model = replacement_model("gpt2", kind="cross_layer")
    earlier, cut = tracer.trace(model, PROMPT, position=3), tracer.trace(model, PROMPT[:4])
    features = [node for node in cut.nodes.to_pylist() if node["kind"] == NodeKind.FEATURE]
    start, end = features[0], next(node for node in features if node["layer"] > 0)
    metric, edges = logit_difference(model, 3, 4), [(start["id"], end["id"])]
    [row] = path_patch(model, cut, edges, metric, scale=5.0).to_pylist()
    assert path_patch(model, earlier, edges, metric, scale=5.0).to_pylist() == [row]
    place = {name: end[name] for name in ("layer", "position", "feature")}
    set_to = [Intervention(**place, value=row["patched_activation"])]
    logits = tracer.intervene(model, PROMPT[:4], set_to, "free").logits
    assert row["after"] == pytest.approx(float(metric(logits[-1:])[0]), abs=1e-12)
    assert row["before"] == pytest.approx(float(metric(model.record(PROMPT[:4]).logits[-1:])[0]))


def test_metrics_are_what_they_say():
    model = replacement_model("gpt2")
    logits = model.record(PROMPT).logits[-2:]
    odds = logits.double().softmax(-1)
    torch.testing.assert_close(probability(model, 5)(logits), odds[:, 5])
    expected = (odds[0] * (odds[0] / odds[1]).log()).sum()
    found = divergence(logits[0])(logits)
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    assert float(found[1]) == pytest.approx(float(expected))


def test_a_heat_map_is_a_picture_of_the_table():
    model = replacement_model("gpt2")
    metric = logit_difference(model, 3, 4)
    table = patch(model, PROMPT, OTHER, metric)
    picture = heat_map(table, value="recovered", labels=["<s>", *"bcdef"])
    texts = [node.text for node in ElementTree.fromstring(picture).iter() if node.text]
    assert {"layer 2", "layer 0", "<s>", "f", "recovered by layer and position"} <= set(texts)
    with pytest.raises(TraceError, match="has empty rows"):
        heat_map(table, columns="index")
    with pytest.raises(TraceError, match="no column 'depth'"):
        heat_map(table, rows="depth")


def test_sites_that_share_a_cell_of_a_heat_map_are_added_up(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2")
    table = patch(model, PROMPT, OTHER, logit_difference(model, 3, 4), sites="head")
    expected = np.zeros((LAYERS, len(PROMPT)))
    for row in table.to_pylist():
        expected[row["layer"], row["position"]] += row["effect"]
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(charts, "heat_map", lambda *given: drawn.append(given[3]) or "")
    heat_map(table)
    np.testing.assert_allclose(drawn[0][::-1], expected, rtol=0, atol=1e-12)


def test_a_heat_map_names_its_rows_and_as_many_columns_as_were_named(
    monkeypatch: pytest.MonkeyPatch,
):
    model = replacement_model("gpt2")
    table = patch(model, PROMPT, OTHER, logit_difference(model, 3, 4))
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(charts, "heat_map", lambda *given: drawn.append(given) or "")
    heat_map(table, labels=["<s>", "a"])
    title, rows, columns, numbers = drawn[0]
    assert title == "effect by layer and position"
    assert rows == ["layer 2", "layer 1", "layer 0"]
    assert columns == ["<s>", "a", "2", "3", "4", "5"]
    cells = {(row["layer"], row["position"]): row["effect"] for row in table.to_pylist()}
    for at, name in enumerate(rows):
        expected = [cells[int(name[-1]), position] for position in range(len(PROMPT))]
        np.testing.assert_allclose(numbers[at], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", Kind)
def test_sites_are_all_there_are_and_features_those_that_fire_in_a_run(kind: Kind):
    model = replacement_model("gpt2")
    runs = [values_of(model, PROMPT), values_of(model, OTHER)]
    at: dict[int, set[tuple[int, int | None]]] = {}
    for layer in range(LAYERS):
        for position in range(len(PROMPT)):
            fires = {int(f) for run in runs for f in run.feature[layer][position].nonzero()}
            indices = {Kind.FEATURE: fires, Kind.HEAD: range(4)}.get(kind, [None])
            at.setdefault(layer, set()).update((position, index) for index in indices)
    apart = [(s.layer, s.position, s.index) for s in sites_of(model, kind, runs)]
    expected = [(layer, *place) for layer, places in at.items() for place in places]
    assert sorted(map(str, apart)) == sorted(map(str, expected))
    at_once = sites_of(model, kind, runs, by_position=False)
    assert all(site.position is None for site in at_once)
    found = [(s.layer, s.index) for s in at_once]
    assert sorted(map(str, found)) == sorted({str((layer, i)) for layer, _, i in expected})


def test_patches_that_cannot_be_are_refused():
    model = replacement_model("gpt2")
    metric = logit_difference(model, 3, 4)
    for said, call in (
        ("needs as many of each", lambda: patch(model, PROMPT, OTHER[:4], metric)),
        ("'neuron' is unknown", lambda: patch(model, PROMPT, OTHER, metric, sites="neuron")),
        ("does not exist", lambda: ablate(model, PROMPT, metric, sites=[PatchSite(Kind.MLP, 9)])),
        ("needs prompts", lambda: ablate(model, PROMPT, metric, using="mean")),
        ("take an index", lambda: PatchSite(Kind.HEAD, 0)),
        (
            "has 4 tokens, expected 6",
            lambda: ablate(model, PROMPT, metric, using="resample", prompts=[OTHER[:4]]),
        ),
    ):
        with pytest.raises(TraceError, match=said):
            call()


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3_moe", "gpt_oss", "gemma2"])
def test_what_an_mlp_gives_is_kept_for_every_position(family: str):
    model, heard = replacement_model(family), []
    hooks = [
        block.mlp.register_forward_hook(
            lambda _, __, out: heard.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in model.host.blocks
    ]
    found = values_of(model, PROMPT).mlp
    for hook in hooks:
        hook.remove()
    assert len(found) == len(heard) == len(model.host.blocks)
    for got, wanted in zip(found, heard, strict=True):
        torch.testing.assert_close(got, wanted.reshape(len(PROMPT), -1))


def test_what_a_layer_flattened_is_kept_position_by_position():
    """As OPT's layers do: rows and positions of what their MLPs give are one dimension."""
    rows = torch.randn(1, 5, 8)
    for given in (rows, rows[0], (rows[0], None)):
        seen = Values()
        _keep_mlp(seen)(None, given)
        assert torch.equal(seen.mlp[0], rows[0])
