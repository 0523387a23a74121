"""Attention patterns of a prompt: a heat map, JSON for a viewer, a folder with a file a head."""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from graphs import AttributionGraph, words
from graphs.exchange.head_files import head_files
from graphs.pictures import charts
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.attention.explained import check_model, chosen_head, chosen_layer

CLOSE = 4
"""Digits of attention in the JSON."""


@one_call()
@torch.no_grad()
def attention_patterns(
    model: ReplacementModel, graph: AttributionGraph
) -> list[Float[np.ndarray, "heads queries keys"]]:
    """The pattern of every head on a graph's prompt.

    Returns:
        One array a layer, (heads, queries, keys), rows add up to at most 1.

    Raises:
        TraceError: the graph is of another model.
    """
    check_model(model, graph)
    about = graph.metadata
    tokens = about["token_ids"][: about["position"] + 1]
    recording = model.record(tokens, last_logits=True)
    return [layer.attention_pattern().float().cpu().numpy() for layer in recording.layers]


def pattern_svg(model: ReplacementModel, graph: AttributionGraph, layer: int, head: int) -> str:
    """The pattern of one head as a heat map: queries down, keys across.

    Returns:
        SVG text.

    Raises:
        TraceError: the graph is of another model, or has no such head.
    """
    chosen_head(model, chosen_layer(model, layer), head)
    pattern = attention_patterns(model, graph)[layer][head]
    tokens = [words.token(text) for text in graph.metadata["tokens"]][: len(pattern)]
    shown = np.where(np.tri(len(pattern), dtype=bool), pattern, np.nan)
    title = f"attention of head {layer}.{head}: from rows to columns"
    return charts.heat_map(title, tokens, tokens, shown)


def patterns_json(model: ReplacementModel, graph: AttributionGraph) -> str:
    """The patterns of all heads, for a viewer.

    Returns:
        JSON: tokens, and layers, a list a head of rows from the first query, each up to itself.

    Raises:
        TraceError: the graph is of another model.
    """
    layers: list[Any] = [
        [[_rounded(row[: query + 1]) for query, row in enumerate(head)] for head in layer]
        for layer in attention_patterns(model, graph)
    ]
    tokens = graph.metadata["tokens"][: graph.metadata["position"] + 1]
    return json.dumps({"format": 1, "tokens": tokens, "layers": layers}, ensure_ascii=False)


def pattern_files(model: ReplacementModel, graph: AttributionGraph) -> dict[str, bytes]:
    """Every head on a graph's prompt, a file each (`graphs.exchange.head_files`).

    Returns:
        Path in a folder -> JSON: `config.json`, `scatter_data.json`, `heads/L0H0.json`, ...

    Raises:
        TraceError: the graph is of another model.
    """
    about = (graph.nodes, graph.edges, graph.metadata)
    return head_files(attention_patterns(model, graph), about, graph.tables)


def _rounded(row: Float[np.ndarray, " keys"]) -> list[float]:
    return [round(float(value), CLOSE) for value in row]
