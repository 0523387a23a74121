"""Circuits found beside those that are true: what `ground_truth` and `planted` count."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np

from benchmarks.tracr.truth import OUTPUT, TOKENS, Circuit, Edge, Node
from graphs import AttributionGraph

DRAWS = 20
"""Times that edges are drawn at random beside those found."""


@dataclass
class Counts:
    """Of nodes or edges, over prompts."""

    right: int = 0
    found: int = 0
    true: int = 0

    def add(self, found: Iterable[Any], true: Iterable[Any]) -> None:
        """One prompt more."""
        found, true = set(found), set(true)
        self.right += len(found & true)
        self.found += len(found)
        self.true += len(true)

    @property
    def precision(self) -> float:
        """Of what was found, how much is true; 1 where nothing was."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Of what is true, how much was found."""
        return self.right / self.true


@dataclass
class Tally:
    """One way of finding circuits, over prompts."""

    nodes: Counts = field(default_factory=Counts)
    edges: Counts = field(default_factory=Counts)
    skips: int = 0
    weight: float = 0.0
    right: float = 0.0

    def add(self, found: Mapping[Edge, float], true: Circuit) -> None:
        """One prompt more.

        Args:
            found: edges and their weights.
            true: the circuit.
        """
        edges = set(found)
        self.nodes.add({source for source, _ in edges}, true.nodes)
        self.edges.add(edges, true.edges)
        self.weight += sum(found.values())
        self.right += sum(found[edge] for edge in edges & true.edges)
        ways = nx.DiGraph(list(true.edges))
        self.skips += sum(
            source in ways and target in ways and nx.has_path(ways, source, target)
            for source, target in edges - true.edges
        )

    def figures(self) -> dict[str, float]:
        """As they are written down."""
        return {
            "node_precision": self.nodes.precision,
            "node_recall": self.nodes.recall,
            "edge_precision": self.edges.precision,
            "edge_recall": self.edges.recall,
            "edge_weight": self.right / self.weight if self.weight else 1.0,
            "skips": self.skips / max(1, self.edges.found),
        }


def merged(graph: AttributionGraph, names: dict[tuple[int, int], str]) -> dict[Edge, float]:
    """Edges between variables at positions, of what leads from a token to the output.

    Args:
        graph: traced or pruned.
        names: the variable of a feature, by (layer, feature).

    Returns:
        Each edge's weight: the shares of what enters its target's nodes, added up.
    """
    columns = ("kind", "layer", "position", "feature")
    rows = zip(*(graph.nodes[name].to_pylist() for name in columns), strict=True)
    at: list[Node] = []
    for kind, layer, position, feature in rows:
        name = names[layer, feature] if kind == "feature" else kind
        at.append(({"embedding": TOKENS, "logit": OUTPUT}.get(name, name), position))
    coo = graph.effect.tocoo()
    there = abs(coo.data) > 1e-6 * abs(coo.data).max(initial=0)
    ways = nx.DiGraph(list(zip(coo.col[there].tolist(), coo.row[there].tolist(), strict=True)))
    roots = [node for node in ways if at[node][0] == TOKENS]
    ends = [node for node in ways if at[node][0] == OUTPUT]
    above = {*roots}.union(*(nx.descendants(ways, node) for node in roots))
    below = {*ends}.union(*(nx.ancestors(ways, node) for node in ends))
    lead = above & below
    kept = [one for one in ways.edges if lead.issuperset(one)]
    effect = abs(graph.effect).tocsr()
    entering = [0.0] * len(at)
    for source, target in kept:
        entering[target] += float(effect[target, source])
    found: dict[Edge, float] = {}
    for source, target in kept:
        edge = at[source], at[target]
        if edge[0] != edge[1]:
            found[edge] = found.get(edge, 0.0) + float(effect[target, source]) / entering[target]
    return found


def edges_at_random(
    layers: Mapping[str, int], last: int, count: int, generator: np.random.Generator
) -> dict[Edge, float]:
    """So many edges of one weight, of all that go up a layer or more and to no earlier position.

    Args:
        layers: of every variable that an MLP computes.
        last: position of the output.
        count: how many.
        generator: draws them.
    """
    layer = {TOKENS: -1, OUTPUT: 1 << 30, **layers}
    nodes = [(name, position) for name in (TOKENS, *sorted(layers)) for position in range(last + 1)]
    every = [
        (source, target)
        for source in nodes
        for target in [*nodes, (OUTPUT, last)]
        if layer[source[0]] < layer[target[0]] and source[1] <= target[1]
    ]
    chosen = generator.choice(len(every), min(count, len(every)), replace=False)
    return {every[at]: 1.0 for at in chosen}
