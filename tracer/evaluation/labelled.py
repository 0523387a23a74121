"""How many features have a label, and how true labels are, where a feature store has them."""

from statistics import fmean, median
from typing import Any

from tracer.evaluation.subject import Subject
from tracer.features.beside import store_of
from tracer.features.labels.table import Labels

TRUE = 0.7
"""A label of this F1 or more counts as true."""


def label_figures(subject: Subject) -> dict[str, Any] | None:
    """F1 of the labels in the store beside a dictionary, as they were scored on text held out.

    Returns:
        Of the features that fire on that text: how many there are, the share whose label is shown,
        the share whose F1 is at least TRUE, mean F1 (0 where no label is shown) and the median of
        those shown; None where there is no store, or it has no labels.

    Raises:
        TraceError: the file of labels cannot be read.
    """
    store, refused = store_of(subject.model)
    if refused:
        return {"refused": refused}
    rows = [] if store is None else list(Labels.read(store.path).rows.values())
    fires = [row for row in rows if row["f1"] is not None or row["fires"]]
    if not fires:
        return None
    shown = [row["f1"] for row in fires if row["shown"] and row["f1"] is not None]
    return {
        "features": len(fires),
        "shown": len(shown) / len(fires),
        "true": sum(value >= TRUE for value in shown) / len(fires),
        "mean_f1": sum(shown) / len(fires),
        "median_f1_shown": median(shown) if shown else None,
        "mean_f1_shown": fmean(shown) if shown else None,
    }
