"""How several values are summed up: never by a median alone."""

from collections.abc import Sequence

import numpy as np

HALF = 0.5


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float | int | None]:
    """Median, quartiles, the share of values below HALF, and how many there are.

    Returns:
        median, lower, upper (quartiles, interpolated between values), below_half, count; all but
        the count are None where there are no values.

    >>> spread([0.0, 0.25, 0.5, 1.0, 4.0])
    {'median': 0.5, 'lower': 0.25, 'upper': 1.0, 'below_half': 0.4, 'count': 5}
    """
    known = np.asarray(values, dtype=float)
    if not known.size:
        return {"median": None, "lower": None, "upper": None, "below_half": None, "count": 0}
    lower, median, upper = (float(one) for one in np.percentile(known, (25, 50, 75)))
    return {
        "median": median,
        "lower": lower,
        "upper": upper,
        "below_half": float((known < HALF).mean()),
        "count": int(known.size),
    }
