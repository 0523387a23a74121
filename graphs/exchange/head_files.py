"""A folder with a file a head, for pages that show heads without a server.

Laid out as HeadVis lays out its data (Anthropic 2026, "HeadVis"): `config.json`, numbers of every
head in `scatter_data.json`, and `heads/L3H4.json`. What stands in the files is our own: patterns of
one prompt, edges that the head carried, and why it looked where it did, as far as the tables of the
graph say. HeadVis's own schema stands in its code alone; its page does not load these files.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from graphs.attention_tables import edge_ends
from graphs.attention_words import edges_by_name

DIGITS = 4
"""Of attention."""
EDGES = 50
"""Edges listed of a head, those with most influence through it."""
Patterns = Sequence[Float[np.ndarray, "heads queries keys"]]
Head = tuple[int, int]


def head_files(
    patterns: Patterns,
    tables: tuple[pa.Table, pa.Table, Mapping[str, Any]],
    attention: Mapping[str, pa.Table],
) -> dict[str, bytes]:
    """Every head of a model on a graph's prompt.

    Args:
        patterns: one array a layer, (heads, queries, keys).
        tables: nodes, edges and metadata of the graph.
        attention: its tables about attention; may be empty.

    Returns:
        Path in the folder -> JSON. Attention from 0 to 1, entropy in nats, `carried` in units of
        the targets' weights, loadings in units of the edge, marginals and pairs in those of scores.
    """
    nodes, edges, metadata = tables
    count = patterns[0].shape[1] if patterns else 0
    tokens = list(metadata.get("tokens", []))[:count]
    carried = _carried(attention, edges_by_name(nodes, edges))
    explained = _explained(attention)
    numbers, files = [], {}
    for layer, heads in enumerate(patterns):
        for head, pattern in enumerate(heads):
            mine = sorted(carried[layer, head], key=lambda row: -abs(row["influence"]))
            influence = sum(row["influence"] for row in mine)
            row = {"layer": layer, "head": head, **_numbers(pattern), "carried": influence}
            numbers.append(row)
            files[f"heads/L{layer}H{head}.json"] = {
                **row,
                "tokens": tokens,
                "pattern": [
                    [round(float(value), DIGITS) for value in line[: query + 1]]
                    for query, line in enumerate(pattern)
                ],
                "edges": mine[:EDGES],
                "explanations": explained[layer, head],
            }
    about = {name: metadata.get(name) for name in ("model", "prompt")}
    config = {
        "format": 1,
        **about,
        "tokens": tokens,
        "layers": len(patterns),
        "heads": [len(heads) for heads in patterns],
    }
    every: dict[str, Any] = {"config.json": config, "scatter_data.json": numbers, **files}
    return {name: _bytes(value) for name, value in every.items()}


def _bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _numbers(pattern: Float[np.ndarray, "queries keys"]) -> dict[str, float]:
    """Means over the queries behind the first: where attention goes, and how far it spreads."""
    lower = np.tril(pattern.astype(np.float64))[1:]
    at = np.arange(1, len(pattern))
    if not len(at):
        return {"entropy": 0.0, "own": 1.0, "previous": 0.0, "first": 1.0}
    logs = np.log(lower, out=np.zeros_like(lower), where=lower > 0)
    found = {
        "entropy": -(lower * logs).sum(1),
        "own": lower[at - 1, at],
        "previous": lower[at - 1, at - 1],
        "first": lower[:, 0],
    }
    return {name: round(float(value.mean()), DIGITS) for name, value in found.items()}


def _carried(
    attention: Mapping[str, pa.Table], edges: Mapping[str, tuple[float, float]]
) -> dict[Head, list[dict[str, Any]]]:
    """Edges by the heads that carried them."""
    found: dict[Head, list[dict[str, Any]]] = defaultdict(list)
    for row in attention["heads"].to_pylist() if "heads" in attention else ():
        if row["head"] < 0 or row["query"] is not None or row["edge"] not in edges:
            continue
        weight, influence = edges[row["edge"]]
        source, target = edge_ends(row["edge"])
        share = row["loading"] / weight if weight else 0.0
        found[row["layer"], row["head"]].append(
            {
                "source": source,
                "target": target,
                "loading": row["loading"],
                "weight": weight,
                "influence": abs(share) * influence,
            }
        )
    return found


def _explained(attention: Mapping[str, pa.Table]) -> dict[Head, list[dict[str, Any]]]:
    """What is known of why each head looked where it did."""
    found: dict[Head, list[dict[str, Any]]] = defaultdict(list)
    if "attention" not in attention:
        return found
    sides: dict[tuple[int, str], list[list[Any]]] = defaultdict(list)
    for row in attention["attention_marginals"].to_pylist():
        sides[row["explanation"], row["side"]].append([row["node"], row["weight"]])
    pairs: dict[int, list[list[Any]]] = defaultdict(list)
    for row in attention["attention_pairs"].to_pylist():
        pairs[row["explanation"]].append([row["node_q"], row["node_k"], row["weight"]])
    for row in attention["attention"].to_pylist():
        number = row["explanation"]
        plain = {
            name: value if not isinstance(value, float) or isfinite(value) else None
            for name, value in row.items()
            if name not in ("explanation", "layer", "head")
        }
        found[row["layer"], row["head"]].append(
            {**plain, "q": sides[number, "q"], "k": sides[number, "k"], "pairs": pairs[number]}
        )
    return found
