"""What the graphs of a dataset have in common, in words."""

from typing import Any

from graphs import words
from graphs.collections.incidence import OTHERS
from graphs.schema import NodeKind


def in_words(row: dict[str, Any]) -> str:
    """A node of many graphs in a few words.

    Args:
        row: of `Incidence.nodes`.

    >>> in_words({"kind": "feature", "site": "mlp_out.0", "layer": 0, "name": "7", "column": 2,
    ...           "label": "Texas, TX · Dallas"})
    'Texas, TX (L0/7, 2 before the end)'
    """
    column, name = row["column"], name_of(row)
    at = "" if column is None else f", {place(column)}"
    if row["kind"] == NodeKind.LOGIT:
        return name
    if row["kind"] == NodeKind.EMBEDDING:
        return f"“{name}”" if column is None else f"{name}{at}"
    number = f"/{row['name']}" if row["kind"] == NodeKind.FEATURE else ""
    of = " of attention" if row["site"].startswith("attn_out") else ""
    return f"{name} (L{row['layer']}{number}{of}{at})"


def name_of(row: dict[str, Any]) -> str:
    """What a node of many graphs is called, without its place."""
    if row["kind"] == NodeKind.FEATURE:
        return words.label_parts(row["label"])[0] or f"feature {row['name']}"
    if row["kind"] == NodeKind.EMBEDDING:
        return words.token(row["name"]) if row["column"] is None else "token"
    return "error" if row["kind"] == NodeKind.ERROR else str(row["name"])


def place(column: int) -> str:
    """A distance from the last token in words."""
    return "at the end" if column == 0 else f"{column} before the end"


def interval(row: dict[str, Any], middle: str, low: str, high: str) -> str:
    """A share and its interval.

    >>> interval({"a": 0.5, "b": 0.25, "c": 0.75}, "a", "b", "c")
    '50% (25% to 75%)'
    """
    return f"{words.percent(row[middle])} ({words.percent(row[low])} to {words.percent(row[high])})"


def summary(
    group: str, prompts: int, share: float, nodes: list[dict[str, Any]], edges: list[dict[str, Any]]
) -> str:
    """What a consensus circuit is made of.

    Args:
        group: its name.
        prompts: graphs of the group.
        share: of them, that hold each node and edge at least.
        nodes: of the circuit.
        edges: of the circuit.
    """
    kinds = [row["kind"] for row in nodes if row["name"] != OTHERS]
    counted = ", ".join(
        f"{kinds.count(kind)} {what}"
        for kind, what in (
            (NodeKind.FEATURE, "features"),
            (NodeKind.EMBEDDING, "tokens"),
            (NodeKind.ERROR, "errors"),
        )
    )
    return (
        f"{words.visible(group)}: {prompts} graphs; at least {words.percent(share)} of them hold "
        f"{counted} and {len(edges)} edges"
    )
