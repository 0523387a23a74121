"""Influence, pruning and scores against graphs that another implementation traced.

`tests/data/golden` holds seven tiny random models traced by circuit-tracer in float64, with its
node influence, its prune masks and its two scores.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import sparse

from graphs import AttributionGraph
from graphs.schema import GIVEN

GOLDEN = Path(__file__).parent / "data" / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())


def golden(case: str) -> tuple[AttributionGraph, np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """The graph, where each of its rows stands in the file, the file, and its description."""
    file = load_file(GOLDEN / case / "graph.safetensors")
    meta = json.loads((GOLDEN / case / "meta.json").read_text())
    rows = file_rows(file, meta)
    order = np.array(sorted(range(len(rows)), key=lambda at: sort_key(rows[at])))
    columns: dict[str, list[Any]] = {
        "id": [f"{row['kind']}_{at}" for at, row in enumerate(rows)],
        **{name: [row.get(name) for row in rows] for name in GIVEN if name != "id"},
    }
    adjacency = file["adjacency_matrix"][np.ix_(order, order)]
    graph = AttributionGraph.build(
        {name: [values[at] for at in order] for name, values in columns.items()},
        sparse.csr_array(adjacency),
        {"prompt": case, "tokens": [f"w{token}" for token in meta["tokens"]]},
    )
    return graph, order, file, meta


def file_rows(file: dict[str, np.ndarray], meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Nodes in the file's order: features, errors layer-major, tokens, logits."""
    layers, positions = range(meta["n_layers"]), range(meta["n_pos"])
    features = file["active_features"][file["selected_features"]].tolist()
    logits = zip(file["logit_token_ids"].tolist(), file["logit_probabilities"], strict=True)
    last = {"layer": len(layers), "position": len(positions) - 1}
    return [
        *({"kind": "feature", "layer": a, "position": p, "feature": f} for a, p, f in features),
        *({"kind": "error", "layer": a, "position": p} for a in layers for p in positions),
        *(
            {"kind": "embedding", "layer": -1, "position": p, "token": token}
            for p, token in enumerate(meta["tokens"])
        ),
        *({"kind": "logit", "token": t, "probability": q} | last for t, q in logits),
    ]


def sort_key(row: dict[str, Any]) -> tuple[int, bool]:
    return row["layer"], row["kind"] == "error"


@pytest.mark.parametrize("case", CASES)
def test_influence_equals_the_reference(case: str):
    graph, order, file, _ = golden(case)
    ours = graph.nodes["influence"].to_numpy()
    np.testing.assert_allclose(ours, file["node_influence"][order], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_the_cumulative_share_equals_the_reference_where_influence_differs(case: str):
    graph, order, file, _ = golden(case)
    ours = graph.nodes["cumulative_influence"].to_numpy()
    known = (
        graph.nodes["influence"].to_numpy() > 0
    )  # the order of the others, which hold nothing, is anyone's
    np.testing.assert_allclose(ours[known], file["prune80_98_cum"][order][known], rtol=1e-9)
    np.testing.assert_allclose(ours[~known], 1.0, rtol=1e-9)


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.8)])
@pytest.mark.parametrize("case", CASES)
def test_pruning_keeps_the_nodes_and_edges_of_the_reference(
    case: str, thresholds: tuple[float, float]
):
    graph, order, file, _ = golden(case)
    name = f"prune{round(100 * thresholds[0])}_{round(100 * thresholds[1])}"
    small = graph.prune(*thresholds)
    row = {name: at for at, name in enumerate(graph.nodes["id"].to_pylist())}
    kept = np.array([row[name] for name in small.nodes["id"].to_pylist()])

    nodes = np.zeros(len(order), bool)
    nodes[kept] = True
    np.testing.assert_array_equal(nodes, file[f"{name}_nodes"][order])
    edges = np.zeros((len(order), len(order)), bool)
    edges[np.ix_(kept, kept)] = small.effect.toarray() != 0
    np.testing.assert_array_equal(edges, file[f"{name}_edges"][np.ix_(order, order)])


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_reference(case: str):
    graph, _, _, meta = golden(case)
    assert graph.scores.among_nodes.replacement == pytest.approx(
        meta["replacement_score"], rel=1e-9
    )
    assert graph.scores.among_nodes.completeness == pytest.approx(
        meta["completeness_score"], rel=1e-9
    )


@pytest.mark.parametrize("case", CASES)
def test_pruning_does_not_flatter_the_scores(case: str):
    graph = golden(case)[0]
    small = graph.prune()
    assert small.scores.replacement < graph.scores.replacement
    assert small.scores.completeness < graph.scores.completeness
