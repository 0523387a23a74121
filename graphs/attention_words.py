"""Tables about attention in words: which heads carried an edge, and why they looked there."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from graphs import words
from graphs.attention_tables import LEFT, edge_ends, edge_name
from graphs.schema import NodeKind

CONSTANTS = {
    "constant.positions": "learned positions",
    "constant.biases": "biases",
    "constant.skipped": "positions without nodes",
    "sink": "the head's sink",
    LEFT: "the rest",
}
NODE = re.compile(r"(\d+)_(-1|\d+)_(\d+)")
TOKEN = re.compile(r"E_(\d+)_(\d+)")
Cell = tuple[int, int, int, int]
"""Layer, head, query, key."""
MOST = 0.5
"""A head that carries this share of an edge carried it."""
NAMED, HALF = 2, 0.5
"""Nodes that words name on a side, at most, and what part of the strongest the second has."""


class Names:
    """Node ids of one graph in words, those of nodes that it does not have too."""

    def __init__(self, nodes: pa.Table, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.rows = {row["id"]: row for row in nodes.to_pylist()}
        self.often = {token for token, count in Counter(self.tokens).items() if count > 1}

    def token(self, position: int) -> str:
        """The token of a position.

        Returns:
            The token in quotes, or the position's number where it is unknown.
        """
        if position < len(self.tokens):
            return f"“{words.token(self.tokens[position])}”"
        return f"position {position}"

    def at(self, position: int) -> str:
        """A position by its token.

        Returns:
            The token in quotes, with the position's number where the prompt has it several times.
        """
        repeated = position < len(self.tokens) and self.tokens[position] in self.often
        return self.token(position) + (f" ({position})" if repeated else "")

    def __call__(self, name: str) -> str:
        """A node in a few words."""
        if name in self.rows:
            row = self.rows[name]
            said, place = words.node(row, self.tokens), row["position"]
            if row["kind"] == NodeKind.LOGIT or self.at(place) == self.token(place):
                return said
            if row["kind"] == NodeKind.EMBEDDING:
                return self.at(place)
            return said.removesuffix(f"{self.token(place)})") + f"{self.at(place)})"
        if name in CONSTANTS:
            return CONSTANTS[name]
        if found := TOKEN.fullmatch(name):
            return self.at(int(found[2]))
        found = NODE.fullmatch(name)
        if found is None:
            return words.visible(name)
        what = "error" if found[2] == "-1" else f"feature {found[2]}"
        return f"{what} (L{found[1]}, at {self.at(int(found[3]))})"


def strongest_cells(
    heads: pa.Table, edges: Mapping[str, tuple[float, float]], count: int
) -> list[tuple[Cell, float]]:
    """Where attention mattered most to a graph.

    Args:
        heads: the table of that name.
        edges: of the graph, by name: weight, and influence in units of the targets' weights.
        count: at most so many.

    Returns:
        Layer, head, query and key with the influence of the edges that went there, each times the
        share of the edge that did; largest first.
    """
    sums: dict[Cell, float] = defaultdict(float)
    for row in heads.to_pylist():
        if row["query"] is None or row["edge"] not in edges:
            continue
        weight, influence = edges[row["edge"]]
        place = (row["layer"], row["head"], row["query"], row["key"])
        sums[place] += abs(row["loading"] / weight) * influence if weight else 0.0
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:count]


def edges_by_name(nodes: pa.Table, edges: pa.Table) -> dict[str, tuple[float, float]]:
    """Weight and influence of every edge by the name it has in `heads`.

    Returns:
        Name -> weight in units of the target, influence in units of the targets' weights.
    """
    ids = nodes["id"].to_pylist()
    columns = (edges[name].to_pylist() for name in ("source", "target", "weight", "influence"))
    return {
        edge_name(ids[source], ids[target]): (weight, influence)
        for source, target, weight, influence in zip(*columns, strict=True)
    }


def carried(
    tables: Mapping[str, pa.Table], names: Names, routes: Sequence[Sequence[str]]
) -> list[str]:
    """What carried the edges of some paths from position to position, and why it looked there.

    Args:
        tables: about attention.
        names: of the graph's nodes.
        routes: node ids of each path, from root to logit.

    Returns:
        A line an edge, each edge once, in the order of the paths; edges that the table `heads` does
        not split, or that no head carries, are left out.
    """
    return [line for line, _ in _told(tables, names, routes)]


def unexplained(
    tables: Mapping[str, pa.Table], names: Names, routes: Sequence[Sequence[str]]
) -> list[Cell]:
    """Where heads looked that carried edges of some paths, and nobody has explained it yet.

    Args:
        tables: about attention.
        names: of the graph's nodes.
        routes: node ids of each path, from root to logit.

    Returns:
        Layer, head, query and key, each once, in the order of the paths.
    """
    known = _reasons(tables, names)
    cells = (cell for _, cell in _told(tables, names, routes) if cell is not None)
    return [cell for cell in dict.fromkeys(cells) if cell not in known]


def _told(
    tables: Mapping[str, pa.Table], names: Names, routes: Sequence[Sequence[str]]
) -> list[tuple[str, Cell | None]]:
    """A line and a cell for every edge that heads carried."""
    if "heads" not in tables:
        return []
    edges = dict.fromkeys(edge_name(*pair) for route in routes for pair in pairwise(route))
    split: dict[str, list[dict[str, Any]]] = {edge: [] for edge in edges}
    for row in tables["heads"].to_pylist():
        if row["edge"] in split:
            split[row["edge"]].append(row)
    reasons, said = _reasons(tables, names), set[Cell]()
    lines: list[tuple[str, Cell | None]] = []
    for edge, rows in split.items():
        text, cell = _carriage(edge, rows, names)
        if cell is not None:
            text += f", looking from {names.at(cell[2])} at {names.at(cell[3])}"
            if cell in reasons:
                text += ", as above" if cell in said else f" because of {reasons[cell]}"
            said.add(cell)
        if text:
            lines.append((text, cell))
    return lines


def _carriage(
    edge: str, rows: Sequence[Mapping[str, Any]], names: Names
) -> tuple[str, Cell | None]:
    """The head that carried most of an edge between two positions, and where it looked.

    Nothing of edges that no head carried, or that stay at their position.
    """
    source, target = edge_ends(edge)
    whole = [row for row in rows if row["query"] is None]
    moved = [row for row in whole if row["head"] >= 0]
    if not moved or _position(names, source) == _position(names, target):
        return "", None
    weight = sum(row["loading"] for row in whole if row["layer"] == moved[0]["layer"])
    best = max(moved, key=lambda row: row["loading"] * np.sign(weight))
    here = [row for row in moved if row["layer"] == best["layer"] and row is not best]
    others = sorted(here, key=lambda row: -abs(row["loading"]))[:2]
    share = best["loading"] / weight if weight else 0.0
    text = f"{names(source)} → {names(target)}: head {best['layer']}.{best['head']} carries "
    text += f"{best['loading']:.3g} of {weight:.3g}"
    if others:
        beside = (f"{row['layer']}.{row['head']} {row['loading']:.3g}" for row in others)
        text += f" (beside it {', '.join(beside)})"
    if share < MOST:
        text += ", no head half of it"
    cells = [
        row
        for row in rows
        if row["query"] is not None and (row["layer"], row["head"]) == (best["layer"], best["head"])
    ]
    if not cells:
        return text, None
    cell = max(cells, key=lambda row: abs(row["loading"]))
    return text, (cell["layer"], cell["head"], cell["query"], cell["key"])


def _position(names: Names, name: str) -> int | None:
    row = names.rows.get(name)
    return None if row is None else int(row["position"])


def named(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Nodes of one side that words give as a reason for where a head looked.

    Features come before tokens and errors, which say less; what makes the head look elsewhere is
    never named, nor are constants.

    Args:
        rows: node and weight of every marginal of the side.

    Returns:
        At most `NAMED` ids with their weights, strongest first: the strongest feature and the next
        where that has `HALF` of its weight; where no feature has any, the strongest other node.
        Empty where nothing speaks for the place.
    """
    found = [(row["node"], row["weight"]) for row in rows if row["node"] not in CONSTANTS]
    found = sorted((one for one in found if one[1] > 0), key=lambda one: -one[1])
    features = [one for one in found if (at := NODE.fullmatch(one[0])) and at[2] != "-1"]
    chosen = (features or found[:1])[:NAMED]
    return [one for one in chosen if one[1] >= HALF * chosen[0][1]]


def _reasons(tables: Mapping[str, pa.Table], names: Names) -> dict[Cell, str]:
    """Why heads looked where they did, as far as it has been explained."""
    if "attention" not in tables:
        return {}
    sides: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in tables["attention_marginals"].to_pylist():
        sides[row["explanation"], row["side"]].append(row)
    found: dict[Cell, str] = {}
    for row in tables["attention"].to_pylist():
        number = row["explanation"]
        query, key = (
            " and ".join(names(node) for node, _ in named(sides[number, side])) for side in "qk"
        )
        parts = [f"{query} where it looks from" if query else "", key]
        why = " and ".join(part for part in parts if part)
        if not why:
            continue
        place = (row["layer"], row["head"], row["query"], row["key"])
        loud = "; parts cancel" if row["cancellation"] > 10 else ""
        odds = row["log_odds"]
        said = f" (log-odds {odds:.2g} against other keys{loud})" if np.isfinite(odds) else ""
        found[place] = why + said
    return found
