"""Head loadings, chains and cells: exact for every family, against separate passes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import tracer
from graphs import AttributionGraph
from graphs.attention_tables import ABOVE, REST, STAY, edge_ends
from replacement_models import ReplacementModel
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import host_of
from replacement_models.sites import top_layer
from tests.local_forward import LocalForward
from tests.random_models import FAMILIES, LAYERS, PROMPT, language_model, replacement_model
from tracer import TraceError
from tracer.attention import heads as heads_module
from tracer.attention import loadings as loadings_module
from tracer.attention import pushing
from tracer.attention.cells import Carried, cells
from tracer.attention.explained import Explained, explained
from tracer.attention.heads import Edges, chosen_edges
from tracer.attention.loadings import Loadings, loadings
from tracer.attention.plain_streams import attended, gradients, streams
from tracer.attention.sources import sources_of
from tracer.attribution.local_model import LocalModel

EXPERTS = ("gpt_oss", "qwen3_moe", "mixtral")
CASES = [
    (family, kind)
    for family in FAMILIES
    for kind in ("per_layer", "cross_layer", "neurons")
    if kind != "neurons" or family not in EXPERTS
]
SHARED = ("gpt2", "llama", "gpt_neox", "gemma2", "olmo2")
"""Families that differ in what matters here: GQA, parallel blocks, post-norms, no pre-norms."""
case = pytest.mark.parametrize(("family", "kind"), CASES)


@cache
def model_of(family: str, kind: str) -> ReplacementModel:
    if kind != "neurons":
        return replacement_model(family, kind=kind, skip=True)
    model = language_model(family)
    return ReplacementModel.from_huggingface(model, None, neurons(host_of(model)), name=family)


@cache
def about(family: str, kind: str) -> tuple[Explained, Edges]:
    model = model_of(family, kind)
    with torch.no_grad():
        known = explained(model, tracer.trace(model, PROMPT))
        names = known.graph.nodes["id"].to_pylist()
        ends = zip(
            *(known.graph.edges[end].to_pylist() for end in ("source", "target")), strict=True
        )
        edges = [(names[source], names[target]) for source, target in ends]
        return known, chosen_edges(known, edges[:: max(1, len(edges) // 400)])


def split(known: Explained, chosen: Edges, local: LocalModel | None = None) -> Loadings:
    """Loadings of all chosen edges, in their order."""
    count = max(len(block.output) for block in known.model.host.blocks)
    local = known.local if local is None else local
    with torch.no_grad():
        parts = list(loadings(local, chosen.columns, chosen.rows, chosen.pairs, count))
    edge = np.concatenate([part.edge for part in parts])
    order = np.argsort(edge)
    assert (edge[order] == np.arange(len(chosen.names))).all()
    heads, written = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("heads", "written")
    )
    return Loadings(edge[order], heads, written)


def passes(chosen: Edges) -> np.ndarray:
    """(edges, layers): which attention layers lie below the target."""
    return np.arange(LAYERS) <= top_layer(chosen.rows.site)[chosen.pairs.target][:, None]


@case
def test_heads_and_what_stays_and_what_is_written_above_add_up_to_every_edge(
    family: str, kind: str
):
    known, chosen = about(family, kind)
    found, size = split(known, chosen), np.abs(chosen.weight).max()
    assert np.abs(found.weight - chosen.weight).max() < 1e-9 * size
    with torch.no_grad():
        entering = list(streams(known.local, sources_of(known.local, chosen.columns)))
        at, below = (chosen.pairs.target, chosen.pairs.source), passes(chosen)
        for layer, _, read, stays in gradients(known.local, chosen.rows):
            stream, here = entering[layer], below[:, layer]
            stay = torch.einsum("spd,rpd->rs", stream, stays).numpy()[at]
            above = found.weight - found.below[:, layer]
            whole = found.heads[:, layer].sum(1) + stay + above
            assert np.abs((whole - chosen.weight)[here]).max(initial=0) < 1e-9 * size
            for head in range(found.heads.shape[2]):
                one = attended(known.local.layers[layer], stream, head)
                own = torch.einsum("spd,rpd->rs", one, read).numpy()[at]
                wrong = np.abs(own - found.heads[:, layer, head])[here]
                assert wrong.max(initial=0) < 1e-9 * size


def without_head(known: Explained, layer: int, head: int) -> LocalForward:
    """A separate forward pass in which one head attends nowhere."""
    layers = list(known.recording.layers)
    pattern = layers[layer].attention_pattern().clone()
    pattern[head] = 0
    layers[layer] = replace(layers[layer], pattern=pattern)
    return LocalForward(known.model, replace(known.recording, layers=layers))


def moved(forward: LocalForward, node: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """What taking a token or an error away changes in pre-activations, and in the last logits."""
    before, logits = forward()
    scale = forward.token if node["kind"] == "embedding" else forward.error[node["layer"]]
    scale[node["position"]] = 0
    after, changed = forward()
    scale[node["position"]] = 1
    return torch.stack(before) - torch.stack(after), (logits - changed)[-1]


def worst_by_ablation(known: Explained, chosen: Edges, local: LocalModel) -> float:
    """An edge without a head is the edge less what the head carries: how far off, at worst."""
    found, size, worst = split(known, chosen, local), np.abs(chosen.weight).max(), 0.0
    nodes = {node["id"]: node for node in known.graph.nodes.to_pylist()}
    layer = 1
    sources = [name for name in nodes if nodes[name]["kind"] in ("embedding", "error")]
    with torch.no_grad():
        for head in (0, len(known.model.host.blocks[layer].output) - 1):
            forward = without_head(known, layer, head)
            for source in sources[::9]:
                change, logits = moved(forward, nodes[source])
                for edge in [
                    i for i, name in enumerate(chosen.names) if edge_ends(name)[0] == source
                ]:
                    node = nodes[edge_ends(chosen.names[edge])[1]]
                    left = (
                        logits[node["token"]] - logits.mean()
                        if node["kind"] == "logit"
                        else change[node["layer"], node["position"], node["feature"]]
                    )
                    if layer <= top_layer(chosen.rows.site[chosen.pairs.target[edge]]):
                        gone = found.weight[edge] - found.heads[edge, layer, head]
                        worst = max(worst, abs(float(left) - gone) / size)
    return worst


@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_a_loading_is_what_an_edge_loses_with_its_head_in_a_separate_pass(family: str, kind: str):
    known, chosen = about(family, kind)
    assert worst_by_ablation(known, chosen, known.local) < 1e-9


def drop_head(pattern: torch.Tensor) -> torch.Tensor:
    pattern = pattern.clone()
    pattern[0, :, 0] = 0
    return pattern


MUTATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one head dropped": drop_head,
    "kv heads swapped": lambda pattern: pattern.flip(0),
    "heads of a group swapped": lambda pattern: pattern.flip(2),
}


@pytest.mark.parametrize("fault", MUTATIONS)
def test_loadings_fail_the_separate_pass_when_something_is_wrong(fault: str):
    known, chosen = about("llama", "cross_layer")
    layers = list(known.local.layers)
    layers[1] = replace(layers[1], pattern=MUTATIONS[fault](layers[1].pattern))
    assert worst_by_ablation(known, chosen, replace(known.local, layers=layers)) > 1e-3


def test_a_wrong_head_shows_in_what_the_table_says_of_itself(monkeypatch: pytest.MonkeyPatch):
    known, _ = about("llama", "cross_layer")
    honest = tracer.head_loadings(known.model, known.graph).metadata["heads"]
    assert max(honest["conservation"], honest["stay"]) < 1e-9
    real = pushing._keep

    def other_heads(room: torch.Tensor, read: list[torch.Tensor], *rest: object) -> None:
        real(room, [part.roll(room.shape[-1], -1) for part in read], *rest)

    monkeypatch.setattr(pushing, "_keep", other_heads)
    wrong = tracer.head_loadings(known.model, known.graph).metadata["heads"]
    assert wrong["stay"] > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_memory_bounds_change_no_loading(monkeypatch: pytest.MonkeyPatch, family: str):
    known, chosen = about(family, "cross_layer")
    whole = split(known, chosen)
    monkeypatch.setattr(pushing, "SLAB", 7)
    monkeypatch.setattr(loadings_module, "SLAB", 7)
    monkeypatch.setattr(loadings_module, "HELD", 1)
    few = split(known, chosen)
    assert np.abs(whole.heads - few.heads).max() < 1e-12 * np.abs(chosen.weight).max()
    assert np.abs(whole.written - few.written).max() < 1e-12 * np.abs(chosen.weight).max()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_heads_applied_to_few_sources_or_to_rows_carry_the_same(
    monkeypatch: pytest.MonkeyPatch, family: str
):
    known, chosen = about(family, "cross_layer")
    found, calls = [], []
    real = loadings_module.carried
    monkeypatch.setattr(
        loadings_module, "carried", lambda *given: calls.append(given) or real(*given)
    )
    for few in (True, False):
        monkeypatch.setattr(loadings_module, "_few", lambda *_, few=few: few)
        found.append(split(known, chosen))
        assert bool(calls) is few
        calls.clear()
    scale = np.abs(chosen.weight).max()
    assert np.abs(found[0].heads - found[1].heads).max() < 1e-12 * scale
    assert np.abs(found[0].written - found[1].written).max() < 1e-12 * scale


@pytest.mark.parametrize("few", [True, False])
def test_a_row_split_alone_has_the_loadings_that_it_has_among_others(
    monkeypatch: pytest.MonkeyPatch, few: bool
):
    known, chosen = about("llama", "cross_layer")
    whole = split(known, chosen)
    monkeypatch.setattr(
        loadings_module, "_few", lambda local, slabs, layer: few and layer < len(local.layers)
    )
    monkeypatch.setattr(loadings_module, "chunks", lambda rows: np.arange(len(rows.site))[:, None])
    alone = split(known, chosen)
    assert np.abs(whole.heads - alone.heads).max() < 1e-12 * np.abs(chosen.weight).max()
    assert np.abs(whole.written - alone.written).max() < 1e-12 * np.abs(chosen.weight).max()


@pytest.mark.parametrize("family", SHARED)
def test_the_cells_of_a_head_add_up_to_its_loading(family: str):
    known, chosen = about(family, "cross_layer")
    found = split(known, chosen)
    edge, layer, head = (np.abs(found.heads) > 1e-3).nonzero()
    some = np.arange(0, len(edge), max(1, len(edge) // 60))
    edge, layer, head = edge[some], layer[some], head[some]
    column, row = chosen.columns[chosen.pairs.source[edge]], chosen.pairs.target[edge]
    with torch.no_grad():
        for item, matrix in cells(known.local, chosen.rows, Carried(column, row, layer, head)):
            expected = found.heads[edge[item], layer[item], head[item]]
            assert float(matrix.sum()) == pytest.approx(expected, abs=1e-9)
            assert torch.equal(matrix, matrix.tril())


def graph_of(family: str) -> tuple[ReplacementModel, AttributionGraph]:
    known, _ = about(family, "cross_layer")
    return known.model, known.graph


@pytest.mark.parametrize("family", SHARED)
def test_chains_and_the_remainder_are_the_edge_wherever_the_search_stops(family: str):
    model, graph = graph_of(family)
    names, table = graph.nodes["id"].to_pylist(), graph.edges.to_pylist()
    last = max(edge["target"] for edge in table)
    into = [edge for edge in table if edge["target"] == last]
    for edge in into[:: max(1, len(into) // 3)]:
        source, target = names[edge["source"]], names[last]
        for steps in (1, 3, 50):
            found = tracer.head_chains(model, graph, source, target, top=1000, steps=steps)
            whole = sum(found.table["loading"].to_pylist()) + found.remainder
            assert whole == pytest.approx(edge["weight"], abs=1e-12)


@pytest.mark.parametrize("family", SHARED)
def test_chains_through_a_head_add_up_to_its_loading(family: str):
    known, chosen = about(family, "cross_layer")
    found, model, graph = split(known, chosen), *graph_of(family)
    tokens = [i for i, name in enumerate(chosen.names) if name.startswith("E_")]
    edge = max(tokens, key=lambda i: top_layer(chosen.rows.site[chosen.pairs.target[i]]))
    chains = tracer.head_chains(
        model, graph, *edge_ends(chosen.names[edge]), top=10**6, steps=10**6
    )
    assert chains.remainder == 0
    for layer in range(top_layer(chosen.rows.site[chosen.pairs.target[edge]]) + 1):
        for head in range(found.heads.shape[2]):
            own = sum(
                row["loading"]
                for row in chains.table.to_pylist()
                if f"{layer}.{head}" in row["heads"].split()
            )
            assert own == pytest.approx(found.heads[edge, layer, head], abs=1e-12)


def test_rows_of_the_table_add_up_to_the_edge_at_every_layer_and_it_comes_back(tmp_path):
    model, graph = graph_of("llama")
    held = tracer.head_loadings(model, graph)
    sums: dict[tuple[str, int], float] = {}
    for row in held.heads.to_pylist():
        if row["query"] is None:
            key = row["edge"], row["layer"]
            sums[key] = sums.get(key, 0.0) + row["loading"]
            assert row["head"] >= 0 or row["head"] in (STAY, ABOVE, REST)
    names, small = graph.nodes["id"].to_pylist(), graph.prune()
    kept = small.nodes["id"].to_pylist()
    assert names != kept
    weight = {
        f"{kept[e['source']]}__{kept[e['target']]}": e["weight"] for e in small.edges.to_pylist()
    }
    assert {edge for edge, _ in sums} <= set(weight)
    for (edge, _), whole in sums.items():
        assert whole == pytest.approx(weight[edge], abs=1e-9)
    for place in ("one.graph", "one.zip"):
        held.save(tmp_path / place)
        again = AttributionGraph.load(tmp_path / place)
        assert again.heads.equals(held.heads)
        assert again.metadata == held.metadata
    graph.save(tmp_path / "one.graph")
    assert AttributionGraph.load(tmp_path / "one.graph").heads is None
    assert set(held.prune(0.5).heads["edge"].to_pylist()) < set(held.heads["edge"].to_pylist())


def test_chosen_edges_alone_are_split_and_unknown_ones_refused():
    model, graph = graph_of("gpt2")
    names, edge = graph.nodes["id"].to_pylist(), graph.edges.to_pylist()[-1]
    source, target = names[edge["source"]], names[edge["target"]]
    one = tracer.head_loadings(model, graph, [(source, target)], cells=False)
    assert set(one.heads["edge"].to_pylist()) <= {f"{source}__{target}"}
    assert one.metadata["heads"]["edges"] == 1
    with pytest.raises(TraceError, match=r"no edge from '5_1_1' to 'x'"):
        tracer.head_loadings(model, graph, ["5_1_1__x"])
    with pytest.raises(TraceError, match="load the model it was traced from"):
        tracer.head_loadings(model_of("llama", "cross_layer"), graph)
    with pytest.raises(TraceError, match="steps is 0, expected 1 or more"):
        tracer.head_chains(model, graph, source, target, steps=0)


def test_edges_into_a_direction_are_refused_by_name():
    model = model_of("gpt2", "cross_layer")
    aim = tracer.Direction(torch.ones(16).double(), "mine")
    with pytest.raises(TraceError, match="is a direction, which graphs do not store"):
        tracer.head_loadings(model, tracer.trace(model, PROMPT, targets=[aim]))


def test_a_target_that_is_a_difference_is_split_too():
    model = model_of("gpt2", "cross_layer")
    graph = tracer.trace(model, PROMPT, targets=[tracer.Difference(3, 4), 5])
    found = tracer.head_loadings(model, graph)
    assert found.metadata["heads"]["conservation"] < 1e-9


def test_stay_is_checked_on_the_largest_edges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heads_module, "CHECKED", 5000)
    model, graph = graph_of("gemma2")
    assert tracer.head_loadings(model, graph).metadata["heads"]["stay"] < 1e-9
