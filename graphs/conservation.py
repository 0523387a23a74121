"""The conservation law on a graph's own rows: what it claims of itself is checked.

Inputs, constant and what was left out of a row add up to its pre-activation. `metadata` say by how
much the worst row missed it when it was traced; rows that miss it by more were changed since.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from graphs.influence import row_sums
from graphs.schema import GraphError, number

CLAIM = "conservation"
ROUNDING = 1e-6
"""Share of a row's size by which its sum may be off: weights in float32, sums in another order."""


def broken(
    effect: sparse.csr_array, nodes: pa.Table, metadata: Mapping[str, Any]
) -> tuple[int, float] | None:
    """The row that breaks the law most, among those with all the law is about.

    Args:
        effect: (nodes, nodes) direct effects.
        nodes: the node table.
        metadata: of the graph.

    Returns:
        Row number, and what it adds up to in units of its pre-activation; None where the law
        holds, or the metadata claim nothing.

    >>> effect = sparse.csr_array([[0.0, 0], [2, 0]])
    >>> rest = {"left_out": [None, 0.0], "left_out_absolute": [None, 0.0]}
    >>> nodes = pa.table({"constant": [None, 0.5], "pre_activation": [None, 3.0], **rest})
    >>> broken(effect, nodes, {"conservation": {"worst": 1e-7}})
    (1, 2.5)
    """
    claimed = metadata.get(CLAIM)
    if claimed is None:
        return None
    constant, left_out, value = (
        nodes[name].to_numpy() for name in ("constant", "left_out", "pre_activation")
    )
    known = np.abs(constant) + np.abs(left_out) + number(nodes, "left_out_absolute")
    size = row_sums(effect, size=True) + known
    total = row_sums(effect) + constant + left_out
    excess = np.abs(total - value) - claimed["worst"] * (1 + ROUNDING) - ROUNDING * size
    excess = np.nan_to_num(excess)
    if not (excess > 0).any():
        return None
    row = int(excess.argmax())
    return row, float(total[row])


def check_conservation(
    effect: sparse.csr_array, nodes: pa.Table, metadata: Mapping[str, Any]
) -> None:
    """Refuse rows that break the law by more than the graph says they do.

    Raises:
        GraphError: names the row that is off most.
    """
    if found := broken(effect, nodes, metadata):
        row, total = found
        name, value = (nodes[column][row].as_py() for column in ("id", "pre_activation"))
        raise GraphError(
            f"node {row} ({name}) breaks the conservation law: inputs, constant and left-out add "
            f"up to {total:g}, expected its pre-activation {value:g} to within "
            f"{metadata[CLAIM]['worst']:.2g}: the graph was damaged or changed since it was "
            "traced; copy or trace it again"
        )
