"""The summary of a validation, as stored in a graph's metadata, as lines to read."""

from collections.abc import Iterator, Mapping
from typing import Any


def rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str]]:
    """Everything a summary holds, in reading order.

    Args:
        summary: what `tracer.validate` stores under `metadata["validation"]`.

    Returns:
        (what, value, what it means) a line; the value is None where it was not measured.
    """
    ranks = summary["spearman"]
    yield "Spearman, influence", ranks["influence"], f"{summary['features']} features"
    yield "  top half alone", ranks["top_half"], "the half with most influence"
    yield (
        "  feature to feature",
        ranks["feature_to_feature"],
        (f"median of {ranks['feature_targets']} target features"),
    )
    yield "  baseline: activation", ranks["activation"], "what influence must beat"
    yield "  baseline: direct", ranks["direct"], "activation x decoder x target"
    for frozen, steps in summary["responses"].items():
        for distance, row in steps.items():
            held = "" if frozen == "nothing" else f", {frozen} frozen"
            median = f"median {row['cosine_median']:.3g}, mean of {row['count']}"
            yield f"cosine, {distance} on{held}", row["cosine"], median
            yield f"  error, {distance} on{held}", row["error_median"], "median |p - m|^2 / |m|^2"
    yield from _faithfulness(summary.get("faithfulness"))
    for one in summary.get("scrubbing", []):
        yield f"scrubbed: {one['name']}", one["survives"], "share of the metric that survives"


def _faithfulness(kept: Mapping[str, Any] | None) -> Iterator[tuple[str, float | None, str]]:
    if kept is None:
        yield "faithfulness", None, "not measured: needs a corpus"
        return
    size = f"{kept['features']} features, {kept['errors']} errors"
    yield "circuit keeps", kept["circuit"], f"of the lead of {kept['clean']:.3g} logits; {size}"
    yield "  silent features left", kept["silent_left"], "features that never fired not at means"
    yield "  without its errors", kept["without_errors"], "every error at its mean"
    yield "  random circuits", kept["random"], "of equal size"
    yield "  the rest of the graph", kept["rest"], "completeness: should be little"
    yield "  nothing kept", kept["empty"], "everything at its mean"
    yield "  nodes that matter", kept["minimal"], "minimality: left out alone, they move 1 % of it"
