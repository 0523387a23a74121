"""What patching found, as one Arrow table and one picture."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from graphs.pictures import charts
from tracer.errors import TraceError
from tracer.patching.patch_sites import PatchSite


def table_of(
    sites: Sequence[PatchSite],
    before: float,
    after: Float[np.ndarray, " sites"],
    clean: float | None,
) -> pa.Table:
    """One row a site.

    Args:
        sites: what was patched.
        before: the metric without any patch.
        after: with each.
        clean: the metric of the run patches came from; None where there is none.
    """
    effect = after - before
    gap = 0.0 if clean is None else clean - before
    recovered = [None] * len(sites) if gap == 0 else (effect / gap + 0.0).tolist()  # no -0
    return pa.table(
        {
            "kind": pa.array([str(site.kind) for site in sites], pa.string()),
            "layer": pa.array([site.layer for site in sites], pa.int32()),
            "position": pa.array([site.position for site in sites], pa.int32()),
            "index": pa.array([site.index for site in sites], pa.int64()),
            "before": np.full(len(sites), before),
            "after": after,
            "effect": effect,
            "recovered": pa.array(recovered, pa.float64()),
        }
    )


def heat_map(
    table: pa.Table,
    *,
    rows: str = "layer",
    columns: str = "position",
    value: str = "effect",
    labels: Sequence[str] = (),
) -> str:
    """One number a cell, as SVG text; sites that share a cell are added up.

    Args:
        table: from `patch` or `ablate`.
        rows: a column of it: layer, position or index.
        columns: another.
        value: what to show: effect, recovered or after.
        labels: what to write under the columns instead of their numbers, as tokens under positions.

    Raises:
        TraceError: a column is not in the table, or has no values.
    """
    for name in (rows, columns, value):
        if name not in table.column_names:
            raise TraceError(f"heat map: no column {name!r}, expected {table.column_names}")
        if table[name].null_count:
            raise TraceError(f"heat map: column {name!r} has empty rows; choose another")
    down, across = (table[name].to_numpy() for name in (rows, columns))
    low, wide = np.unique(down), np.unique(across)
    grid = np.full((len(low), len(wide)), np.nan)
    for row, column, number in zip(down, across, table[value].to_numpy(), strict=True):
        place = np.searchsorted(low, row), np.searchsorted(wide, column)
        grid[place] = np.nan_to_num(grid[place]) + number
    names = [labels[at] if at < len(labels) else str(at) for at in wide.tolist()]
    title = f"{value} by {rows} and {columns}"
    return charts.heat_map(title, [f"{rows} {at}" for at in low[::-1]], names, grid[::-1])
