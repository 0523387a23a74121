"""What graphs say, as lines for whoever cannot look at them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphs import AttributionGraph, GraphError, NodeKind, validation_summary, words
from graphs.attention_tables import edge_ends
from graphs.attention_words import Names, edges_by_name

SIGNS = {"all": None, "exciting": 1, "suppressing": -1}


def names_of(graph: AttributionGraph) -> Names:
    """Node ids in words."""
    return Names(graph.nodes, graph.metadata.get("tokens", []))


def graph_lines(graph: AttributionGraph, features: int, paths: int) -> list[str]:
    """A graph: what it is of, its scores, its strongest features and paths."""
    about, rows = graph.metadata, graph.nodes.to_pylist()
    tokens = enumerate(about.get("tokens", []))
    answers = [words.logit(row) for row in rows if row["kind"] == NodeKind.LOGIT]
    kinds = [row["kind"] for row in rows]
    scores = words.scores(graph.scores, about, 3)
    lines = [
        f"prompt: {about.get('prompt')}",
        f"tokens: {', '.join(f'{at} “{words.token(text)}”' for at, text in tokens)}",
        f"model: {about.get('model')}; dictionary: {about.get('transcoders')}",
        f"explained: {', '.join(answers)}",
        f"{kinds.count('feature')} features, {kinds.count('error')} errors, "
        f"{graph.effect.nnz} edges",
        f"replacement score {scores['replacement']}, completeness {scores['completeness']}, "
        f"uncovered {scores['uncovered']}",
    ]  # fmt: skip
    if verdict := validation_summary.sentences(about):
        lines.append(f"validated: {verdict}")
    lines.append("strongest features (id, influence, what):")
    lines += [_feature(row, names_of(graph)) for row in strongest(graph, features)]
    return [*lines, "strongest paths, with their part of the answer:", *path_lines(graph, paths)]


def strongest(graph: AttributionGraph, count: int) -> list[dict[str, Any]]:
    """Features by influence."""
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == NodeKind.FEATURE]
    return sorted(rows, key=lambda row: -row["influence"])[:count]


def _feature(row: Mapping[str, Any], names: Names) -> str:
    return f"  {row['id']}  {row['influence']:.4f}  {names(row['id'])}"


def path_lines(graph: AttributionGraph, count: int, kind: str = "all") -> list[str]:
    """The strongest paths, each with the ids on it."""
    ids = graph.nodes["id"].to_pylist()
    found = []
    for path in graph.paths(count, SIGNS[kind]):
        found.append(f"  {graph.describe(path)}  [{' '.join(ids[at] for at in path.nodes)}]")
    return found or ["  none"]


def node_lines(graph: AttributionGraph, name: str, top: int) -> list[str]:
    """A node with its strongest inputs and outputs.

    Raises:
        GraphError: the graph has no node of this id.
    """
    ids = graph.nodes["id"].to_pylist()
    if name not in ids:
        raise GraphError(f"no node has the id {words.visible(name)[:80]!r}: take ids from show, "
                         "paths or search")  # fmt: skip
    at, names = ids.index(name), names_of(graph)
    row = graph.nodes.slice(at, 1).to_pylist()[0]
    numbers = ("activation", "pre_activation", "influence", "left_out", "constant")
    lines = [
        f"{name}: {names(name)}",
        f"{row['kind']}, position {row['position']}, layer {row['layer']}",
        ", ".join(f"{one} {row[one]:.4g}" for one in numbers if row[one] is not None),
    ]
    if row["label"]:
        lines.append(f"label: {row['label']}")
    known = graph.metadata.get("labels")
    truth = known.get(f"{row['layer']}/{row['feature']}") if isinstance(known, dict) else None
    if isinstance(truth, dict) and isinstance(truth.get("f1"), float):
        lines.append(f"label's F1: {truth['f1']:.2f}")
    table = graph.edges
    for what, here, there in (("inputs", "target", "source"), ("outputs", "source", "target")):
        rows = table.filter(np.asarray(table[here]) == at).to_pylist()
        rows.sort(key=lambda edge: -edge["influence"])
        lines.append(f"{what}: {len(rows)}, the strongest first (effect, part of the target's "
                     "input, influence):")  # fmt: skip
        lines += [
            f"  {ids[edge[there]]}  {edge['weight']:+.4g}  {100 * edge['share']:+.1f}%  "
            f"{edge['influence']:.4f}  {names(ids[edge[there]])}"
            for edge in rows[:top]
        ]
    return lines


def labelled_lines(graph: AttributionGraph, query: str, top: int) -> list[str]:
    """Nodes whose words hold a query, by influence."""
    names = names_of(graph)
    rows = sorted(graph.nodes.to_pylist(), key=lambda row: -row["influence"])
    wanted = query.casefold()
    found = [row for row in rows if wanted in f"{names(row['id'])} {row['label']}".casefold()]
    lines = [f"{len(found)} nodes match (id, influence, what):"]
    return lines + [_feature(row, names) for row in found[:top]]


def head_lines(graph: AttributionGraph, top: int) -> list[str]:
    """The heads that carried most of the strongest edges."""
    assert graph.heads is not None
    names, edges = names_of(graph), edges_by_name(graph.nodes, graph.edges)
    rows = [
        row for row in graph.heads.to_pylist()
        if row["query"] is None and row["head"] >= 0 and row["edge"] in edges
    ]  # fmt: skip
    rows.sort(key=lambda row: -abs(row["loading"] / edges[row["edge"]][0]) * edges[row["edge"]][1])
    lines = ["heads that carried most (layer.head, part of the edge, edge):"]
    return lines + [
        f"  {row['layer']}.{row['head']}  {row['loading'] / edges[row['edge']][0]:.0%}  "
        + " → ".join(names(end) for end in edge_ends(row["edge"]))
        for row in rows[:top]
    ]


def bounded(lines: Iterable[str], limit: int) -> str:
    r"""Lines as one text of at most `limit` characters, everything in it to be seen.

    What does not fit is left out at the end, and said so.

    >>> bounded(["one", "two\x1b[2J", "three" * 30], 90)
    'one\ntwo␛[2J\\n(1 more line left out: ask for fewer, or for one node)'
    """
    shown = [words.visible(line) for line in lines]
    text = "\n".join(shown)
    if len(text) <= limit:
        return text
    room, kept = limit - 60, 0
    used = 0
    while kept < len(shown) and used + len(shown[kept]) + 1 <= room:
        used += len(shown[kept]) + 1
        kept += 1
    if not kept:
        return words.clipped(shown[0], limit)
    rest = len(shown) - kept
    note = f"({rest} more line{'s' * (rest > 1)} left out: ask for fewer, or for one node)"
    return "\n".join([*shown[:kept], note])
