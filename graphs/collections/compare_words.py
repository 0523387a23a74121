"""A comparison of two graphs in words."""

from __future__ import annotations

from typing import Any

from graphs import words
from graphs.collections.compared import Compared
from graphs.collections.node_keys import explained_tokens
from graphs.graph import AttributionGraph
from graphs.schema import NodeKind

HOW = {
    "text": "positions go together by the text of their tokens",
    "end": "positions go together counted from the end",
    "anywhere": "features are the same wherever they fire, as in the viewer",
}


def sentences(found: Compared, count: int) -> list[str]:
    """What two graphs share, what one lacks and what changed.

    Args:
        found: the comparison.
        count: of nodes named in a list.

    Returns:
        Lines; shares in them are parts of the answer.
    """
    rows = found.nodes.to_pylist()
    features = [row for row in rows if row["kind"] == NodeKind.FEATURE]
    lines = [f"A: {asked(found.a)}", f"B: {asked(found.b)}"]
    lines.append(f"Matched: {HOW[found.align]}{_tokens(found)}.")
    lines.append(_counted(found, features))
    for status, what in (
        ("changed", "Changed"),
        ("only_a", "In A alone"),
        ("only_b", "In B alone"),
        ("shared", "Shared, most influential"),
    ):
        some = [row for row in rows if row["status"] == status and _told(row)]
        if status == "shared":
            some.sort(key=lambda row: -row["influence_a"] - row["influence_b"])
        if some:
            named = "; ".join(_node(row) for row in some[:count])
            more = f"; and {len(some) - count} more" if len(some) > count else ""
            lines.append(f"{what}: {named}{more}.")
    return lines + _turned(found, count)


def asked(graph: AttributionGraph) -> str:
    """A graph's prompt and answers."""
    prompt = words.visible(str(graph.metadata.get("prompt") or "".join(explained_tokens(graph))))
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == NodeKind.LOGIT]
    rows.sort(key=lambda row: -(row["probability"] or 0))
    answers = ", ".join(words.logit(row) for row in rows[:2])
    return f"“{words.clipped_front(prompt, 90)}” → {answers or 'no target'}"


def _told(row: dict[str, Any]) -> bool:
    """Errors are what no feature explains: counted, not named."""
    return row["kind"] != NodeKind.ERROR


def _tokens(found: Compared) -> str:
    """Where the prompts say different things."""
    texts = [explained_tokens(graph) for graph in (found.a, found.b)]
    apart = [pair for pair in found.columns if _text(texts, pair, 0) != _text(texts, pair, 1)]
    if not apart:
        return "; the prompts have the same tokens"
    shown = [" / ".join(_text(texts, pair, side) for side in (0, 1)) for pair in apart[:4]]
    more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
    return f"; they differ at {', '.join(shown)}{more}"


def _text(texts: list[list[str]], pair: tuple[int | None, int | None], side: int) -> str:
    at = pair[side]
    return "nothing" if at is None else f"“{words.token(texts[side][at])}”"


def _counted(found: Compared, features: list[dict[str, Any]]) -> str:
    both = [row for row in features if row["nodes_a"] and row["nodes_b"]]
    changed = sum(row["status"] == "changed" for row in both)
    alone = [sum(row["status"] == f"only_{letter}" for row in features) for letter in "ab"]
    edges = found.edges["status"].to_pylist()
    shared = sum(status in ("shared", "changed") for status in edges)
    text = (
        f"{len(both)} features in both, {changed} of them changed, {alone[0]} in A alone, "
        f"{alone[1]} in B alone; of the edges {shared} in both, {edges.count('only_a')} in A "
        f"alone, {edges.count('only_b')} in B alone. Features overlap by "
        f"{words.percent(found.overlap)} of their influence"
    )
    if found.align == "anywhere":
        return f"{text}."
    return f"{text}, {words.percent(found.overlap_anywhere)} wherever they fire."


def _node(row: dict[str, Any]) -> str:
    a, b = (words.percent(row[f"influence_{letter}"]) for letter in "ab")
    if row["nodes_a"] and row["nodes_b"]:
        return f"{row['name']} {a} → {b}"
    away = row["pruned_away"]
    note = "" if away is None else f" (pruned from the other, {words.percent(away)} there)"
    return f"{row['name']} {a if row['nodes_a'] else b}{note}"


def _turned(found: Compared, count: int) -> list[str]:
    """Edges that excite in one graph and inhibit in the other."""
    some = [
        row
        for row in found.edges.to_pylist()
        if row["edges_a"] and row["edges_b"] and row["weight_a"] * row["weight_b"] < 0
    ]
    if not some:
        return []
    some.sort(key=lambda row: -max(row["influence_a"], row["influence_b"]))
    named = "; ".join(
        f"{row['source']} {'→' if row['weight_a'] > 0 else '⊣'} {row['target']} in A, "
        f"{'→' if row['weight_b'] > 0 else '⊣'} in B"
        for row in some[:count]
    )
    return [f"Edges that turned sign ({len(some)}): {named}."]
