"""The summary of a validation, as stored in a graph's metadata, as text to read.

What an older version stored, without a verdict or anything held, can be read as well.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FARTHEST = 3
"""Layers on from a zeroed feature that are shown; the file of responses has all."""
HEADINGS = {"nothing": "free", "attention": "attention held", "attention and norms": "norms too"}
"""What was held while measuring."""
BASELINES = "what influence must beat: activation; activation x decoder x target"


class Table(NamedTuple):
    """Headings, and rows of as many cells."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sentences(metadata: Mapping[str, Any]) -> str | None:
    """The verdict on a graph's circuit; None where there is none."""
    return _verdict(metadata).get("text")


def subtitle(metadata: Mapping[str, Any]) -> str | None:
    """The verdict in a few words, for a picture; None where no circuit was measured.

    A picture of other thresholds than the circuit's is told which circuit is meant.
    """
    verdict = _verdict(metadata)
    short = verdict.get("short")
    if short is None:
        return None
    shown = metadata.get("pruned") or {}
    names = ("nodes", "edges", "keep_attention")
    same = all(shown.get(name) == verdict.get(name) for name in names)
    which = "" if same else f" (of thresholds {verdict['nodes']:g} and {verdict['edges']:g})"
    return f"{short}{which}"


def _verdict(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (metadata.get("validation") or {}).get("verdict") or {}
    return found


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Everything a summary holds, in reading order.

    Args:
        summary: what `tracer.validate` stores under `metadata["validation"]`.

    Returns:
        Evidence, what circuits keep, responses, and rank correlations.
    """
    if "verdict" in summary:
        yield Table(
            ("evidence", "", "control", ""),
            [
                (one["kind"], _number(one["value"]), _number(one["control"]), one["says"])
                for one in summary["verdict"]["evidence"]
            ],
        )
    kept = summary.get("faithfulness")
    if kept is not None:
        yield _circuits(kept)
    if summary["responses"]:
        yield _responses(summary["responses"], summary.get("first_order") or {})
    yield _ranks(summary)
    resampled = [*summary.get("scrubbing", []), *summary.get("resample_ablation", [])]
    if resampled:
        yield Table(
            ("survives resampling", "", ""),
            [
                (one["name"], _number(one["survives"]), _quartiles(one.get("spread")))
                for one in resampled
            ],
        )


def _circuits(kept: Mapping[str, Any]) -> Table:
    held = kept.get("held") or {"nothing": kept}
    size = f"{kept['features']} features, {kept['errors']} errors"
    rows = [
        ("circuit keeps", "circuit"),
        ("  above nothing kept", "above_empty"),
        ("  silent features left", "silent_left"),
        ("  without its errors", "without_errors"),
        ("  random circuits", "random_spread"),
        ("  the rest of the graph", "rest"),
        ("  nothing kept", "empty"),
        ("  share of nodes that matter", "minimal"),
    ]
    return Table(
        (f"of a lead of {kept['clean']:.3g} logits; {size}", *(HEADINGS[name] for name in held)),
        [(name, *(_cell(part.get(key)) for part in held.values())) for name, key in rows],
    )


def _responses(measured: Mapping[str, Any], answering: Mapping[str, Any]) -> Table:
    distances = list(dict.fromkeys(one for steps in measured.values() for one in steps))[:FARTHEST]
    rows: list[tuple[str, ...]] = [
        (f"{distance} on", *(_cosine(steps.get(distance)) for steps in measured.values()))
        for distance in distances
    ]
    beside = [row[: 1 + len(measured)] for row in _answers(answering)]
    return Table(
        ("cosine of predicted and measured response", *(HEADINGS[name] for name in measured)),
        [*rows[:1], *beside, *rows[1:]],
    )


def _answers(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cosine one layer on of the free response, predicted with all first-order effects."""
    found: list[tuple[str, ...]] = [
        (f"  {kind}", _cosine(steps.get("1")), "", "") for kind, steps in measured.items()
    ]
    return found[-1:]


def _cosine(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = {"lower": row.get("cosine_lower"), "upper": row.get("cosine_upper")}
    return f"{_number(row['cosine'])} {_quartiles(spread)}".strip()


def _ranks(summary: Mapping[str, Any]) -> Table:
    ranks = summary["spearman"]
    baselines = f"{_number(ranks['activation'])} {_number(ranks['direct'])}"
    between = f"median of {ranks['feature_targets']} target features"
    between = f"{between} {_quartiles(ranks.get('feature_spread'))}".strip()
    return Table(
        ("rank correlation with the effect of zeroing", "", ""),
        [
            ("Spearman, influence", _number(ranks["influence"]), f"{summary['features']} features"),
            ("  top half alone", _number(ranks["top_half"]), "the half with most influence"),
            ("  feature to feature", _number(ranks["feature_to_feature"]), between),
            (
                "  baselines",
                baselines,
                BASELINES,
            ),
        ],
    )


def _cell(value: Any) -> str:
    """A number, or a spread as its median and quartiles."""
    if isinstance(value, Mapping):
        return f"{_number(value.get('median'))} {_quartiles(value)}".strip()
    return _number(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _quartiles(spread: Mapping[str, Any] | None) -> str:
    """Lower and upper quartile in brackets; nothing where they are unknown."""
    if not spread or spread.get("lower") is None or spread.get("upper") is None:
        return ""
    return f"({spread['lower']:.2f} to {spread['upper']:.2f})"
