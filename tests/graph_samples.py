"""Graphs for the tests of `graphs`: made of random numbers, never traced."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from graphs import AttributionGraph
from graphs.schema import GIVEN

DALLAS = ["<bos>", "The", " capital", " of", " the", " state", " containing", " Dallas", " is"]
ANSWERS = [" Austin", " Houston", " Dallas", " Texas", " the"]
LABELS = {
    (0, 7): [
        "Texas, TX, Lone · Dallas",
        "Dallas, Fort, Plano · Dallas",
        "city, town, metro · Paris",
    ],
    (0, 2): ["capital, city, seat · capital"],
    (0, 5): ["state, states, governor · state"],
    (1, 8): ["say a capital"],
    (2, 8): ["Texas, TX, Lone · is", "city, seat, Springfield · is"],
    (3, 8): ["Austin, austin, Aust · is"],
}
STRONG = [
    ("E_37_7", "Texas, TX, Lone · Dallas", 9.0),
    ("E_37_7", "Dallas, Fort, Plano · Dallas", 5.0),
    ("E_32_2", "capital, city, seat · capital", 7.0),
    ("E_35_5", "state, states, governor · state", 6.0),
    ("capital, city, seat · capital", "say a capital", 8.0),
    ("state, states, governor · state", "say a capital", 3.0),
    ("Texas, TX, Lone · Dallas", "Texas, TX, Lone · is", 9.0),
    ("Dallas, Fort, Plano · Dallas", "Texas, TX, Lone · is", 3.0),
    ("say a capital", "Austin, austin, Aust · is", 6.0),
    ("Texas, TX, Lone · is", "Austin, austin, Aust · is", 8.0),
    ("Dallas, Fort, Plano · Dallas", "Austin, austin, Aust · is", -2.0),
    ("Austin, austin, Aust · is", " Austin", 16.0),
    ("say a capital", " Austin", 5.0),
    ("Texas, TX, Lone · is", " Austin", 6.0),
    ("say a capital", " Houston", 4.0),
    ("Austin, austin, Aust · is", " Houston", -5.0),
]
"""What the prompt about Dallas should show: (source, target, effect) by id, label or text."""


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What `AttributionGraph.build` takes, from one dict a node; ids from the other columns."""
    table: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in GIVEN}
    table["id"] = [row.get("id") or f"{row['kind']}{at}" for at, row in enumerate(rows)]
    return table


def two_paths() -> AttributionGraph:
    """A token, a feature and a logit of weight 1: 3/4 of it through the feature."""
    rows = [
        {"kind": "embedding", "layer": -1, "position": 0, "token": 5, "text": " Dallas"},
        {"kind": "feature", "layer": 0, "position": 0, "feature": 7, "label": "Texas, TX · Dallas"},
        {"kind": "logit", "layer": 1, "position": 0, "token": 9, "text": " Austin",
         "probability": 1},
    ]  # fmt: skip
    effect = sparse.csr_array([[0.0, 0, 0], [2, 0, 0], [1, -3, 0]])
    return AttributionGraph.build(columns(rows), effect, {"tokens": [" Dallas"]})


def rows_of(
    tokens: Sequence[str], features: np.ndarray, layers: int, logits: Sequence[tuple[str, float]]
) -> list[dict[str, Any]]:
    """Node rows in computation order. `features` counts them by (layer, position)."""
    last = len(tokens) - 1
    rows = [
        {"kind": "embedding", "layer": -1, "position": p, "token": 30 + p, "text": text,
         "id": f"E_{30 + p}_{p}"}
        for p, text in enumerate(tokens)
    ]  # fmt: skip
    for layer in range(layers):
        for p in range(1, len(tokens)):
            labels = LABELS.get((layer, p), [])
            rows += [
                {"kind": "feature", "layer": layer, "position": p, "feature": 10 * p + f,
                 "label": labels[f] if f < len(labels) else f"w{layer}{p}{f}, x · {tokens[p]}",
                 "id": f"{layer}_{10 * p + f}_{p}", "activation": 1.5, "pre_activation": 1.5,
                 "constant": 0.1, "left_out": 0.0, "left_out_absolute": 0.0}
                for f in range(features[layer, p])
            ]  # fmt: skip
        rows += [
            {"kind": "error", "layer": layer, "position": p, "id": f"{layer}_-1_{p}"}
            for p in range(1, len(tokens))
        ]
    return rows + [
        {"kind": "logit", "layer": layers, "position": last, "token": 60 + at, "text": text,
         "probability": q, "id": f"{layers + 1}_{60 + at}_{last}"}
        for at, (text, q) in enumerate(logits)
    ]  # fmt: skip


def random_graph(
    seed: int,
    tokens: Sequence[str] = tuple(DALLAS),
    layers: int = 4,
    features: int = 60,
    dtype: type = np.float32,
) -> AttributionGraph:
    """A causal graph of random effects, a few of them strong, in which every row has an input."""
    rng = np.random.default_rng(seed)
    shape = (layers, len(tokens))
    count = rng.multinomial(features, rng.dirichlet(np.full(shape, 0.4).ravel())).reshape(shape)
    count[:, 0] = 0
    for (layer, position), labels in LABELS.items():
        if layer < layers and position < len(tokens):
            count[layer, position] = max(count[layer, position], len(labels))
    odds = rng.dirichlet(np.full(len(ANSWERS) - 1, 0.5)) * 0.08
    rows = rows_of(tokens, count, layers, list(zip(ANSWERS, [0.87, *odds.tolist()], strict=True)))
    layer, position = (np.array([row[name] for row in rows]) for name in ("layer", "position"))
    kind = np.array([row["kind"] for row in rows])
    free = (layer[:, None] > layer) & (position[:, None] >= position)
    free &= np.isin(kind, ["feature", "logit"])[:, None] & (kind != "logit")
    size = rng.standard_t(1.2, size=free.shape) * free * (rng.random(free.shape) < 0.5)
    size[:, kind == "error"] *= 0.2
    size += 0.3 * free * (position[:, None] == position) * (kind == "embedding")
    meta = {
        "prompt": "".join(tokens[1:]), "tokens": list(tokens), "layers": layers, "model": "tiny",
    }  # fmt: skip
    return AttributionGraph.build(columns(rows), sparse.csr_array(size.astype(dtype)), meta)


def dallas(seed: int = 0, features: int = 60) -> AttributionGraph:
    """The graph everyone knows: Dallas, Texas, say a capital, Austin, over random weak edges."""
    noise = random_graph(seed, features=features)
    rows = noise.nodes.to_pylist()
    place = {
        name: at for at, row in enumerate(rows) for name in (row["label"], row["text"], row["id"])
    }
    effect = (0.35 * noise.effect).tolil()
    effect[np.abs(effect.toarray()) > 2] = 0
    for source, target, size in STRONG:
        effect[place[target], place[source]] = size
    given = {name: noise.nodes[name].to_pylist() for name in noise.nodes.column_names}
    return AttributionGraph.build(given, sparse.csr_array(effect), noise.metadata)
