"""Printing: tables aligned on a terminal, with tabs elsewhere, and what several commands print."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracer.commands.say import say, say_table

if TYPE_CHECKING:
    from torch import Tensor

    from tracer import AttributionGraph, ReplacementModel

INHIBITS = "⊣"
FEATURE_ID = re.compile(r"(\d+)_(\d+)_(\d+)")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table and an empty line: aligned on a terminal, with tabs elsewhere."""
    lines = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        say_table(columns, lines)
        return
    for line in [columns, *lines] if columns else lines:
        say(*line)
    say()


def cell(value: object) -> str:
    """Show floats with four digits and everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quoted(token: str) -> str:
    """Show a token with its spaces, on one line."""
    return json.dumps(token, ensure_ascii=False)


def nodes_of(graph: "AttributionGraph", value: str, column: str = "kind") -> list[dict[str, Any]]:
    """Rows of the node table of one kind, or with another value in another column."""
    from pyarrow import compute

    return graph.nodes.filter(compute.equal(graph.nodes[column], value)).to_pylist()


def print_summary(graph: "AttributionGraph") -> None:
    """Print what the graph explains, and how much of it."""
    from graphs import words

    tokens = map(quoted, graph.metadata.get("tokens", []))
    targets = (
        f"{quoted(node['text'] or node['label'])} {node['probability']:.4g}"
        for node in nodes_of(graph, "logit")
    )
    features, errors = len(nodes_of(graph, "feature")), len(nodes_of(graph, "error"))
    scores = words.scores(graph.scores, graph.metadata, 4)
    beyond = (
        "not reached when interrupted" if "partial" in graph.metadata else "beyond --max-features"
    )
    rows = [
        ("tokens", " ".join(tokens)),
        ("explained", ", ".join(targets)),
        ("graph", f"{features} features, {errors} errors, {graph.effect.nnz} edges"),
        ("replacement score", scores["replacement"]),
        ("completeness score", scores["completeness"]),
        ("uncovered", f"{scores['uncovered']} of the influence ends in features {beyond}"),
    ]
    if steering := words.steering(graph.metadata.get("pruned", {})):
        rows.append(("pruned", steering.removeprefix("; ")))
    if dropped := graph.metadata.get("floored_share"):
        rows.append(("below the edge floor", f"{dropped:.2%} of all absolute effects"))
    if worst := graph.metadata.get("conservation"):
        where = f"of the largest pre-activation, in {row_name(graph, worst['node'])}"
        rows.append(("conservation error", f"at worst {worst['relative']:.1e} {where}"))
    print_table((), rows)


def row_name(graph: "AttributionGraph", name: str) -> str:
    """Say which feature or logit an id names, as in `feature L3/277 (Texas, TX) at “is”`.

    Of a feature that pruning has dropped the label is unknown.
    """
    from graphs import words

    found = nodes_of(graph, name, "id")
    if found and found[0]["kind"] == "logit":
        return f"logit {words.word(found[0])}"
    parts = FEATURE_ID.fullmatch(name)
    if parts is None:
        return name
    layer, feature, position = (int(part) for part in parts.groups())
    label = words.label_parts(found[0]["label"])[0] if found else ""
    shown = f"feature L{layer}/{feature}" + (f" ({label})" if label else "")
    tokens = graph.metadata.get("tokens", [])
    known = position < len(tokens)
    return f"{shown} at " + (f"“{words.token(tokens[position])}”" if known else str(position))


def print_paths(graph: "AttributionGraph", count: int) -> None:
    """Print the strongest paths from a token or an error to a logit, in words."""
    paths = [graph.describe(path) for path in (graph.paths(count) if count else [])]
    if any(INHIBITS in path for path in paths):
        paths.insert(0, f"({INHIBITS} inhibits: the effect is negative)")
    print_table(
        ("strongest paths, and what part of the answer each carries",), [(path,) for path in paths]
    )


def print_answers(
    model: "ReplacementModel", answers: "Sequence[tuple[str, Tensor]]", count: int = 5
) -> None:
    """Print the likeliest next tokens of one or more runs side by side.

    Args:
        model: which model's tokens they are.
        answers: heading and logits (V,) of each run.
        count: how many tokens.
    """
    header, columns = [], []
    for heading, logits in answers:
        top = logits.softmax(-1).topk(min(count, len(logits)))
        header += [heading, "probability"]
        columns.append([quoted(model.token_string(token)) for token in top.indices.tolist()])
        columns.append(top.values.tolist())
    print_table(header, zip(*columns, strict=True))


def print_verdict(metadata: Mapping[str, Any]) -> None:
    """Print what a validation amounts to, where there was one."""
    from graphs.validation_summary import sentences

    text = sentences(metadata)
    if text is not None:
        print_table((), [("verdict", text)])


def print_validation(summary: dict[str, Any]) -> None:
    """Print how far to believe a graph."""
    from graphs.validation_summary import tables

    for columns, rows in tables(summary):
        print_table(columns, rows)
