"""How sure a mean over prompts is."""

import numpy as np
from jaxtyping import Float
from scipy import sparse

CHUNK = 1024
"""Columns that are drawn for together."""


def bootstrap(
    values: sparse.csr_array, draws: int, seed: int, confidence: float = 0.95
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Percentile intervals of the mean of each column, prompts drawn anew with replacement.

    The same draws serve every column; held are 8 bytes a draw and prompt, and a draw and `CHUNK`
    columns.

    Args:
        values: (prompts, columns).
        draws: of all prompts.
        seed: of the draws.
        confidence: of the interval.

    Returns:
        Lower and upper ends, in the units of `values`; equal where there is one prompt.

    >>> low, high = bootstrap(sparse.csr_array([[1.0, 0.0], [1.0, 1.0]]), 200, seed=0)
    >>> low.tolist(), high.tolist()
    ([1.0, 0.0], [1.0, 1.0])
    """
    count, columns = values.shape
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), draws)
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    found = np.empty((2, columns))
    held = values.tocsc()
    for start in range(0, columns, CHUNK):
        some = held[:, start : start + CHUNK]
        means = (some.T @ times.T).T / count  # (draws, columns)
        found[:, start : start + CHUNK] = np.quantile(means, ends, axis=0)
    return found[0], found[1]
