"""Which graphs are said to break the conservation law, and which merely round."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from graphs import GraphError
from graphs.conservation import broken, check_conservation

LARGE = 2e6
"""A part of a row beside which two units are rounding: 1e-6 of it."""
PARTS = {
    "inputs": ([LARGE, -LARGE], 0.0, 0.0, 0.0, 2 * LARGE),
    "constant": ([1.0, 0.0], LARGE, 0.0, 0.0, LARGE),
    "negative constant": ([1.0, 0.0], -LARGE, 0.0, 0.0, LARGE),
    "left out": ([1.0, 0.0], 0.0, -LARGE, 0.0, LARGE),
    "left out, both signs": ([1.0, 0.0], 0.0, 0.0, LARGE, LARGE),
    "all": ([LARGE, -LARGE], LARGE, -LARGE, LARGE, 5 * LARGE),
    "nothing": ([0.0, 0.0], 0.0, 0.0, 0.0, 0.0),
}
"""By name: what a row reads, its constant, what it leaves out, and that in size; its size."""


def graph(*rows: tuple[list[float], float, float, float], off: list[float]) -> tuple[Any, pa.Table]:
    """Two sources and some rows, of which pre-activations are off by so much."""
    effect = np.zeros((2 + len(rows), 2 + len(rows)))
    for at, (inputs, *_) in enumerate(rows):
        effect[2 + at, :2] = inputs
    columns = [list(column) for column in zip(*rows, strict=True)]
    value = [sum(row[0]) + row[1] + row[2] + wrong for row, wrong in zip(rows, off, strict=True)]
    given = dict(zip(("constant", "left_out", "left_out_absolute"), columns[1:], strict=True))
    nodes = {
        name: [None, None, *held] for name, held in (given | {"pre_activation": value}).items()
    }
    ids = [f"n{at}" for at in range(2 + len(rows))]
    return sparse.csr_array(effect), pa.table({"id": ids} | nodes)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("worst", [0.0, 3.0, 3e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_may_miss_its_sum_by_what_is_claimed_and_by_rounding_of_all_it_is_made_of(
    part: str, worst: float, sign: int
):
    *row, size = PARTS[part]
    claim = {"conservation": {"worst": worst}}
    rounding = 1e-6 * (size + worst)
    effect, nodes = graph(tuple(row), off=[sign * (worst + 0.9 * rounding)])
    assert broken(effect, nodes, claim) is None
    check_conservation(effect, nodes, claim)
    effect, nodes = graph(tuple(row), off=[sign * (worst + 1.1 * rounding + 1e-9)])
    assert broken(effect, nodes, claim) == (2, pytest.approx(sum(row[0]) + row[1] + row[2]))
    assert broken(effect, nodes, {}) is None


def test_the_row_that_is_off_most_is_named_with_its_sum_and_what_was_expected():
    rows = [([2.0, 1.0], 0.5, 0.25, 0.25)] * 3
    effect, nodes = graph(*rows, off=[0.1, -0.5, 0.0])
    with pytest.raises(GraphError) as error:
        check_conservation(effect, nodes, {"conservation": {"worst": 0.01}})
    assert str(error.value).startswith(
        "node 3 (n3) breaks the conservation law: inputs, constant and left-out add up to 3.75, "
        "expected its pre-activation 3.25 to within 0.01: "
    )
