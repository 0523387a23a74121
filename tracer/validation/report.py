"""A validation as files and as lines to read: tables, plots, and targets to compare with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from graphs.files import writing
from tracer import charts

TABLES = ("features", "responses", "circuits")


def rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str]]:
    """(what, value, what it means) of everything a summary holds, in reading order."""
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


def write_tables(folder: Path, tables: Mapping[str, pa.Table | None]) -> list[Path]:
    """Write the tables as Arrow files beside a graph; returns their paths.

    Raises:
        GraphError: the place cannot be written.
    """
    written = []
    for name, table in tables.items():
        if table is None:
            continue
        path = folder / f"validation_{name}.arrow"
        with (
            writing(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        written.append(path)
    return written


def write_plots(folder: Path, tables: Mapping[str, pa.Table | None]) -> list[Path]:
    """Write the plots as SVG files; returns their paths.

    Raises:
        GraphError: the place cannot be written.
    """
    written = []
    for name, picture in plots(tables).items():
        path = folder / f"validation_{name}.svg"
        with writing(path) as partial:
            partial.write_text(picture, encoding="utf-8")
        written.append(path)
    return written


def plots(tables: Mapping[str, pa.Table | None]) -> dict[str, str]:
    """Influence against effect, cosine by distance, and the faithfulness curve, as SVG."""
    features, responses, circuits = (tables[name] for name in TABLES)
    assert features is not None
    assert responses is not None
    measured = np.abs(features["measured"].to_numpy())
    found = {
        "influence": charts.points(
            "Influence against the effect of zeroing",
            ("influence rank", _ranks(features["influence"].to_numpy())),
            ("rank of |change of the target's logit|", _ranks(measured)),
        )
    }
    if responses.num_rows:
        distance, cosine = responses["distance"].to_numpy(), responses["cosine"].to_numpy()
        frozen, steps = np.array(responses["frozen"].to_pylist()), np.unique(distance)
        series = {
            f"{name} frozen": [
                _mean(cosine[(distance == step) & (frozen == name)]) for step in steps
            ]
            for name in dict.fromkeys(frozen.tolist())
        }
        axis = ("layers above", steps.astype(float).tolist())
        title = "Predicted and measured responses"
        found["responses"] = charts.lines(title, axis, "mean cosine", series)
    if circuits is not None:
        names = ("circuit", "silent_left", "without_errors", "random", "rest")
        found["circuits"] = charts.lines(
            "What circuits keep of the target's lead",
            ("share of influence kept in the circuit", circuits["nodes"].to_pylist()),
            "share of the clean lead",
            {name.replace("_", " "): circuits[name].to_pylist() for name in names},
        )
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _ranks(values: np.ndarray) -> list[float]:
    ranks: list[float] = rankdata(values).tolist()
    return ranks
