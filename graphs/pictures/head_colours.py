"""Edges by the head that carried them: which colour each has, and what the colours mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphs.attention_tables import edge_name
from graphs.attention_words import MOST
from graphs.schema import GraphError

HEADS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7")
"""Of the heads that carried most: Okabe and Ito's, which colour-blind readers tell apart
(`tests/test_graphs_picture_heads.py`)."""
SEVERAL, STAYS, UNSPLIT = "#3a3a3a", "#b8b8b8", "#d9d9d9"
ALPHA = ("", "cc", "66")
"""Of strong, middle and weak edges."""
NO_TABLE = (
    "the graph does not say which heads carried its edges: split them first, with "
    "tracer heads FOLDER or tracer.head_loadings(model, graph)"
)


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carried an edge."""

    name: str
    """`head 3.4`, or one of the classes below."""
    share: float
    """Of the edge, by the head that carried most; may be above 1 where others take away."""
    head: str
    """That head, `3.4`; empty where no head carried anything."""


SEVERAL_NAME, STAYS_NAME = "several heads, or another one", "stays at its position"
UNSPLIT_NAME = "not split over heads"


@dataclass(frozen=True, slots=True, eq=False)
class HeadColours:
    """The edges of a picture, by what carried them."""

    carriers: list[Carrier]
    """One an edge of the graph."""
    colours: dict[str, str]
    """Name of a head or a class -> its colour, in the order of the legend."""

    def colour(self, edge: int, strength: int) -> str:
        """Colour of an edge; `strength` is 0 strong, 1 middle, 2 weak.

        Returns:
            `#rrggbb`, with its opacity behind where that is below one.
        """
        found = self.colours.get(self.carriers[edge].name, SEVERAL)
        return found + ALPHA[strength]

    def said(self, edge: int) -> str:
        """What carried an edge, for a tooltip."""
        one = self.carriers[edge]
        if not one.head:
            return one.name
        return f"{one.name}: {one.head} carries {100 * one.share:.0f}% of it"


def head_colours(
    nodes: pa.Table, edges: pa.Table, heads: pa.Table | None, drawn: np.ndarray
) -> HeadColours:
    """Which head carried each edge, and colours for those that carried most of what is drawn.

    An edge belongs to the head that carries most of it at any layer, if that is half of it or more.
    Others that lead from one position to another went through several heads, or are not in the
    table; those that do not stay where they are.

    Args:
        nodes: of a graph.
        edges: of a graph, as `graphs.edges.edge_table` gives them.
        heads: the table of that name.
        drawn: rows of `edges` that the picture shows.

    Returns:
        A carrier an edge, and at most `len(HEADS)` heads with colours of their own.

    Raises:
        GraphError: there is no table.
    """
    if heads is None:
        raise GraphError(NO_TABLE)
    best = _split(heads)
    ids, position = nodes["id"].to_pylist(), nodes["position"].to_pylist()
    columns = (edges[name].to_pylist() for name in ("source", "target", "weight"))
    carriers = []
    for source, target, weight in zip(*columns, strict=True):
        name = edge_name(ids[source], ids[target])
        head, share = _most(best.get(name, ()), weight)
        if share >= MOST:
            known = f"head {head}"
        elif position[source] == position[target]:
            known = STAYS_NAME
        else:
            known = SEVERAL_NAME if name in best else UNSPLIT_NAME
        carriers.append(Carrier(known, share, head))
    return HeadColours(carriers, _legend(carriers, edges["influence"].to_pylist(), drawn))


def _split(heads: pa.Table) -> dict[str, list[tuple[str, float]]]:
    """Edge -> heads with what each carries of it, of all layers."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    rows = heads.filter(pc.is_null(heads["query"]))
    columns = (rows[name].to_pylist() for name in ("edge", "layer", "head", "loading"))
    for edge, layer, head, loading in zip(*columns, strict=True):
        mine = found[edge]
        if head >= 0:
            mine.append((f"{layer}.{head}", loading))
    return found


def _most(split: Sequence[tuple[str, float]], weight: float) -> tuple[str, float]:
    """The head that carries most of an edge at any layer, and its share of the edge."""
    shares = [(head, loading / weight) for head, loading in split] if weight else []
    return max(shares, key=lambda one: one[1], default=("", 0.0))


def _legend(carriers: list[Carrier], influence: list[float], drawn: np.ndarray) -> dict[str, str]:
    """Colours of what is drawn: heads by the influence of their edges, then the classes."""
    carried: dict[str, float] = defaultdict(float)
    for row in drawn.tolist():
        carried[carriers[row].name] += influence[row]
    named = [name for name in carried if name.startswith("head ")]
    named.sort(key=lambda name: (-carried[name], name))
    found = dict(zip(named, HEADS, strict=False))
    if SEVERAL_NAME in carried or len(named) > len(HEADS):
        found[SEVERAL_NAME] = SEVERAL
    classes = ((STAYS_NAME, STAYS), (UNSPLIT_NAME, UNSPLIT))
    return found | {name: colour for name, colour in classes if name in carried}
