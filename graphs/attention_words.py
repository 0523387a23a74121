"""Tables about attention in words: which heads carried an edge, and why they looked there."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from graphs import words
from graphs.attention_tables import LEFT, edge_ends, edge_name

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


class Names:
    """Node ids of one graph in words, those of nodes that it does not have too."""

    def __init__(self, nodes: pa.Table, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.rows = {row["id"]: row for row in nodes.to_pylist()}

    def at(self, position: int) -> str:
        """A position by its token.

        Returns:
            The token in quotes, or the number where it is unknown.
        """
        if position < len(self.tokens):
            return f"“{words.token(self.tokens[position])}”"
        return f"position {position}"

    def __call__(self, name: str) -> str:
        """A node in a few words."""
        if name in self.rows:
            return words.node(self.rows[name], self.tokens)
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
    if "heads" not in tables:
        return []
    wanted = {edge_name(*pair) for route in routes for pair in pairwise(route)}
    split: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tables["heads"].to_pylist():
        if row["edge"] in wanted and row["head"] >= 0:
            split[row["edge"]].append(row)
    reasons = _reasons(tables, names)
    lines = {}
    for route in routes:
        for pair in pairwise(route):
            edge = edge_name(*pair)
            if edge not in lines and (line := _line(edge, split[edge], names, reasons)):
                lines[edge] = line
    return list(lines.values())


def _line(
    edge: str,
    rows: Sequence[Mapping[str, Any]],
    names: Names,
    reasons: Mapping[Cell, str],
) -> str | None:
    """The head that carried most of an edge between two positions."""
    source, target = edge_ends(edge)
    moved = [row for row in rows if row["query"] is None]
    if not moved or _position(names, source) == _position(names, target):
        return None
    best = max(moved, key=lambda row: abs(row["loading"]))
    here = [row for row in moved if row["layer"] == best["layer"]]
    others = sorted(here, key=lambda row: -abs(row["loading"]))[1:3]
    cells = [
        row
        for row in rows
        if row["query"] is not None and (row["layer"], row["head"]) == (best["layer"], best["head"])
    ]
    text = f"{names(source)} → {names(target)}: head {best['layer']}.{best['head']} carries "
    text += f"{best['loading']:.3g}"
    if others:
        beside = (f"{row['layer']}.{row['head']} {row['loading']:.3g}" for row in others)
        text += f" (beside it {', '.join(beside)})"
    if cells:
        cell = max(cells, key=lambda row: abs(row["loading"]))
        place = (cell["layer"], cell["head"], cell["query"], cell["key"])
        text += f", looking from {names.at(cell['query'])} at {names.at(cell['key'])}"
        if place in reasons:
            text += f" because of {reasons[place]}"
    return text


def _position(names: Names, name: str) -> int | None:
    row = names.rows.get(name)
    return None if row is None else int(row["position"])


def _reasons(tables: Mapping[str, pa.Table], names: Names) -> dict[Cell, str]:
    """Why heads looked where they did, as far as it has been explained."""
    if "attention" not in tables:
        return {}
    sides: dict[tuple[int, str], tuple[str, float]] = {}
    for row in tables["attention_marginals"].to_pylist():
        side = (row["explanation"], row["side"])
        listed = row["node"] not in CONSTANTS
        if listed and row["weight"] > sides.get(side, ("", 0.0))[1]:
            sides[side] = (row["node"], row["weight"])
    found: dict[Cell, str] = {}
    for row in tables["attention"].to_pylist():
        number = row["explanation"]
        query, key = sides.get((number, "q")), sides.get((number, "k"))
        if query is None or key is None:
            continue
        place = (row["layer"], row["head"], row["query"], row["key"])
        loud = "; parts cancel" if row["cancellation"] > 10 else ""
        odds = row["log_odds"]
        said = f" (log-odds {odds:.2g} against other keys{loud})" if np.isfinite(odds) else ""
        found[place] = f"{names(query[0])} where it looks from and {names(key[0])}{said}"
    return found
