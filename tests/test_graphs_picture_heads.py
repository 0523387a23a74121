"""Pictures whose edges have the colour of the head that carried them."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from graphs import AttributionGraph, GraphError
from graphs.attention_tables import COLUMNS, edge_name
from graphs.pictures import head_colours
from graphs.pictures.head_colours import HEADS, SEVERAL, STAYS, UNSPLIT
from tests.graph_samples import dallas

BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


def lab(colour: str, blindness: str) -> np.ndarray:
    """A colour as CIE L*a*b*, as somebody sees it."""
    coded = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.array(matrix) @ seen / [0.9505, 1.0, 1.089], 1e-4))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_of_heads_are_told_apart_by_everybody(blindness: str):
    every = (*HEADS, SEVERAL, STAYS, UNSPLIT)
    for one, other in combinations(every, 2):
        distance = float(np.linalg.norm(lab(one, blindness) - lab(other, blindness)))
        assert distance > 10, (one, other, distance)


def small() -> AttributionGraph:
    return dallas().prune()


def carried(graph: AttributionGraph, rows: list[tuple[int, int, int, float]]) -> AttributionGraph:
    """The graph with a table of heads: edge number, layer, head, share of the edge."""
    ids, edges = graph.nodes["id"].to_pylist(), graph.edges.to_pylist()
    names = [edge_name(ids[edge["source"]], ids[edge["target"]]) for edge in edges]
    columns = {
        "edge": [names[edge] for edge, *_ in rows],
        "layer": [layer for _, layer, _, _ in rows],
        "head": [head for _, _, head, _ in rows],
        "query": [None] * len(rows),
        "key": [None] * len(rows),
        "loading": [edges[edge]["weight"] * share for edge, *_, share in rows],
    }
    table = pa.table(
        {name: pa.array(columns[name], kind) for name, kind in COLUMNS["heads"].items()}
    )
    return graph.with_tables({"heads": table})


def colour(source: str, edge: dict[str, int], ids: list[str]) -> str:
    """The colour that DOT text gives an edge."""
    name = re.escape(f"edge_{ids[edge['source']]}__{ids[edge['target']]}")
    found = re.search(f'id="{name}".*? color="(#[0-9a-f]+)"', source)
    assert found is not None
    return found[1][:7]


def moving(graph: AttributionGraph) -> tuple[list[int], list[int]]:
    """Numbers of edges between positions, and of those that stay, strongest first."""
    position = graph.nodes["position"].to_pylist()
    edges = graph.edges.to_pylist()
    order = sorted(range(len(edges)), key=lambda at: -edges[at]["influence"])
    across = [at for at in order if position[edges[at]["source"]] != position[edges[at]["target"]]]
    return across, [at for at in order if at not in set(across)]


def test_edges_have_the_colour_of_the_head_that_carried_most_and_the_legend_names_it():
    graph = small()
    across, within = moving(graph)
    rows = [(across[0], 3, 4, 0.9), (across[0], 2, 1, 0.2), (across[1], 1, 5, 0.6)]
    rows += [(across[2], 2, 0, 0.3), (across[2], 3, 4, 0.4), (within[0], 3, -1, 1.0)]
    rows += [(within[1], 2, 7, 0.8)]
    graph = carried(graph, rows)
    text, edges = graph.to_dot(edges=None, heads=True), graph.edges.to_pylist()
    ids = graph.nodes["id"].to_pylist()
    legend = dict(zip(re.findall(r'label="(head \d+\.\d+)\\l"', text), HEADS, strict=False))
    assert set(legend) == {"head 3.4", "head 1.5", "head 2.7"}
    assert colour(text, edges[across[0]], ids) == legend["head 3.4"]
    assert colour(text, edges[across[1]], ids) == legend["head 1.5"]
    assert colour(text, edges[within[1]], ids) == legend["head 2.7"]
    assert colour(text, edges[across[2]], ids) == SEVERAL
    assert colour(text, edges[within[0]], ids) == STAYS
    assert colour(text, edges[across[3]], ids) == UNSPLIT
    for said in ("several heads, or another one", "stays at its position", "not split over heads"):
        assert said in text
    assert "3.4 carries 90% of it" in text
    assert "excites" not in re.findall(r'label="([^"]*)"', text)


def test_signs_stay_dashes_and_without_heads_nothing_changes():
    graph = small()
    across, _ = moving(graph)
    with_table = carried(graph, [(across[0], 3, 4, 0.9)])
    assert with_table.to_dot() == graph.to_dot()
    plain, coloured = graph.to_dot(edges=None), with_table.to_dot(edges=None, heads=True)
    dashed = re.findall(r'id="edge_([^"]+)"[^\n]*style="dashed"', plain)
    assert dashed
    assert re.findall(r'id="edge_([^"]+)"[^\n]*style="dashed"', coloured) == dashed


def test_more_heads_than_colours_share_the_last_class():
    graph = small()
    across, _ = moving(graph)
    count = len(HEADS) + 1
    assert len(across) >= count
    graph = carried(graph, [(across[at], at, at, 1.0) for at in range(count)])
    text, ids = graph.to_dot(edges=None, heads=True), graph.nodes["id"].to_pylist()
    edges = graph.edges.to_pylist()
    found = [colour(text, edges[across[at]], ids) for at in range(count)]
    assert found[:-1] == list(HEADS)
    assert found[-1] == SEVERAL


def test_without_a_table_one_line_says_what_makes_it(tmp_path: Path):
    with pytest.raises(GraphError, match="tracer heads FOLDER or tracer"):
        small().render(tmp_path / "a.dot", heads=True)
    assert not list(tmp_path.iterdir())


def test_the_colours_are_those_of_the_heads_that_carried_most_influence():
    graph = small()
    across, _ = moving(graph)
    graph = carried(graph, [(across[0], 0, 1, 1.0), (across[1], 0, 2, 1.0), (across[2], 0, 2, 1.0)])
    found = head_colours.head_colours(
        graph.nodes, graph.edges, graph.heads, np.arange(graph.edges.num_rows)
    )
    influence = graph.edges["influence"].to_pylist()
    first = influence[across[0]] >= influence[across[1]] + influence[across[2]]
    named = [name for name in found.colours if name.startswith("head")]
    assert named == (["head 0.1", "head 0.2"] if first else ["head 0.2", "head 0.1"])
