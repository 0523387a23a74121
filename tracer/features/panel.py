"""What the viewer shows of features: plain values from a feature store."""

from collections.abc import Sequence
from typing import Any

from graphs import AttributionGraph, NodeKind
from tracer.features.bins import Histogram
from tracer.features.feature import Example, Feature
from tracer.features.store import FeatureStore

MOST = 300
"""Features that a page takes along, the most influential."""
STRONGEST, A_DECILE = 6, 1
"""Examples of each kind, and of each decile."""
BEFORE, AFTER = 24, 12
"""Tokens shown around the one that an example is of."""


def panels(
    store: FeatureStore, graph: AttributionGraph, most: int = MOST
) -> dict[str, dict[str, Any]]:
    """What a store knows of a graph's most influential features.

    Args:
        store: of the dictionary that the graph was traced with.
        graph: whose features are wanted.
        most: features at most.

    Returns:
        `layer/feature` -> label, statistics, histogram (bounds in units of the activation, tokens),
        tokens it fires on, promotes and suppresses with their weights, and examples: text,
        numbers, lists and dicts only. Features that the store does not have are left out.
    """
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == NodeKind.FEATURE]
    rows.sort(key=lambda row: -row["influence"])
    places = dict.fromkeys((row["layer"], row["feature"]) for row in rows)
    known = [place for place in places if _has(store, *place)][:most]
    return {f"{one.layer}/{one.feature}": panel(store, one) for one in store.several(known)}


def _has(store: FeatureStore, layer: int, feature: int) -> bool:
    return layer in store.layers and feature < store.features(layer).num_rows


def panel(store: FeatureStore, feature: Feature) -> dict[str, Any]:
    """One feature as plain values, as `panels` has them."""
    shown: dict[str, Any] = {
        name: feature.row.get(name)
        for name in ("label", "active", "density", "mean", "maximum", "minimum")
    }
    if feature.active:
        held = Histogram.of(feature.histogram, store.about["bins"]).held()
        bounds, counts = held.bounds.tolist(), held.counts.tolist()
        shown["histogram"] = {"bounds": [_short(one) for one in bounds], "counts": counts}
    for name, weight in (
        ("fires_on", "fires_on_share"),
        ("promoted", "promoted_score"),
        ("suppressed", "suppressed_score"),
    ):
        pairs = zip(feature.row[name], feature.row[weight], strict=True)
        shown[name] = [[token, _short(value)] for token, value in pairs]
    shown["examples"] = [_example(one) for one in _chosen(feature.examples)]
    return shown


def _chosen(examples: Sequence[Example]) -> list[Example]:
    """The strongest of each kind, and some of each decile."""
    taken: dict[tuple[str, int], int] = {}
    found = []
    for one in examples:
        decile = one.kind == "decile"
        key = (one.kind, one.rank if decile else 0)
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= (A_DECILE if decile else STRONGEST):
            found.append(one)
    return found


def _example(one: Example) -> dict[str, Any]:
    first = max(one.document.start, one.position - BEFORE)
    last = min(one.document.stop, one.position + AFTER + 1)
    return {
        "kind": one.kind,
        "rank": one.rank,
        "texts": list(one.texts[first:last]),
        "activations": [_short(value) for value in one.activations[first:last]],
        "position": one.position - first,
        "activation": _short(one.activation),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
