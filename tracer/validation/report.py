"""A validation as files: tables and plots."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from graphs.exchange.files import writing
from graphs.pictures import charts
from tracer.validation.correlation import ranks
from tracer.validation.response import EDGES

TABLES = ("features", "responses", "circuits")


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


def _series(responses: pa.Table) -> list[str]:
    """What each response is drawn as: what was held while measuring, or what was predicted with."""
    pairs = zip(*(responses[name].to_pylist() for name in ("frozen", "predicted")), strict=True)
    return [f"{held} frozen" if by == EDGES else f"predicted: {by}" for held, by in pairs]


def plots(tables: Mapping[str, pa.Table | None]) -> dict[str, str]:
    """Influence against effect, cosine by distance, and the faithfulness curve, as SVG."""
    features, responses, circuits = (tables[name] for name in TABLES)
    assert features is not None
    assert responses is not None
    measured = np.abs(features["measured"].to_numpy())
    found = {
        "influence": charts.points(
            "Influence against the effect of zeroing",
            ("influence rank", ranks(features["influence"].to_numpy()).tolist()),
            ("rank of |change of the target's logit|", ranks(measured).tolist()),
        )
    }
    if responses.num_rows:
        distance, cosine = responses["distance"].to_numpy(), responses["cosine"].to_numpy()
        frozen, steps = np.array(_series(responses)), np.unique(distance)
        series = {
            name: [_mean(cosine[(distance == step) & (frozen == name)]) for step in steps]
            for name in dict.fromkeys(frozen.tolist())
        }
        axis = ("layers above", steps.astype(float).tolist())
        title = "Predicted and measured responses"
        found["responses"] = charts.lines(title, axis, "mean cosine", series)
    if circuits is not None:
        held = ("circuit_attention_held", "circuit_norms_held")
        names = ("circuit", "silent_left", "without_errors", "random", "rest", *held)
        found["circuits"] = charts.lines(
            "What circuits keep of the target's lead",
            ("share of influence kept in the circuit", circuits["nodes"].to_pylist()),
            "share of the clean lead",
            {name.replace("_", " "): circuits[name].to_pylist() for name in names},
        )
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
