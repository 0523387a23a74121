"""Does influence rank features as zeroing them does? Rank correlations and what they must beat."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from graphs.influence import influence, shares
from graphs.schema import number
from tracer.validation.subject import Subject

FEWEST = 30
"""Nodes below which a rank correlation says nothing."""
TARGETS = 64
"""Features explained in the comparison feature to feature, the most influential."""


def spearman(
    predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"], fewest: int = FEWEST
) -> float | None:
    """Rank correlation, tied ranks averaged; None below `fewest` values or without variation."""
    if len(predicted) < fewest or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    return float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1])


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From 1 up, those of equal values averaged; without scipy.stats, which loads for a second."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    found: Float[np.ndarray, " n"] = (np.cumsum(count) - (count - 1) / 2)[place]
    return found


def direct_logit(subject: Subject) -> Float[np.ndarray, " features"]:
    """The baseline a graph must beat: |activation times decoder rows times the target's row|.

    Decoder rows of all layers are summed and read by the target's unembedding row (demeaned, or the
    difference) through the final norm's weight: no attention, no other feature.
    """
    model, aim = subject.model, subject.aim
    norm, unembedding = model.host.final_norm, model.host.unembedding
    other = model.mean_unembedding if aim.minus is None else unembedding[aim.minus]
    vector = norm.centre((unembedding[aim.plus] - other) * norm.weight)
    activation = number(subject.graph.nodes, "activation")[subject.rows]
    found = np.zeros(len(subject.features))
    layers = np.array([layer for layer, _, _ in subject.features])
    features = np.array([feature for _, _, feature in subject.features])
    for layer in np.unique(layers):
        here = layers == layer
        ids = torch.as_tensor(features[here], device=model.device)
        rows = model.transcoder.decoder_rows(int(layer), ids)
        found[here] = (rows.sum(1) @ vector.to(rows.device)).double().detach().cpu().numpy()
    return np.abs(found * activation)


def explained(subject: Subject) -> Int[np.ndarray, " targets"]:
    """Numbers of the features whose inputs are compared, the most influential."""
    influences = number(subject.graph.nodes, "influence")[subject.rows]
    chosen: Int[np.ndarray, " targets"] = np.argsort(-influences, kind="stable")[:TARGETS]
    return chosen


def feature_to_feature(
    subject: Subject, responses: Float[np.ndarray, "features targets"]
) -> list[float]:
    """Rank correlation for each feature of `explained`, over the features that could reach it.

    Args:
        subject: what is validated.
        responses: size of the change of activation, of column's feature when row's is zeroed.

    Returns:
        One value for every target feature with enough features below it and a response to some.
    """
    graph, rows = subject.graph, subject.rows
    share = shares(graph.effect, number(graph.nodes, "input_absolute"))
    found = []
    for column, target in enumerate(explained(subject)):
        below = upstream(subject.features, int(target))
        if below.sum() < FEWEST:
            continue
        weight = np.zeros(graph.nodes.num_rows)
        weight[rows[target]] = 1
        value = spearman(influence(share, weight)[rows[below]], responses[below, column])
        if value is not None:
            found.append(value)
    return found


def upstream(
    features: Sequence[tuple[int, int, int]], target: int
) -> Bool[np.ndarray, " features"]:
    """Which features could reach the one numbered `target`: lower layer, no later position."""
    layer, position = (np.array([one[part] for one in features]) for part in (0, 1))
    below: Bool[np.ndarray, " features"] = (layer < layer[target]) & (position <= position[target])
    return below
